"""The renderer's autoencoder: an AutoencoderKL between 64 x 64 pixels and 16 x 16 x 4 latents.

Shape legend: B pictures of a batch, H x W pixels, 3 colors in [-1, 1]; C = 4 channels of latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.small.training.hashes import array_hash
from genevolve_ray.small.training.loops import TrainingProgress, TrainLoopConfig, train_loop

if TYPE_CHECKING:
    import torch

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

AUTOENCODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
"""The settings of diffusers' AutoencoderKL: 648,375 parameters."""
_EDGES = 0.5
_KL = 2e-4
"""Weights of the edges and of the divergence from a normal distribution, beside the pixels' 1."""


def new_autoencoder(seed: int = 0) -> Any:
    """Return an untrained autoencoder."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoencoderKL(**AUTOENCODER)  # type: ignore[no-untyped-call]
    return model


def train_autoencoder(pixels: Pixels, config: TrainLoopConfig, checkpoint: Path, progress: TrainingProgress) -> Any:
    """Train an autoencoder on pictures, uint8[N, H, W, 3], and return it, with its scaling factor set.

    The loss is the absolute error of pixels and of their differences to their neighbors, which keeps outlines sharp,
    with a light divergence from the normal distribution.

    Raises:
        UserFault: if the checkpoint belongs to other settings or pictures.
    """
    import torch

    model: Any = new_autoencoder(config.seed)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pixels), (config.batch,), generator=generator)
        pixels_BCHW = as_tensor(pixels[rows.numpy()])
        posterior = model.encode(pixels_BCHW).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        drawn_BCHW = model.decode(posterior.mean + posterior.std * noise).sample.float()
        error = (drawn_BCHW - pixels_BCHW).abs().mean()
        edges = sum((_slope(drawn_BCHW, axis) - _slope(pixels_BCHW, axis)).abs().mean() for axis in (2, 3))
        loss: torch.Tensor = error + _EDGES * edges + _KL * posterior.kl().mean() / posterior.mean[0].numel()
        return loss

    train_loop("autoencoder", model, loss_of, config, checkpoint, progress, {"pictures": array_hash(pixels)})
    whiten(model, encode(model, pixels[:: max(1, len(pixels) // 512)]))
    return model


def whiten(model: Any, latents: torch.Tensor) -> None:
    """Change a model so that its latents have mean 0 and deviation 1 in each channel, and its pictures stay the same.

    The denoiser reads latents of references unscaled. The change of scale goes into the two 1 x 1 convolutions around
    the latents.

    Args:
        model: Changed in place.
        latents: A sample of its latents, [N, C, H, W].
    """
    import torch

    mean_C, deviation_C = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    width = len(mean_C)
    into, out_of = model.quant_conv, model.post_quant_conv
    with torch.no_grad():
        into.bias[:width] -= mean_C
        into.bias[:width] /= deviation_C
        into.weight[:width] /= deviation_C[:, None, None, None]
        into.bias[width:] -= 2 * deviation_C.log()  # The logarithm of the variance.
        out_of.bias += out_of.weight[:, :, 0, 0] @ mean_C
        out_of.weight *= deviation_C[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Return pictures, uint8[B, H, W, 3], as float32[B, 3, H, W] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def encode(model: Any, pixels: Pixels, batch: int = 64) -> torch.Tensor:
    """Return the means of the latents of pictures, float32[N, C, H / 4, W / 4], not scaled."""
    import torch

    with torch.inference_mode():
        parts = [model.encode(as_tensor(pixels[i : i + batch])).latent_dist.mean for i in range(0, len(pixels), batch)]
    return torch.cat(parts).clone()


def decode(model: Any, latents: torch.Tensor) -> Pixels:
    """Return the pictures of latents, which are not scaled, as uint8[N, H, W, 3]."""
    import torch

    with torch.inference_mode():
        values: torch.Tensor = (model.decode(latents).sample * 127.5 + 127.5).round().clamp(0, 255)
    pixels: Pixels = values.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return pixels


def _slope(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.diff(dim=axis)
