"""The renderer of the world `small` from nothing: its training, its weights, and its folder in diffusers' layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config
from genevolve_ray.small.notices import ATTRIBUTION, PROVENANCE, write_notices
from genevolve_ray.small.parts import file_sha256
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.training.autoencoder import encode, new_autoencoder, train_autoencoder
from genevolve_ray.small.training.checkpoints import read_tensors, write_tensors
from genevolve_ray.small.training.denoiser import (
    SCHEDULER,
    TEXT_TOKENS,
    LatentExamples,
    embed_prompts,
    new_denoiser,
    train_denoiser,
)
from genevolve_ray.small.training.examples import REFERENCES_PER_PROMPT, ExampleMix, RendererExamples
from genevolve_ray.small.training.hashes import array_hash, encoder_hash, text_hash
from genevolve_ray.small.training.loops import TrainingProgress, TrainLoopConfig

if TYPE_CHECKING:
    import torch

_PARTS = ("vae", "unet")
_ENCODED_AT_ONCE = 1024
_SHORT = 16
"""Digits of a hash in the name of a file."""


class RendererTraining(Config):
    """Configure the training of the renderer."""

    prompts: int = Field(default=16384, ge=1)
    """Prompts to learn from; each serves three examples with different references."""
    pictures: int = Field(default=8000, ge=1)
    """Scenes from which the autoencoder learns, besides all pictures of the library."""
    seed: int = 0
    """Seed of the examples."""
    autoencoder: TrainLoopConfig = TrainLoopConfig(steps=2400, batch=16, rate=2e-3)
    """The training between pixels and latents."""
    denoiser: TrainLoopConfig = TrainLoopConfig(steps=5000, batch=32, rate=1e-3, warmup=200, average=0.998)
    """The training of the diffusion model."""
    mix: ExampleMix = ExampleMix()
    """How often the examples of the diffusion model have what."""
    caption_weight: float = Field(default=1.0, gt=0)
    """Weight of the diffusion model's error on the band of a caption, beside 1 everywhere else."""


def train_renderer(
    library: PictureLibrary,
    embedder: Path,
    work: Path,
    config: RendererTraining,
    progress: TrainingProgress,
    start_from: Path | None = None,
) -> Path:
    """Train the autoencoder and the denoiser, and return the folder of their weights.

    With `start_from` the denoiser goes on from the weights of an earlier training, with the examples of `config`, and the
    autoencoder stays as it is there: the latents of another one would be strange to the denoiser.

    Everything is kept in `work`, so that a second call continues where a first one stopped. What is kept is marked by hashes
    of the pictures, prompts and weights that it was made from, and used for no others.

    Args:
        library: The pictures.
        embedder: A folder of MiniLM in Hugging Face layout, the frozen text encoder.
        work: Checkpoints, latents, and `weights/` with `vae.safetensors` and `unet.safetensors` in float16.
        config: Sizes and settings.
        progress: Receives what is being done, how much is done and how much there is.
        start_from: A folder of weights, such as the one that ships in the package. The record of the new weights holds
            the record of these.

    Raises:
        UserFault: if `work` holds a training with other settings, pictures, prompts or weights to begin with, or if
            `start_from` holds no weights.
    """
    work.mkdir(parents=True, exist_ok=True)
    examples = RendererExamples(library, config.seed, config.mix)
    facts: dict[str, Any] = {"settings": config.model_dump(), "pictures": len(examples.reference_ids)}
    start: Mapping[str, torch.Tensor] | None = None
    if start_from is None:
        vae, source = _trained_autoencoder(examples, work, config, progress)
    else:
        vae, unet = load_renderer_parts(start_from)
        start = unet.state_dict()
        source = text_hash([file_sha256(start_from / "vae.safetensors"), array_hash(_references(examples, False))])
        facts["started_from"] = json.loads((start_from / PROVENANCE).read_text("utf-8"))
    latents = _latent_examples(examples, vae, embedder, work, config, source, progress)
    kept = work / "denoiser.checkpoint.safetensors"
    unet = train_denoiser(latents, config.denoiser, kept, progress, start=start, caption_weight=config.caption_weight)
    facts["examples"] = len(latents.pictures)
    return write_weights({"vae": vae.state_dict(), "unet": unet.state_dict()}, work / "weights", facts)


def _trained_autoencoder(
    examples: RendererExamples, work: Path, config: RendererTraining, progress: TrainingProgress
) -> tuple[Any, str]:
    """Return the autoencoder, trained on scenes and all pictures, and a hash of what it was made from."""
    references = _references(examples, mirror=False)
    scenes = _pixels(examples, range(config.pictures), "scenes", progress)
    checkpoint = work / "autoencoder.checkpoint.safetensors"
    vae = train_autoencoder(np.concatenate([scenes, references]), config.autoencoder, checkpoint, progress)
    # The file, and not the model: the whitening of its latents may differ in the last digit on another machine.
    return vae, text_hash([file_sha256(checkpoint), array_hash(scenes), array_hash(references)])


_WHAT = "autoencoder and denoiser of the renderer of the world small"


def write_weights(parts: Mapping[str, Mapping[str, torch.Tensor]], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the parts of the renderer in float16, with a record of their origin, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name in _PARTS:
        path = write_tensors({key: value.half() for key, value in parts[name].items()}, folder / f"{name}.safetensors")
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = "the denoiser trained further from the weights of started_from"
    provenance = {
        "what": f"{_WHAT}, {origin if 'started_from' in facts else 'trained from nothing'}",
        "script": "genevolve_ray/small/training/renderer.py",
        "data": "scenes composed from OpenMoji 17.0.0 (CC BY-SA 4.0, https://openmoji.org)",
        "text_encoder": "all-MiniLM-L6-v2 (Apache-2.0), frozen, not contained",
        "licence": "CC BY-SA 4.0",
        "attribution": ATTRIBUTION,
        **facts,
        "sha256": hashes,
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", "utf-8")
    return folder


def assemble_renderer(weights: Path, embedder: Path, out: Path) -> Path:
    """Write the renderer as a folder in diffusers' layout, and return it: what `DiffusersRenderer` loads.

    Args:
        weights: The folder of `train_renderer`, or the one that ships in the package.
        embedder: A folder of MiniLM in Hugging Face layout.
        out: A folder; `text_encoder`, `tokenizer`, `vae`, `unet` and `scheduler` in it are written.

    Raises:
        UserFault: if the weights are absent or are not those of their `provenance.json`.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
    from transformers import AutoTokenizer, BertModel

    vae, unet = load_renderer_parts(weights)
    tokenizer: Any = AutoTokenizer.from_pretrained(embedder, model_max_length=TEXT_TOKENS)
    encoder: Any = BertModel.from_pretrained(embedder, dtype=torch.float32)
    encoder.config.use_attention_mask = True  # The pipeline then hands the mask of the padding to the encoder.
    kind: Any = StableDiffusionInstructPix2PixPipeline
    scheduler: Any = DDIMScheduler(**SCHEDULER)  # type: ignore[no-untyped-call]
    pipeline = kind(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    (out / PROVENANCE).write_bytes((weights / PROVENANCE).read_bytes())
    write_notices(out, "renderer")
    return out


def prebuilt_renderer() -> Path:
    """Return the folder of the weights that ship in the package."""
    return Path(__file__).parent.parent / "prebuilt" / "renderer"


def load_renderer_parts(weights: Path) -> tuple[Any, Any]:
    """Return the autoencoder and the denoiser of a folder of weights, in float32.

    Raises:
        UserFault: if the weights are absent or are not those of their `provenance.json`.
    """
    from safetensors.torch import load

    try:
        hashes = json.loads((weights / PROVENANCE).read_text("utf-8"))["sha256"]
        data = {name: (weights / f"{name}.safetensors").read_bytes() for name in _PARTS}
    except (OSError, ValueError, KeyError) as error:
        raise UserFault(f"{weights}: no weights of a renderer ({error})") from error
    models: dict[str, Any] = {"vae": new_autoencoder(), "unet": new_denoiser()}
    for name, model in models.items():
        if (found := hashlib.sha256(data[name]).hexdigest()) != (kept := hashes.get(f"{name}.safetensors")):
            raise UserFault(f"{weights / f'{name}.safetensors'}: sha256 is {found}, {PROVENANCE} names {kept}")
        model.load_state_dict({key: value.float() for key, value in load(data[name]).items()})
        model.eval()
    models["vae"].register_to_config(scaling_factor=1.0)
    return models["vae"], models["unet"]


def _latent_examples(
    examples: RendererExamples,
    vae: Any,
    embedder: Path,
    work: Path,
    config: RendererTraining,
    source: str,
    progress: TrainingProgress,
) -> LatentExamples:
    """Return the examples as latents and hidden states; `source` is a hash of the autoencoder and of what pictures show."""
    number = config.prompts * REFERENCES_PER_PROMPT
    prompts = [examples(first).prompt for first in range(0, number, REFERENCES_PER_PROMPT)]
    written = text_hash([encoder_hash(embedder), str(TEXT_TOKENS), *prompts])
    mix = [] if config.mix == ExampleMix() else [config.mix.model_dump_json()]
    drawn = text_hash([source, str(config.seed), *mix, *prompts, *examples.reference_ids])
    states = _kept_texts(embedder, prompts, work / f"texts-{written[:_SHORT]}.npy", progress)
    tensors = _kept_latents(examples, vae, number, work / f"latents-{drawn[:_SHORT]}.safetensors", progress)
    return LatentExamples(
        pictures=tensors["pictures"].float(),
        references=tensors["references"],
        reference_rows=np.array([_reference_row(examples, n) for n in range(number)]),
        texts=states,
        text_rows=1 + np.arange(number) // REFERENCES_PER_PROMPT,
        empty_text=states[0],
        captioned=np.array([bool(examples(n).scene.caption) for n in range(number)]),
        made_from=text_hash([drawn, written]),
    )


def _kept_texts(
    embedder: Path, prompts: Sequence[str], path: Path, progress: TrainingProgress
) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return the hidden states of the empty prompt and of `prompts`, [1 + P, T, D], from the file that keeps them."""
    if not path.is_file():
        states = embed_prompts(embedder, ["", *prompts], lambda done, total: progress("prompts", done, total))
        _save_array(states, path)
    kept: np.ndarray[Any, np.dtype[np.float16]] = np.load(path, mmap_mode="r")
    return kept


def _kept_latents(
    examples: RendererExamples, vae: Any, number: int, path: Path, progress: TrainingProgress
) -> dict[str, torch.Tensor]:
    """Return the latents of `number` pictures and of all references, from the file that keeps them."""
    import torch

    if not path.is_file():
        parts = []
        for start in range(0, number, _ENCODED_AT_ONCE):
            numbers = range(start, min(start + _ENCODED_AT_ONCE, number))
            parts.append(encode(vae, _pixels(examples, numbers)).half())
            progress("latents", numbers.stop, number)
        plain, mirrored = (encode(vae, _references(examples, mirror)) for mirror in (False, True))
        white = encode(vae, np.full((1, 64, 64, 3), 255, np.uint8))
        write_tensors({"pictures": torch.cat(parts), "references": torch.cat([plain, mirrored, white])}, path)
    return read_tensors(path)


def _reference_row(examples: RendererExamples, number: int) -> int:
    """Return the row of an example's reference: plain pictures first, then mirrored ones, then the white canvas."""
    example, ids = examples(number), examples.reference_rows
    if example.reference is None:
        return 2 * len(ids)
    return ids[example.reference] + len(ids) * example.mirrored


def _references(examples: RendererExamples, mirror: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pictures = np.stack([np.asarray(examples.library.reference(id)) for id in examples.reference_ids])
    return pictures[:, :, ::-1] if mirror else pictures


def _pixels(
    examples: RendererExamples, numbers: range, what: str = "", progress: TrainingProgress | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows = []
    for number in numbers:
        rows.append(np.asarray(examples.picture(examples(number))))
        if progress is not None and len(rows) % 500 == 0:
            progress(what, len(rows), len(numbers))
    return np.stack(rows)


def _save_array(values: np.ndarray[Any, Any], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
