"""A mistyped key is answered by the key that was probably meant."""

from __future__ import annotations

import pytest

from genevolve_ray.config import RunConfig
from genevolve_ray.records.suggestions import meant, meant_key


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("loop.group_sise", "loop.group_size"),
        ("lop", "loop"),
        ("lop.steps", "loop.steps"),
        ("group_size", "loop.group_size"),
        ("learner.ved.coeficient", "learner.ved.coefficient"),
        ("learner.ved_coefficient", "learner.ved.coefficient"),
        ("learner.lora.rnk", "learner.lora.rank"),
        ("cluster.renderer.timout", "cluster.renderer.timeout"),
        ("experience.embedder.transformers.modl", "experience.embedder.transformers.model"),
        ("tools.typ", "tools.type"),
    ],
)
def test_the_nearest_key_of_the_tree_is_named(key: str, near: str) -> None:
    assert meant_key(key, RunConfig) == f", did you mean {near}?"


@pytest.mark.parametrize("key", ["zzz", "loop.zzz", "x.y.z"])
def test_a_key_that_resembles_none_gets_no_suggestion(key: str) -> None:
    assert meant_key(key, RunConfig) == ""


def test_names_are_compared_as_a_whole() -> None:
    assert meant("atlass", ["atlas", "paper"]) == ", did you mean atlas?"
    assert meant("qwen", ["atlas", "paper"]) == ""
