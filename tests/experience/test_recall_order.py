"""Who is taught under a bound, what a merged lesson consists of, and which uses are recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from experience_helpers import bundle, unit
from numpy.typing import NDArray

from genevolve_ray.experience.config import ExperienceConfig, MemoryConfig, MergeConfig, RecallOrder
from genevolve_ray.experience.memory import ExperienceMemory, Hit
from genevolve_ray.experience.recall import RecallRule, recall
from genevolve_ray.records.request import EvalType, Request

STEP = 3
ANGLES = {"own": 0.0, "near": 0.1, "far": 0.5, "none": 2.5}


class Angles:
    """Embeds a prompt as the direction that it names."""

    identity = "angles"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([unit(np.cos(ANGLES[t]), np.sin(ANGLES[t])) for t in texts])


def request(name: str) -> Request:
    return Request(id=name, prompt=name, eval_type=EvalType.QUALITY)


def memory(*names: str) -> ExperienceMemory:
    """Bundles of the requests `own`, of this step, and `old-...` of an earlier one, all in one direction."""
    made = ExperienceMemory(MemoryConfig(threshold=0.8))
    for name in names:
        made.insert(bundle(name, step=STEP if name == "own" else 1), unit(1, 0))
    return made


async def recalled(found: ExperienceMemory, rule: RecallRule, stuck: Sequence[str] = ()) -> dict[str, Hit]:
    requests = [request(name) for name in ("far", "own", "none", "near")]
    hits = await recall(found, Angles(), requests, STEP, rule=rule, stuck=stuck)
    return {r.id: hit for r, hit in zip(requests, hits, strict=True) if hit is not None}


async def test_under_a_bound_the_nearest_are_taught() -> None:
    found = memory("old-a", "own")
    assert list(await recalled(found, RecallRule(most=2))) == ["own", "near"]
    assert [use.request_id for entry in found.entries for use in entry.uses] == ["own", "near"]


async def test_stuck_requests_come_first() -> None:
    rule = RecallRule(RecallOrder.STUCK_FIRST, most=2)
    assert list(await recalled(memory("old-a", "own"), rule, stuck=["far", "none"])) == ["far", "own"]
    assert list(await recalled(memory("old-a", "own"), rule, stuck=["far", "near"])) == ["far", "near"]


async def test_a_request_that_may_be_told_nothing_neither_uses_a_bundle_nor_takes_a_place() -> None:
    found, requests = memory("old-a", "own"), [request(name) for name in ("far", "own", "none", "near")]
    hits = await recall(
        found,
        Angles(),
        requests,
        STEP,
        rule=RecallRule(most=2),
        clean=lambda hit, asked: None if asked.id == "own" else hit,
    )
    assert [hit is not None for hit in hits] == [True, False, False, True]
    assert sorted(use.request_id for entry in found.entries for use in entry.uses) == ["far", "near"]


async def test_without_a_bound_the_order_changes_nothing() -> None:
    taught = await recalled(memory("old-a", "own"), RecallRule(RecallOrder.STUCK_FIRST), stuck=["far"])
    assert taught == await recalled(memory("old-a", "own"), RecallRule())


async def test_a_merged_lesson_names_its_bundles_and_each_records_the_use() -> None:
    found = memory("old-a", "old-b", "old-c")
    hits = await recalled(found, RecallRule(merge=MergeConfig(nearest=2)))
    assert hits["near"].merged == (2, 1), "the youngest of equals first"
    assert (hits["near"].number, hits["near"].own, hits["near"].experience.request_id) == (2, False, "")
    assert [len(entry.uses) for entry in found.entries] == [0, 3, 3]


async def test_an_own_bundle_is_recalled_whole_unless_it_is_merged_too() -> None:
    whole = (await recalled(memory("old-a", "own"), RecallRule(merge=MergeConfig())))["own"]
    assert (whole.own, whole.merged, whole.experience) == (True, (), bundle("own", step=STEP))
    merged = (await recalled(memory("old-a", "own"), RecallRule(merge=MergeConfig(own=True))))["own"]
    assert (merged.own, merged.merged) == (False, (1, 0))
    assert merged.experience.guidance == bundle("own").guidance, "of two the nearest wins"


async def test_a_single_bundle_is_recalled_whole() -> None:
    hit = (await recalled(memory("old-a"), RecallRule(merge=MergeConfig())))["near"]
    assert (hit.merged, hit.experience.request_id) == ((), "old-a")


def test_the_rule_of_a_run_is_that_of_its_settings() -> None:
    config = ExperienceConfig.model_validate({"recall": "stuck_first", "max_taught": 3, "merge": {"nearest": 4}})
    assert RecallRule.of(config) == RecallRule(RecallOrder.STUCK_FIRST, 3, MergeConfig(nearest=4))
    assert RecallRule.of(ExperienceConfig()) == RecallRule()
