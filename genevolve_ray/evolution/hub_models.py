"""The models of a run by hub id: each is pinned to a commit once, by the driver, and recorded so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from genevolve_ray.models.hub import is_hub_id, pinned
from genevolve_ray.records.differences import value_at

ConfigT = TypeVar("ConfigT", bound=BaseModel)

MODEL_KEYS = ("policy.model", "experience.embedder.transformers.model", "judge.config.model.model")
"""Settings that name a model folder or a hub id. Renderers read hub ids with a `revision` of their own."""


def pin_models(config: ConfigT, recorded: Mapping[str, Any]) -> ConfigT:
    """Return a configuration whose hub ids name commits: those of the recorded configuration, else the current ones.

    Args:
        config: the configuration of a run.
        recorded: the resolved configuration with which the run began; empty for a new one.

    Raises:
        UserFault: naming the key of a model that cannot be found.
    """
    values = config.model_dump()
    for key in MODEL_KEYS:
        text = value_at(values, key)
        if not isinstance(text, str) or not is_hub_id(text) or "FILL_IN" in text:
            continue
        before = value_at(recorded, key)
        same = isinstance(before, str) and "@" not in text and before.startswith(f"{text}@")
        config = _with(config, key.split("."), before if same else pinned(text, key))
    return config


def _with(node: Any, path: list[str], value: Any) -> Any:
    """Return a copy of settings with another value at a path."""
    if not path:
        return value
    name, *rest = path
    if isinstance(node, BaseModel):
        return node.model_copy(update={name: _with(getattr(node, name), rest, value)})
    return {**node, name: _with(node[name], rest, value)}
