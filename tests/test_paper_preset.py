"""The preset `paper`: every value names its source, and the method is the paper's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from genevolve_ray.config import load_config
from genevolve_ray.experience.config import Eviction
from genevolve_ray.judges.endpoint_summariser import EndpointSummariserConfig
from genevolve_ray.learning.config import KlForm, LearningRateSchedule, LossAggregation
from genevolve_ray.learning.ved_config import TokenAggregation, VedForm
from genevolve_ray.records.experience import BundleFormatName
from genevolve_ray.records.strict_text import key_lines, load_yaml

TEXT = (resources.files("genevolve_ray") / "configs" / "paper.yaml").read_text(encoding="utf-8")
MARK = re.compile(r" # (published|notes|unknown)(?::? |$)")


def leaves(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value; a list and an empty mapping are values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


def marks(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the source of each value by its key, and the keys without one; two values on a line share none."""
    lines, where, paths = text.splitlines(), key_lines(text), list(leaves(load_yaml(text, "preset")))
    places = [where[path] for path in paths]
    found: dict[str, str] = {}
    for path, line in zip(paths, places, strict=True):
        mark = MARK.search(lines[line - 1])
        if mark and places.count(line) == 1:
            found[".".join(path)] = mark[1]
    return found, [name for path in paths if (name := ".".join(path)) not in found]


def test_every_value_names_its_source() -> None:
    found, missing = marks(TEXT)
    assert missing == []
    assert set(found.values()) == {"published", "notes", "unknown"}


@pytest.mark.parametrize(
    "text",
    ["a: 1", "a: 1 # often", "a: {b: 1, c: 2} # notes", "# notes\na: 1", "a: {} # about notes: x", "a: [1] # note"],
)
def test_a_value_without_its_own_mark_is_found(text: str) -> None:
    assert marks(text)[1]


def test_what_is_not_known_is_not_passed_off_as_known() -> None:
    found, _ = marks(TEXT)
    unknown = (
        "learner.ved.token_cap",
        "judge.config.sufficiency_form",
        "learner.weight_decay",
        "renderer.config.width",
    )
    assert {found[key] for key in unknown} == {"unknown"}
    assert found["reward.formula"] == "published" and found["learner.ved.aggregation"] == "notes"


def test_it_resolves_to_the_method() -> None:
    config = load_config("paper")
    learner, ved = config.learner, config.learner.ved
    assert config.experience.enabled
    assert (ved.coefficient, ved.form, ved.aggregation) == (2.0, VedForm.PAPER, TokenAggregation.BATCH_TOKEN_MEAN)
    assert (ved.rho_cap, ved.gap_clip, ved.gate_fraction, ved.token_cap) == (2.0, 10.0, 0.1, None)
    assert (learner.kl.coefficient, learner.kl.form) == (1e-3, KlForm.LOW_VAR_KL)
    assert learner.grpo.aggregation is LossAggregation.SEQ_MEAN_TOKEN_SUM
    assert (learner.lr, learner.schedule, learner.warmup_steps) == (1e-6, LearningRateSchedule.COSINE, 0)
    assert (config.loop.steps, learner.schedule_steps) == (200, 200)
    assert learner.rate(0) == 1e-6 and learner.rate(100) == pytest.approx(5e-7)


def test_its_experience_is_the_papers() -> None:
    config = load_config("paper")
    assert config.experience.memory.eviction is Eviction.FIFO_GAP
    embedder = config.experience.embedder.transformers
    assert (embedder.device, embedder.max_tokens, embedder.pooling) == ("cpu", 512, "last")
    summariser = EndpointSummariserConfig.model_validate(config.summariser.config)
    assert summariser.format is BundleFormatName.DECISION_GUIDE
    assert (summariser.max_tokens, summariser.timeout_s) == (8192, 90)
    assert summariser.rate_per_s is not None and 60 * summariser.rate_per_s == pytest.approx(80, abs=0.01)
    assert summariser.model == config.judge.config["kscore"]["model"] == "gemini-3.1-pro-preview"
