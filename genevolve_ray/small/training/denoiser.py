"""The renderer's denoiser: a UNet2DConditionModel as InstructPix2Pix uses it, on the latents of the autoencoder.

Shape legend: B examples of a batch, C = 4 channels, H x W = 16 x 16 latents, T = 64 tokens of width D = 384.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.small.scene import CAPTION_BAND
from genevolve_ray.small.training.hashes import array_hash, text_hash
from genevolve_ray.small.training.loops import TrainingProgress, TrainLoopConfig, train_loop

if TYPE_CHECKING:
    import torch

DENOISER = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 96],
    "layers_per_block": 1,
    "cross_attention_dim": 384,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
"""The settings of diffusers' UNet2DConditionModel; `attention_head_dim` is its number of heads."""
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
}
"""The settings of diffusers' DDIMScheduler. Sampling starts from noise alone, so that plain backgrounds can have any
brightness (Lin et al. 2024, arXiv 2305.08891), which needs the velocity as the target."""
TEXT_TOKENS = 64
"""Tokens that the text encoder reads; the rest of a longer prompt is cut."""
_DROPPED = 0.05
"""How often an example is without its text, without its reference, and without both: what the two guidances need
(Brooks et al. 2023, arXiv 2211.09800)."""


@dataclass(frozen=True)
class LatentExamples:
    """Hold examples as the denoiser reads them; several rows may share a text or a reference."""

    pictures: torch.Tensor
    """Latents of the pictures to draw, [N, C, H, W], scaled to unit variance."""
    references: torch.Tensor
    """Latents of the references, [R, C, H, W], not scaled, as the pipeline passes them."""
    reference_rows: np.ndarray[Any, np.dtype[np.int64]]
    """The reference of each example, [N]."""
    texts: np.ndarray[Any, np.dtype[np.float16]]
    """Hidden states of the prompts, [P, T, D]."""
    text_rows: np.ndarray[Any, np.dtype[np.int64]]
    """The prompt of each example, [N]."""
    empty_text: np.ndarray[Any, np.dtype[np.float16]]
    """Hidden states of the empty prompt, [T, D]."""
    captioned: np.ndarray[Any, np.dtype[np.bool_]]
    """Whether the picture of each example has a caption, [N]."""
    made_from: str
    """A hash of what all of it was made from, which marks the checkpoints of a training."""


def new_denoiser(seed: int = 0) -> Any:
    """Return an untrained denoiser with attention that is quick on CPUs, also backwards."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = UNet2DConditionModel(**DENOISER)  # type: ignore[no-untyped-call]
    model.set_attn_processor(AttnProcessor())
    return model


def train_denoiser(
    examples: LatentExamples,
    config: TrainLoopConfig,
    checkpoint: Path,
    progress: TrainingProgress,
    *,
    start: Mapping[str, torch.Tensor] | None = None,
    caption_weight: float = 1.0,
) -> Any:
    """Train a denoiser to predict the velocity of noisy latents, and return it with its averaged weights.

    Args:
        examples: What to learn from.
        config: The loop's settings.
        checkpoint: The file to go on from and to write to.
        progress: Called after every step.
        start: Weights to begin with, None for random ones. The optimizer begins anew, and so does the rate.
        caption_weight: Weight of the squared error on the band of a caption, beside 1 everywhere else.

    Raises:
        UserFault: if the checkpoint belongs to other settings, examples or weights to begin with.
    """
    import torch
    from diffusers import DDIMScheduler

    model: Any = new_denoiser(config.seed)
    settings: dict[str, Any] = {"examples": examples.made_from}
    if caption_weight != 1:
        settings["caption_weight"] = caption_weight
    if start is not None:
        model.load_state_dict(start)
        settings["start"] = text_hash(f"{name} {array_hash(start[name].numpy())}" for name in sorted(start))
    scheduler: Any = DDIMScheduler(**SCHEDULER)  # type: ignore[no-untyped-call]

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(examples.pictures), (config.batch,), generator=generator)
        clean_BCHW, reference_BCHW, text_BTD = batch_of(examples, rows, generator)
        noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
        times_B = torch.randint(scheduler.config.num_train_timesteps, (config.batch,), generator=generator)
        noisy_BCHW = scheduler.add_noise(clean_BCHW, noise_BCHW, times_B)
        target_BCHW = scheduler.get_velocity(clean_BCHW, noise_BCHW, times_B)
        read_BCHW = torch.cat([noisy_BCHW, reference_BCHW], dim=1)
        predicted_BCHW = model(read_BCHW, times_B, encoder_hidden_states=text_BTD).sample.float()
        weight_B1HW = caption_weights(examples.captioned[rows.numpy()], caption_weight, clean_BCHW.shape[-2:])
        loss: torch.Tensor = (weight_B1HW * (predicted_BCHW - target_BCHW).square()).mean() / weight_B1HW.mean()
        return loss

    train_loop("denoiser", model, loss_of, config, checkpoint, progress, settings)
    return model


def batch_of(
    examples: LatentExamples, rows: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures [B, C, H, W], references [B, C, H, W] and texts [B, T, D] of some rows, some of them dropped."""
    import torch

    picked, draws = rows.numpy(), torch.rand(len(rows), generator=generator).numpy()
    references = examples.references[examples.reference_rows[picked]].clone()
    texts = examples.texts[examples.text_rows[picked]].astype(np.float32)
    texts[draws < 2 * _DROPPED] = examples.empty_text
    references[(draws >= _DROPPED) & (draws < 3 * _DROPPED)] = 0
    return examples.pictures[rows], references, torch.from_numpy(texts)


def caption_weights(captioned: np.ndarray[Any, np.dtype[np.bool_]], weight: float, size: Sequence[int]) -> torch.Tensor:
    """Return the weight of the error at each place, [B, 1, H, W]: `weight` where the band of a caption is."""
    import torch

    height, width = size
    weights_B1HW = torch.ones(len(captioned), 1, height, width)
    weights_B1HW[torch.from_numpy(captioned), :, round((1 - CAPTION_BAND) * height) :] = weight
    return weights_B1HW


def embed_prompts(
    embedder: Path, prompts: Sequence[str], progress: Callable[[int, int], None] | None = None, batch: int = 64
) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return the last hidden states of prompts, [P, T, D], as the pipeline computes them: padded, with a mask.

    The encoder runs in bfloat16, which is quicker and within half a percent.
    """
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer: Any = AutoTokenizer.from_pretrained(embedder)
    encoder: Any = BertModel.from_pretrained(embedder, add_pooling_layer=False, dtype=torch.bfloat16).eval()
    states = np.zeros((len(prompts), TEXT_TOKENS, encoder.config.hidden_size), np.float16)
    for start in range(0, len(prompts), batch):
        tokens = tokenizer(
            list(prompts[start : start + batch]),
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        states[start : start + batch] = hidden.float().numpy()
        if progress is not None:
            progress(min(start + batch, len(prompts)), len(prompts))
    return states
