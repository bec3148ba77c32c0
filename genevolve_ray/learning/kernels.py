"""Faster kernels for the decoder layers of a policy: compiled by torch, or Liger's."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from genevolve_ray.learning.policy import decoder_layers

LIGER = "liger_kernel.transformers.monkey_patch"
_OFF = "TORCHDYNAMO_DISABLE"


def compile_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Let each decoder layer run compiled code, for any number of tokens; call it before the layers are sharded.

    Equal layers share their code. Attention over trees stays as it is, between two compiled parts of a layer.

    Raises:
        ValueError: for a policy on a CPU without a C++ compiler.
    """
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError("learner.compile=true on a CPU needs a C++ compiler: install g++, or set CXX")
    with _switched_on():
        for layer in decoder_layers(model):
            layer.forward = torch.compile(layer.forward, dynamic=True)


@contextmanager
def _switched_on() -> Iterator[None]:
    """Hide the variable that switches compilation off for the process of an engine beside the learner."""
    off = os.environ.pop(_OFF, None)
    try:
        yield
    finally:
        if off is not None:
            os.environ[_OFF] = off


def use_liger(model: PreTrainedModel, device: torch.device) -> None:
    """Replace RMSNorm, RoPE and SwiGLU of a policy by Liger's Triton kernels, where Liger has them for its type.

    The loss stays the learner's own: it never holds the logits of all tokens.

    Raises:
        ValueError: without a GPU, without the package, or for a type of model that it does not know.
    """
    if device.type != "cuda":
        raise ValueError(f"learner.kernels=liger needs learner.device=cuda, got {device.type}")
    try:
        liger: Any = importlib.import_module(LIGER)
    except ImportError as error:
        raise ValueError(f"learner.kernels=liger needs the package liger-kernel: {error}") from error
    kind = model.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"learner.kernels=liger: liger-kernel has no kernels for models of type {kind!r}")
    parts = {"rope": True, "rms_norm": True, "swiglu": True}
    liger._apply_liger_kernel_to_instance(model, **parts, cross_entropy=False, fused_linear_cross_entropy=False)
