"""Facts of a model's `config.json` that engine and learner must agree on: positions, windows, output head, experts.

All functions take the parsed file. Values may stand at the top or, in a vision-language model, in `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Parsed = Mapping[str, Any]
DECODED_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that the reference engine decodes."""
_DENSE_LAYERS = frozenset({"dense", "sparse"})
_CHANGED_LOGITS = {"final_logit_softcapping": (None, 0), "logits_scaling": (None, 1), "logit_scale": (None, 1)}
"""Settings that change logits after the output projection, with the values that change nothing."""
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def text_part(config: Parsed) -> Parsed:
    """Return the part that describes the text decoder."""
    part = config.get("text_config") or config
    return part if isinstance(part, Mapping) else config


def rope_settings(config: Parsed) -> list[Parsed]:
    """Return the settings of rotary positions: one for the model, or one for each kind of layer; empty for none."""
    text = text_part(config)
    found = text.get("rope_parameters") or text.get("rope_scaling") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return []
    inner = [value for value in found.values() if isinstance(value, Mapping)]
    return inner or [found]


def rope_type(settings: Parsed) -> str:
    """Return the kind of scaling of rotary positions."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def context_length(config: Parsed) -> int | None:
    """Return the most positions that engine and learner compute alike, None where the file does not state them.

    A factor extends `max_position_embeddings` where that number does not include it yet. Scalings whose angles depend
    on the length of a sequence extend nothing: a sequence would change while it grows.
    """
    text = text_part(config)
    stated = text.get("max_position_embeddings")
    if stated is None:
        return None
    limit = int(stated)
    rope = rope_settings(config)
    if len(rope) != 1:  # Without scaling, or with one for each kind of layer, which the number already includes.
        return limit
    settings, kind = rope[0], rope_type(rope[0])
    original = settings.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
    factor = float(settings.get("factor") or 1.0)
    if kind == "yarn":
        return max(limit, int(int(original or limit) * factor))
    if kind == "linear" and "gemma3" not in str(text.get("model_type")):
        return int(limit * factor)
    if kind in ("longrope", "su"):
        return min(limit, int(original or limit))
    return limit


def changing_rope(config: Parsed) -> str | None:
    """Return the scaling of rotary positions whose angles depend on the length of a sequence, None for others."""
    return next((kind for kind in map(rope_type, rope_settings(config)) if kind in ("dynamic", "longrope", "su")), None)


def strange_layers(config: Parsed) -> list[str]:
    """Return the kinds of layers that the reference engine cannot decode."""
    kinds = text_part(config).get("layer_types") or ()
    return sorted({str(kind) for kind in kinds} - DECODED_LAYERS - _DENSE_LAYERS)


def changed_logits(config: Parsed) -> str | None:
    """Return the setting by which logits are more than hidden states times the output projection, None without one."""
    text = text_part(config)
    found = (f"{key}={text[key]}" for key, neutral in _CHANGED_LOGITS.items() if text.get(key) not in neutral)
    return next(found, None)


def experts(config: Parsed) -> int:
    """Return the number of experts of a layer, 0 for a dense model."""
    text = text_part(config)
    return max((int(text.get(key) or 0) for key in _EXPERT_KEYS), default=0)
