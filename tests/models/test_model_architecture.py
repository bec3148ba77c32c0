"""What a model's `config.json` says of positions, layers, logits and experts, wherever it says it."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.models import architecture

YARN = {"rope_type": "yarn", "factor": 3.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "yarn", "factor": 3.0}}, 6144),
        ({"max_position_embeddings": 2048, "rope_parameters": YARN}, 6144),
        ({"max_position_embeddings": 6144, "rope_parameters": YARN | {"original_max_position_embeddings": 2048}}, 6144),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2048),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "mrope", "mrope_section": [6, 5, 5]}}, 2048),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 2048,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            2048,
        ),
        (
            {
                "max_position_embeddings": 2048,
                "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}},
            },
            2048,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_the_positions_of_a_model(config: dict[str, Any], length: int | None, nested: bool) -> None:
    whole = {"vision_config": {}, "text_config": config} if nested and config else config
    assert architecture.context_length(whole) == length


def test_a_factor_at_the_top_counts_for_the_text() -> None:
    config = {"text_config": {"max_position_embeddings": 2048}, "rope_scaling": YARN}
    assert architecture.context_length(config) == 6144


@pytest.mark.parametrize(("kind", "changes"), [("dynamic", True), ("longrope", True), ("su", True), ("yarn", False)])
def test_some_factors_follow_the_length_of_a_sequence(kind: str, changes: bool) -> None:
    config = {"rope_scaling": {"type": kind, "factor": 2.0}}
    assert architecture.changing_rope(config) == (kind if changes else None)


def test_layers_that_are_not_attention_are_strange() -> None:
    kinds = ["full_attention", "linear_attention", "sliding_attention", "chunked_attention"]
    assert architecture.strange_layers({"layer_types": kinds}) == ["chunked_attention", "linear_attention"]
    assert architecture.strange_layers({}) == []


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"final_logit_softcapping": None}, None),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"text_config": {"logit_scale": 0.25}}, "logit_scale=0.25"),
        ({"logits_scaling": 1}, None),
    ],
)
def test_changed_logits_are_named(config: dict[str, Any], found: str | None) -> None:
    assert architecture.changed_logits(config) == found
