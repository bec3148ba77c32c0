"""The learning rate's schedule as a part of a run: its length is fixed when the run starts."""

from __future__ import annotations

import pytest

from genevolve_ray.config import ConfigError, load_config
from genevolve_ray.evolution.store.config import check_unchanged
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import CHANGEABLE

COSINE = "learner.schedule=cosine"


def test_the_resolved_configuration_states_the_length() -> None:
    assert load_config("atlas", [COSINE, "loop.steps=12"]).learner.schedule_steps == 12
    assert load_config("atlas", ["loop.steps=12"]).learner.schedule_steps is None
    longer = load_config("atlas", [COSINE, "loop.steps=12", "learner.schedule_steps=30"])
    assert longer.learner.schedule_steps == 30


def test_steps_without_a_rate_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner.schedule_steps=8 ends before loop.steps=12"):
        load_config("atlas", [COSINE, "loop.steps=12", "learner.schedule_steps=8"])
    with pytest.raises(ConfigError, match=r"learner.warmup_steps=12 leaves nothing of loop.steps=12"):
        load_config("atlas", [COSINE, "loop.steps=12", "learner.warmup_steps=12"])


def test_more_steps_on_resume_would_change_steps_that_are_committed() -> None:
    stored = load_config("atlas", [COSINE, "loop.steps=12"]).model_dump(mode="json")
    with pytest.raises(StoreError, match=r"learner.schedule_steps: was 12, is 20"):
        check_unchanged(stored, load_config("atlas", [COSINE, "loop.steps=20"]), CHANGEABLE, "r")


def test_a_schedule_longer_than_the_run_leaves_room_for_more_steps() -> None:
    settings = [COSINE, "learner.schedule_steps=30"]
    stored = load_config("atlas", [*settings, "loop.steps=12"]).model_dump(mode="json")
    check_unchanged(stored, load_config("atlas", [*settings, "loop.steps=20"]), CHANGEABLE, "r")
    # A run may also end before its schedule does.
    check_unchanged(stored, load_config("atlas", [*settings, "loop.steps=5"]), CHANGEABLE, "r")


def test_a_run_from_before_the_schedule_is_resumed_as_it_was() -> None:
    stored = load_config("atlas").model_dump(mode="json")
    for key in ("schedule", "schedule_steps"):
        del stored["learner"][key]
    del stored["learner"]["grpo"]["aggregation"], stored["learner"]["kl"]["form"]
    check_unchanged(stored, load_config("atlas"), CHANGEABLE, "r")
