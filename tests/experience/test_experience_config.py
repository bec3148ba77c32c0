"""Settings of experience: what cannot be meant is refused with its values, and importing them is cheap."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from genevolve_ray.experience.config import STATED_THRESHOLDS, ExperienceConfig, MemoryConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_pairs": 9, "memory": {"capacity": 8}}, "max_pairs=9, memory.capacity=8"),
        ({"memory": {"gap_weight": 0, "age_weight": 0}}, "gap_weight=0, age_weight=0"),
        ({"memory": {"threshold": 1.5}}, "less than or equal to 1"),
        ({"embedder": {"kind": "transformers"}}, "transformers.model=''"),
        ({"embedder": {"kind": "endpoint"}}, "endpoint=None"),
        ({"embedder": {"kind": "word2vec"}}, "hashing"),
        ({"embedder": {"endpoint": {"url": "localhost/v1", "model": "m"}}}, "'localhost/v1'"),
        ({"embedder": {"endpoint": {"url": "http://me:secret@host/v1", "model": "m"}}}, "token_env"),
        ({"embedder": {"kind": "hashing", "type": "my:Embedder"}}, "kind='hashing' and embedder.type='my:Embedder'"),
        ({"embedder": {"kind": "plugin"}}, "kind='plugin' and embedder.type=''"),
        ({"embedder": {"config": {"size": 3}}}, "give a type"),
        ({"embedder": {"type": "my:Embedder", "runtime_env": {"pip": ["x"]}}}, "environment is summariser.runtime_env"),
        ({"key": {"fields": []}}, "at least 1 item"),
        ({"min_gap": 2}, "less than or equal to 1"),
        ({"recall": "stuck_first"}, "recall='stuck_first' orders requests under a bound"),
        ({"merge": {"nearest": 1}}, "greater than or equal to 2"),
        ({"memory": {"threshold": "high"}}, "'auto'"),
        (
            {"memory": {"threshold": "auto"}, "embedder": {"type": "my:Embedder"}},
            "no threshold is stated for embedder.kind='plugin'",
        ),
        ({"capacity": 500}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("[", r"\[")):
        ExperienceConfig.model_validate(values)


def test_a_type_makes_the_embedder_a_plug_in_and_is_read_again_as_it_was_written() -> None:
    config = ExperienceConfig.model_validate({"embedder": {"type": "my:Embedder", "config": {"size": 3}}})
    assert (config.embedder.kind, config.embedder.type) == ("plugin", "my:Embedder")
    assert ExperienceConfig.model_validate(config.model_dump(mode="json")) == config


def test_credentials_are_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        ExperienceConfig.model_validate({"embedder": {"endpoint": {"url": "http://me:hush@host/v1", "model": "m"}}})
    assert "hush" not in caught.value.errors()[0]["msg"]


def test_the_defaults_are_the_papers() -> None:
    config = ExperienceConfig()
    assert (config.enabled, config.min_gap, config.max_pairs) == (False, 0.20, 8)
    assert (config.memory.capacity, config.memory.threshold) == (500, 0.84)


@pytest.mark.parametrize(
    ("embedder", "threshold"),
    [
        ({}, STATED_THRESHOLDS["hashing"]),
        ({"kind": "transformers", "transformers": {"model": "m"}}, 0.84),
        (
            {"kind": "transformers", "transformers": {"model": "m", "pooling": "mean"}},
            STATED_THRESHOLDS["transformers:mean"],
        ),
    ],
)
def test_the_threshold_may_be_that_of_the_embedder(embedder: dict[str, Any], threshold: float) -> None:
    config = ExperienceConfig.model_validate({"memory": {"threshold": "auto"}, "embedder": embedder})
    assert config.memory.threshold == threshold, "the resolved settings have the number"
    assert ExperienceConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_memory_by_itself_needs_a_number() -> None:
    with pytest.raises(ValueError, match="a memory by itself needs a number"):
        _ = MemoryConfig(threshold="auto").least_cosine


def test_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, genevolve_ray.experience.config; "
        "print([n for n in ('torch', 'httpx', 'transformers') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr
