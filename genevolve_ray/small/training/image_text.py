"""A small image-text model of the world `small`: an image tower that is trained here beside a frozen sentence model.

It is a VisionTextDualEncoderModel of transformers. Its text tower is MiniLM; trained are the image tower, both projections, and
the layer that pools a text (`pooler`), as the stock model pools by the first token and MiniLM was trained for the mean.

Shape legend: N shots of a batch, d dimensions of the common space, h of the text tower, S pixels of a side.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from genevolve_ray.errors import UserFault
from genevolve_ray.small.notices import ATTRIBUTION, PROVENANCE, write_notices
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.training.checkpoints import read_tensors, write_tensors
from genevolve_ray.small.training.hashes import encoder_hash, pictures_hash, text_hash
from genevolve_ray.small.training.loops import TrainingProgress, TrainLoopConfig, train_loop
from genevolve_ray.small.training.shots import KeptLibrary, Shot, alike_shots, drawn_group, drawn_lineup
from genevolve_ray.small.training.views import View, seen

SIDE = 64
"""Pixels of a side that the image tower reads."""
WEIGHTS = "weights.safetensors"
TOWER: dict[str, Any] = {"num_stages": 3, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 3], "patch_size": 4}
"""The settings of transformers' ConvNextV2Config."""
DIMENSIONS = 128
"""Of the common space."""
_TRAINED = ("vision_model.", "visual_projection.", "text_projection.", "text_model.pooler.", "logit_scale")
_MOST_SCALE = math.log(100)
"""Upper bound of the logarithm of the scale, as of CLIP (arXiv 2103.00020, section 2.5)."""
_CHUNK = 64
"""Texts of one file of the first pass."""


class ImageTextTraining(TrainLoopConfig):
    """Configure the training."""

    steps: int = Field(default=600, ge=1)
    """Updates of the weights."""
    batch: int = Field(default=16, ge=1)
    """Groups of shots of an update."""
    save_every: int = Field(default=50, ge=1)
    """Steps between two checkpoints."""
    average: float = Field(default=0.98, ge=0, lt=1)
    """How much of the moving average of the weights a step keeps; less at the beginning."""
    decay: float = Field(default=0.05, ge=0)
    """Weight decay of AdamW."""
    groups: int = Field(default=1600, ge=1)
    """Groups with many wordings. Texts are embedded once; their pictures are drawn anew in each step."""
    plain_groups: int = Field(default=800, ge=0)
    """Further groups, in plain words."""
    group_size: int = Field(default=4, ge=2, le=5)
    """A scene, and others that differ from it in one point; or scenes that differ in the subject. There are five points, and
    the style of a gray thing on gray cannot be seen."""
    lineups: float = Field(default=0.5, ge=0, le=1)
    """Share of groups that show one scene with different subjects of one group, see `shots.drawn_lineup`."""
    between_pictures: float = Field(default=0.5, ge=0)
    """Weight of the loss between two views of a scene, beside those between view and text."""


def train_image_text(
    library: PictureLibrary,
    embedder: Path,
    out: Path,
    settings: ImageTextTraining | None = None,
    *,
    render: View | None = None,
    progress: TrainingProgress | None = None,
) -> Path:
    """Train the model, and return the file with its weights in fp16; `assemble_image_text` makes a model folder of it.

    A training that was interrupted continues from its last checkpoint, to the same weights.

    Args:
        library: the pictures.
        embedder: a folder in Hugging Face layout with a BertModel, such as all-MiniLM-L6-v2.
        out: where texts, checkpoint, weights and their provenance are written.
        settings: see `ImageTextTraining`.
        render: what some pictures go through first; see `views.seen`.
        progress: told about texts and steps.

    Raises:
        UserFault: when `out` holds a checkpoint of other settings, pictures or texts, or the embedder is no BertModel.
        ArithmeticError: when the loss is not finite.
    """
    settings, progress = settings or ImageTextTraining(), progress or (lambda what, done, total: None)
    groups = _groups(settings, library)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = _untrained(embedder)
    states = _first_states(model, embedder, [shot.text for group in groups for shot in group], out, progress)
    _keep_the_trained(model)
    kept, size = KeptLibrary(library), settings.group_size

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(groups), generator=generator)[: settings.batch].tolist()
        shots = [shot for i in chosen for shot in groups[i]]
        states_N_h = torch.cat([states[i * size : (i + 1) * size].float() for i in chosen])
        with torch.autocast("cpu", enabled=False):
            one, other = (seen(_drawn(shots, kept, generator), generator, render) for _ in range(2))
        same_N_N = torch.from_numpy(alike_shots(shots, kept))
        return _loss(model, one, other, states_N_h, same_N_N, settings.between_pictures)

    own = {
        "tower": TOWER,
        "dimensions": DIMENSIONS,
        "embedder": encoder_hash(embedder),
        "shots": text_hash([pictures_hash(library, _drawn_ids(library)), *(repr(group) for group in groups)]),
        "rendered": render is not None,
    }
    averaged = train_loop("image-text", model, loss_of, settings, out / "checkpoint.safetensors", progress, own)
    file = out / WEIGHTS
    write_tensors({name: value.half() for name, value in averaged.items()}, file)
    record = {
        "script": f"{__name__}:train_image_text",
        "licence": "CC BY-SA 4.0",
        "attribution": ATTRIBUTION,
        "settings": settings.model_dump(),
        **own,
        "parameters": sum(value.numel() for value in averaged.values()),
        "sha256": {WEIGHTS: hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    (out / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return file


def assemble_image_text(weights: Path, embedder: Path, out: Path) -> Path:
    """Write a model folder in Hugging Face layout from trained weights and the frozen text tower, and return it.

    It holds model, tokenizer and image processor, as `AlignmentJudge` and `LikenessJudge` load them.

    Raises:
        UserFault: when the weights are not those of this architecture, or the embedder is no BertModel.
    """
    from transformers import AutoTokenizer, VisionTextDualEncoderProcessor, ViTImageProcessor

    model, trained = _untrained(embedder), read_tensors(weights)
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
    write_notices(out, "image_text")
    return out


def contrast(one_N_d: Tensor, other_N_d: Tensor, scale: Tensor, same_N_N: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of rows that belong together (CLIP, arXiv 2103.00020, figure 3).

    Args:
        one_N_d: vectors of length 1.
        other_N_d: those that belong to them, row by row.
        scale: of the cosines, a scalar.
        same_N_N: bool, symmetric; which pairs say the same. They are no negatives of each other, so they do not count in
            the sums of a row's softmax. The diagonal, where the positives are, is not read.
    """
    logits_N_N = scale * one_N_d @ other_N_d.T
    no_negatives_N_N = same_N_N & ~torch.eye(len(same_N_N), dtype=torch.bool)
    logits_N_N = logits_N_N.masked_fill(no_negatives_N_N, float("-inf"))
    labels_N = torch.arange(len(logits_N_N))
    return (functional.cross_entropy(logits_N_N, labels_N) + functional.cross_entropy(logits_N_N.T, labels_N)) / 2


def _groups(settings: ImageTextTraining, library: PictureLibrary) -> list[list[Shot]]:
    groups = []
    for i in range(settings.groups + settings.plain_groups):
        rng = random.Random(f"{settings.seed}:{i}")
        draw = drawn_lineup if rng.random() < settings.lineups else drawn_group
        groups.append(draw(rng, library, settings.group_size, plain=i >= settings.groups))
    return groups


def _drawn_ids(library: PictureLibrary) -> list[str]:
    return [*library.subjects, *(entry.id for entry in library.flags.values())]


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
    kind: Any = ConvNextV2Config
    tower = kind(**TOWER, image_size=SIDE, hidden_size=TOWER["hidden_sizes"][-1])
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tower, text.config, projection_dim=DIMENSIONS)
    return VisionTextDualEncoderModel(config, AutoModel.from_config(tower), text)


def _keep_the_trained(model: Any) -> None:
    """Remove the frozen part of the text tower, whose results are known: what is left has the names of the whole."""
    pooler = model.text_model.pooler
    model.text_model = torch.nn.Module()
    model.text_model.pooler = pooler


@torch.inference_mode()
def _first_states(model: Any, embedder: Path, texts: Sequence[str], out: Path, progress: TrainingProgress) -> Tensor:
    """Return the last hidden state of the first token of each text, fp16 [texts, h], from files where they exist."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(embedder, local_files_only=True), []
    folder = out / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    for at in range(0, len(texts), _CHUNK):
        chunk = list(texts[at : at + _CHUNK])
        own = hashlib.sha256(json.dumps([encoder_hash(embedder), chunk]).encode()).hexdigest()
        file = folder / f"{own[:32]}.safetensors"
        if not file.is_file():
            inputs = tokenizer(chunk, padding=True, return_tensors="pt")
            write_tensors({"states": model.text_model(**inputs).last_hidden_state[:, 0].half()}, file)
        found.append(read_tensors(file)["states"])
        progress("texts", at + len(chunk), len(texts))
    return torch.cat(found)


def _drawn(shots: Sequence[Shot], library: PictureLibrary, generator: torch.Generator) -> Tensor:
    """Return the pictures of shots, [N, 3, S, S] in [0, 1]."""
    import numpy as np

    seeds_N = torch.randint(1 << 31, (len(shots),), generator=generator).tolist()
    pictures = [np.asarray(shot.drawn(library, seed, SIDE)) for shot, seed in zip(shots, seeds_N, strict=True)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _loss(
    model: Any, one_N_3_S_S: Tensor, other_N_3_S_S: Tensor, states_N_h: Tensor, same_N_N: Tensor, between: float
) -> Tensor:
    """Return the loss of two views of each shot and the first states of its text; see `contrast` for `same_N_N`."""
    text_N_d = model.text_projection(torch.tanh(model.text_model.pooler.dense(states_N_h)))
    pixels_2N_3_S_S = (torch.cat([one_N_3_S_S, other_N_3_S_S]) - 0.5) / 0.5
    images_2N_d = model.get_image_features(pixel_values=pixels_2N_3_S_S).pooler_output
    # Cosines of pictures that differ in one point are close: bfloat16 would not tell them apart.
    with torch.autocast("cpu", enabled=False):
        text_N_d = functional.normalize(text_N_d.float(), dim=-1)
        one_N_d, other_N_d = functional.normalize(images_2N_d.float(), dim=-1).chunk(2)
        scale = model.logit_scale.clamp(max=_MOST_SCALE).exp()
        with_text = contrast(one_N_d, text_N_d, scale, same_N_N) + contrast(other_N_d, text_N_d, scale, same_N_N)
        return with_text / 2 + between * contrast(one_N_d, other_N_d, scale, same_N_N)
