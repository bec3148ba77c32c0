"""A small image-text model of the world `small`: an image tower that is trained here beside a frozen sentence model.

It is a VisionTextDualEncoderModel of transformers. Its text tower is MiniLM; trained are the image tower, both projections, and
the layer that pools a text (`pooler`), as the stock model pools by the first token and MiniLM was trained for the mean.

Shape legend: N shots of a batch, d dimensions of the common space, h of the text tower.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.training.shots import KeptLibrary, Shot, drawn_group
from genevolve_ray.small.training.views import View, seen

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is done, and how much there is."""
SIDE = 64
WEIGHTS, CHECKPOINT, PROVENANCE = "weights.safetensors", "checkpoint.safetensors", "provenance.json"
_TOWER = {"num_stages": 3, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 3], "patch_size": 4}
_DIMENSIONS = 128
_TRAINED = ("vision_model.", "visual_projection.", "text_projection.", "text_model.pooler.", "logit_scale")
_MOST_SCALE = math.log(100)
"""Upper bound of the logarithm of the scale, as of CLIP (arXiv 2103.00020, section 2.5)."""
_CHUNK = 64
"""Texts of one file of the first pass."""


class ImageTextTraining(Config):
    """Configure the training."""

    seed: int = 0
    groups: int = Field(default=2400, ge=1)
    """Groups of shots whose texts are embedded, once; their pictures are drawn anew in each step."""
    group_size: int = Field(default=4, ge=2, le=6)
    """A scene, and others that differ from it in one point."""
    steps: int = Field(default=1000, ge=1)
    batch_groups: int = Field(default=16, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    pooler_lr: float = Field(default=2e-4, gt=0)
    """Learning rate of the layer that pools texts, which begins with MiniLM's."""
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: int = Field(default=100, ge=1)
    """Steps."""
    between_pictures: float = Field(default=0.5, ge=0)
    """Weight of the loss between two views of a scene, beside those between view and text."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps."""


def train_image_text(
    library: PictureLibrary,
    embedder: Path,
    out: Path,
    settings: ImageTextTraining | None = None,
    *,
    render: View | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the model, and return the file with its weights in fp16; `assemble_image_text` makes a model folder of it.

    A run that was interrupted continues from its last checkpoint, to the same weights.

    Args:
        library: the pictures.
        embedder: a folder in Hugging Face layout with a BertModel, such as all-MiniLM-L6-v2.
        out: where texts, checkpoint and weights are written.
        settings: see `ImageTextTraining`.
        render: what some pictures go through first; see `views.seen`.
        progress: told about texts and steps.

    Raises:
        UserFault: when `out` holds a checkpoint of other settings, or the embedder is no BertModel.
    """
    settings, progress = settings or ImageTextTraining(), progress or (lambda what, done, total: None)
    own = settings_hash(settings, embedder)
    groups = [
        drawn_group(random.Random(f"{settings.seed}:{i}"), library, settings.group_size) for i in range(settings.groups)
    ]
    torch.manual_seed(settings.seed)
    model = _untrained(embedder)
    states = _first_states(model, embedder, [shot.text for group in groups for shot in group], out, progress)
    run = _Run(model, settings, own, out)
    first, kept = run.resume(), KeptLibrary(library)
    for step in range(first, settings.steps):
        rng = random.Random(f"{settings.seed}:step:{step}")
        chosen = rng.sample(range(len(groups)), min(settings.batch_groups, len(groups)))
        shots = [shot for i in chosen for shot in groups[i]]
        places = torch.tensor([i * settings.group_size + j for i in chosen for j in range(settings.group_size)])
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        views = [seen(_drawn(shots, kept, rng), generator, render) for _ in range(2)]
        run.step(step, views, states[places].float())
        progress(f"image-text loss {run.loss:.3f}", step + 1, settings.steps)
        if (step + 1) % settings.checkpoint_every == 0:
            run.keep(step + 1)
    return run.finish()


def assemble_image_text(weights: Path, embedder: Path, out: Path) -> Path:
    """Write a model folder in Hugging Face layout from trained weights and the frozen text tower, and return it.

    It holds model, tokenizer and image processor, as `AlignmentJudge` and `LikenessJudge` load them.

    Raises:
        UserFault: when the weights are not those of this architecture, or the embedder is no BertModel.
    """
    from transformers import AutoTokenizer, VisionTextDualEncoderProcessor, ViTImageProcessor

    model, trained = _untrained(embedder), load_file(weights)
    wanted = {name: value.shape for name, value in model.state_dict().items() if name.startswith(_TRAINED)}
    if {name: value.shape for name, value in trained.items()} != wanted:
        raise UserFault(
            f"{weights}: not the weights of this image-text model ({len(trained)} of {len(wanted)} tensors)"
        )
    model.load_state_dict({name: value.float() for name, value in trained.items()}, strict=False)
    model.save_pretrained(out)
    size = {"height": SIDE, "width": SIDE}
    pictures = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    tokenizer = AutoTokenizer.from_pretrained(embedder, local_files_only=True)
    VisionTextDualEncoderProcessor(pictures, tokenizer).save_pretrained(out)
    return out


def settings_hash(settings: ImageTextTraining, embedder: Path) -> str:
    """Return a hash of what decides the weights, beside the pictures."""
    own = [settings.model_dump(), _TOWER, _DIMENSIONS, model_hash(embedder)]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


@cache
def model_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights in a model folder. Raises UserFault for a folder without weights."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserFault(f"{folder}: it has no model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _untrained(embedder: Path) -> Any:
    """Return the dual encoder with the frozen text tower of a folder and a new image tower."""
    from transformers import (
        AutoModel,
        BertModel,
        ConvNextV2Config,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    text = AutoModel.from_pretrained(embedder, local_files_only=True, dtype=torch.float32)
    if not isinstance(text, BertModel):
        raise UserFault(f"{embedder} holds a {type(text).__name__}: the text tower must be a BertModel")
    # The dual encoder asks every tower for one `hidden_size`, which this family states by stages.
    tower = ConvNextV2Config(**_TOWER, image_size=SIDE, hidden_size=_TOWER["hidden_sizes"][-1])
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tower, text.config, projection_dim=_DIMENSIONS)
    return VisionTextDualEncoderModel(config, AutoModel.from_config(tower), text)


@torch.inference_mode()
def _first_states(model: Any, embedder: Path, texts: Sequence[str], out: Path, progress: Progress) -> Tensor:
    """Return the last hidden state of the first token of each text, fp16 [texts, h], from files where they exist."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(embedder, local_files_only=True), []
    folder = out / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    for at in range(0, len(texts), _CHUNK):
        chunk = list(texts[at : at + _CHUNK])
        own = hashlib.sha256(json.dumps([model_hash(embedder), chunk]).encode()).hexdigest()
        file = folder / f"{own[:32]}.safetensors"
        if not file.is_file():
            inputs = tokenizer(chunk, padding=True, return_tensors="pt")
            _write({"states": model.text_model(**inputs).last_hidden_state[:, 0].half()}, file)
        found.append(load_file(file)["states"])
        progress("texts", at + len(chunk), len(texts))
    return torch.cat(found)


def _drawn(shots: Sequence[Shot], library: PictureLibrary, rng: random.Random) -> Tensor:
    """Return the pictures of shots, [N, 3, SIDE, SIDE] in [0, 1]."""
    import numpy as np

    pictures = np.stack([np.asarray(shot.drawn(library, rng.getrandbits(32), SIDE)) for shot in shots])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _write(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors so that a file of this name is always whole."""
    part = file.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
    part.replace(file)


class _Run:
    """Hold model and optimizer of a training."""

    def __init__(self, model: Any, settings: ImageTextTraining, own: str, out: Path) -> None:
        self.loss = math.nan
        self._model, self._settings, self._own, self._out = model, settings, own, out
        named = {name: value for name, value in model.named_parameters() if name.startswith(_TRAINED)}
        model.requires_grad_(False)
        for value in named.values():
            value.requires_grad_(True)
        self._named = named
        pooler = [value for name, value in named.items() if name.startswith("text_model.")]
        others = [value for name, value in named.items() if not name.startswith("text_model.")]
        groups = [{"params": others, "most": settings.lr}, {"params": pooler, "most": settings.pooler_lr}]
        self._optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
        )

    def step(self, step: int, views: Sequence[Tensor], states_N_h: Tensor) -> None:
        """Take one step on two views of each shot and the first states of its text."""
        settings = self._settings
        share = min((step + 1) / settings.warmup, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
        for group in self._optimizer.param_groups:
            group["lr"] = group["most"] * share
        self._model.train()
        text_N_d = self._model.text_projection(torch.tanh(self._model.text_model.pooler.dense(states_N_h)))
        images_2N_d = self._model.get_image_features(pixel_values=(torch.cat(list(views)) - 0.5) / 0.5).pooler_output
        text_N_d = functional.normalize(text_N_d, dim=-1)
        one_N_d, other_N_d = functional.normalize(images_2N_d, dim=-1).chunk(2)
        scale = self._model.logit_scale.clamp(max=_MOST_SCALE).exp()
        loss = (contrast(one_N_d, text_N_d, scale) + contrast(other_N_d, text_N_d, scale)) / 2
        loss = loss + settings.between_pictures * contrast(one_N_d, other_N_d, scale)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self._named.values()), 1.0)
        self._optimizer.step()
        self.loss = float(loss.detach())

    def resume(self) -> int:
        """Load the last checkpoint, if there is one, and return the number of steps that it has taken."""
        file = self._out / CHECKPOINT
        if not file.is_file():
            return 0
        with safe_open(file, "pt") as found:
            metadata = found.metadata()
        if metadata["settings"] != self._own:
            raise UserFault(f"{file} is a checkpoint of other settings: remove it, or give another folder")
        tensors = load_file(file)
        with torch.no_grad():
            for name, value in self._named.items():
                value.copy_(tensors[f"model.{name}"])
                moments = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[value] = {"step": torch.tensor(float(metadata["step"])), **moments}
        return int(metadata["step"])

    def keep(self, steps: int) -> None:
        """Write a checkpoint."""
        tensors = {f"model.{name}": value.detach() for name, value in self._named.items()}
        for name, value in self._named.items():
            tensors |= {f"{key}.{name}": self._optimizer.state[value][key] for key in ("exp_avg", "exp_avg_sq")}
        _write(tensors, self._out / CHECKPOINT, {"step": str(steps), "settings": self._own})

    def finish(self) -> Path:
        """Write the weights in fp16 and what is known of their origin; return the file of the weights."""
        file = self._out / WEIGHTS
        _write({name: value.detach().half() for name, value in self._named.items()}, file)
        record = {
            "script": "genevolve_ray.small.training.image_text:train_image_text",
            "settings": self._settings.model_dump(),
            "tower": {"class": "ConvNextV2", **_TOWER, "dimensions": _DIMENSIONS},
            "parameters": sum(value.numel() for value in self._named.values()),
            "last_loss": round(self.loss, 4),
            "sha256": {WEIGHTS: hashlib.sha256(file.read_bytes()).hexdigest()},
        }
        (self._out / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return file


def contrast(one_N_d: Tensor, other_N_d: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of rows that belong together (CLIP, arXiv 2103.00020, figure 3)."""
    logits_N_N = scale * one_N_d @ other_N_d.T
    labels_N = torch.arange(len(logits_N_N))
    return (functional.cross_entropy(logits_N_N, labels_N) + functional.cross_entropy(logits_N_N.T, labels_N)) / 2
