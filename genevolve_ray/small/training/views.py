"""Views of pictures as a small diffusion renderer may return them: moved, blurred, noisy, in slightly other colors.

Shape legend: B pictures, C = 3 channels, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

View = Callable[[Tensor], Tensor]
"""Returns other pictures [B, 3, S, S] in [0, 1] for such, as the reconstructions of an autoencoder."""
_MOVE, _SCALE = 0.06, 0.08
_BLURS = (0.0, 0.5, 0.8, 1.1, 1.5)
"""Standard deviations of a Gaussian blur, pixels."""
_SIDES = (64, 64, 48, 32, 24)
"""Sides to which pictures are scaled down before they are scaled up again."""


def autoencoder_view(renderer: Path) -> View:
    """Return what the autoencoder of a renderer makes of pictures.

    Args:
        renderer: a folder in diffusers' layout.
    """
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    autoencoder = kind.from_pretrained(renderer, subfolder="vae", local_files_only=True).eval().requires_grad_(False)

    def view(pictures_B_3_S_S: Tensor) -> Tensor:
        with torch.no_grad():
            latents = autoencoder.encode(pictures_B_3_S_S * 2 - 1).latent_dist.mean
            drawn: Tensor = autoencoder.decode(latents).sample.float()
        return (drawn / 2 + 0.5).clamp(0, 1)

    return view


def seen(pictures_B_3_S_S: Tensor, generator: torch.Generator, render: View | None = None) -> Tensor:
    """Return one random view of each picture.

    Args:
        pictures_B_3_S_S: in [0, 1].
        generator: chooses the views.
        render: what the pictures of one of eight batches go through first, such as a renderer's own autoencoder.
    """
    found = _moved(pictures_B_3_S_S, generator)
    if render is not None and _pick(8, generator) == 0:
        found = render(found)
    found = _blurred(found, _BLURS[_pick(len(_BLURS), generator)])
    found = _coarse(found, _SIDES[_pick(len(_SIDES), generator)])
    found = _colored(found, generator)
    strength_B_1_1_1 = 0.06 * torch.rand(len(found), 1, 1, 1, generator=generator)
    return (found + strength_B_1_1_1 * torch.randn(found.shape, generator=generator)).clamp(0, 1)


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures moved and scaled a little; what comes into view repeats the border."""
    uniform_B_3 = torch.rand(len(pictures), 3, generator=generator) * 2 - 1
    theta_B_2_3 = torch.zeros(len(pictures), 2, 3)
    theta_B_2_3[:, 0, 0] = theta_B_2_3[:, 1, 1] = 1 + _SCALE * uniform_B_3[:, 0]
    theta_B_2_3[:, :, 2] = 2 * _MOVE * uniform_B_3[:, 1:]
    grid = functional.affine_grid(theta_B_2_3, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    if not sigma:
        return pictures
    reach = round(3 * sigma)
    places = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel_3_1_1_K = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = functional.pad(pictures, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel_3_1_1_K, groups=3)
    return functional.conv2d(across, kernel_3_1_1_K.transpose(2, 3), groups=3)


def _coarse(pictures: Tensor, side: int) -> Tensor:
    if side >= pictures.shape[-1]:
        return pictures
    small = functional.interpolate(pictures, side, mode="bilinear", antialias=True)
    return functional.interpolate(small, pictures.shape[-1], mode="bicubic").clamp(0, 1)


def _colored(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures with other brightness, contrast and saturation, each by at most a sixth."""
    factors_3_B_1_1_1 = 1 + (torch.rand(3, len(pictures), 1, 1, 1, generator=generator) * 2 - 1) / 6
    bright, contrast, saturation = factors_3_B_1_1_1.unbind()
    gray = pictures.mean(1, keepdim=True)
    found = gray + (pictures - gray) * saturation
    mean = found.mean((1, 2, 3), keepdim=True)
    return (mean + (found - mean) * contrast) * bright
