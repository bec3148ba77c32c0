"""Stand for `liger_kernel.transformers.monkey_patch`: record what would be replaced."""

from __future__ import annotations

from typing import Any

MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": None}
replaced: list[tuple[str, dict[str, bool]]] = []


def _apply_liger_kernel_to_instance(model: Any, **parts: bool) -> None:
    """Record the type of the model and the switches."""
    replaced.append((model.config.model_type, parts))
