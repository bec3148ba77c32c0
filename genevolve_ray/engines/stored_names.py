"""Weights under the names that a model's files have: transformers renames and fuses some while it loads them.

A learner publishes the tensors of its modules. vLLM knows the names of the files, and of modules only some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from genevolve_ray.engines.checks import read_model_config, sees


def as_stored(tensors: Iterable[tuple[str, Tensor]], base: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model's modules as the files of its folder hold them.

    Without conversions, which is the rule, they pass one at a time. Otherwise all are held at once, because one tensor of
    a module may become many of a file.

    Args:
        tensors: names and tensors of the whole model.
        base: the model folder.
    """
    model = _skeleton(str(base))
    if model is None:
        yield from tensors
    else:
        yield from revert_weight_conversion(model, dict(tensors)).items()


@lru_cache(maxsize=1)
def _skeleton(base: str) -> Any | None:
    """Return the model without memory for weights, None where transformers converts nothing."""
    kind: Any = AutoModelForImageTextToText if sees(read_model_config(base)) else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
    return model if get_model_conversion_mapping(model, add_legacy=False) else None
