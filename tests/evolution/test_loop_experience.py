"""Experience in the loop: who is taught with what, what the controls change, and what a resume brings back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_fakes import FakeLearner, FakeRequests, FakeRollouts, Scene, evolve, make_config, make_trajectory

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.experience import LocalExperience
from genevolve_ray.evolution.placebo import PlaceboError
from genevolve_ray.evolution.store.lessons import stored_lessons
from genevolve_ray.experience.config import ExperienceConfig, MemoryConfig
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import OUTSIDE, Group, Outcome, Pair, SampleKey
from genevolve_ray.remote.client import UnusableAnswer


class FakeSummariser:
    """Says who was better; gives up on the requests that it is told to."""

    identity = "fake"

    def __init__(self, down: tuple[str, ...] = ()) -> None:
        self.down = down

    async def compare(self, request: Request, pair: Pair) -> Experience:
        if request.id in self.down:
            raise InfraFailure("no answer")
        return Experience(
            search_strategy=(f"do as {pair.best.key.sample}",), step=pair.step, request_id=request.id, gap=pair.gap
        )


class FakeEmbedder:
    """Requests are alike when their numbers are equal modulo `classes`."""

    identity = "fake"

    def __init__(self, classes: int = 100) -> None:
        self.classes, self.down = classes, False

    async def embed(self, texts: Any) -> Any:
        if self.down:
            raise InfraFailure("no answer")
        return np.eye(self.classes, dtype=np.float32)[[int(t.split()[-1]) % self.classes for t in texts]]


class Numbered(FakeRequests):
    """Requests whose prompt says their number."""

    def train(self, index: int) -> Request:
        return super().train(index).model_copy(update={"prompt": f"draw {index}"})


def settings(**changes: Any) -> ExperienceConfig:
    return ExperienceConfig.model_validate({"enabled": True, "key": {"masked": False}, **changes})


def group(index: int, step: int = 1, scores: tuple[float, ...] = (0.2, 0.9)) -> Group:
    name = f"train-{index}"
    keys = [SampleKey(step=step, request_id=name, sample=i) for i in range(len(scores))]
    return Group(
        name, step, [make_trajectory(key, Outcome.SCORED, score) for key, score in zip(keys, scores, strict=True)]
    )


async def learn(experience: LocalExperience, *indices: int, step: int = 1, **changes: Any) -> Any:
    requests = [Numbered().train(i) for i in indices]
    return await experience.learn(requests, [group(i, step, **changes) for i in indices], step)


def make(summariser: Any = None, embedder: Any = None, **changes: Any) -> LocalExperience:
    return LocalExperience(settings(**changes), summariser or FakeSummariser(), embedder or FakeEmbedder())


async def test_a_request_is_taught_by_its_own_fresh_bundle() -> None:
    learned = await learn(make(), 0, 1)
    assert [(x.request_id, x.own, x.experience.guidance["search_strategy"]) for x in learned.lessons] == [
        ("train-0", True, ("do as 1",)),
        ("train-1", True, ("do as 1",)),
    ]
    metrics = learned.metrics
    assert (metrics["experience_pairs"], metrics["experience_own"], metrics["experience_hit_rate"]) == (2, 2, 1)


async def test_attempts_from_outside_teach_only_where_that_is_allowed() -> None:
    outside = group(0)
    outside.trajectories[0].provenance = outside.trajectories[0].provenance.model_copy(
        update={"engine": f"{OUTSIDE}anna"}
    )
    for allowed, pairs in ((False, 0), (True, 1)):
        learned = await make(outside=allowed).learn([Numbered().train(0)], [outside], 1)
        assert learned.metrics["experience_pairs"] == pairs


async def test_without_a_pair_of_its_own_a_request_recalls_what_a_like_one_taught() -> None:
    experience = make(embedder=FakeEmbedder(classes=2))
    await learn(experience, 0, 1)
    learned = await learn(experience, 2, step=2, scores=(0.5, 0.55))
    assert [(x.request_id, x.own, x.experience.request_id) for x in learned.lessons] == [("train-2", False, "train-0")]
    assert learned.metrics["experience_remembered"] == 1


async def test_nothing_near_enough_means_nothing_taught() -> None:
    experience = make()
    await learn(experience, 0)
    assert (await learn(experience, 1, step=2, scores=(0.5, 0.5))).lessons == ()


async def test_a_summariser_that_gives_up_leaves_its_pair_out() -> None:
    learned = await learn(make(FakeSummariser(down=("train-0",))), 0, 1)
    assert [x.request_id for x in learned.lessons] == ["train-1"]
    assert (learned.metrics["experience_pairs"], learned.metrics["experience_failures"]) == (2, 1)


async def test_a_bundle_that_says_nothing_hides_no_other() -> None:
    class Silent(FakeSummariser):
        async def compare(self, request: Request, pair: Pair) -> Experience:
            bundle = await super().compare(request, pair)
            return bundle if request.id == "train-0" else bundle.guided({})

    experience = make(Silent(), FakeEmbedder(classes=2))
    await learn(experience, 0)
    learned = await learn(experience, 2, step=2)
    assert [(x.request_id, x.own, x.experience.request_id) for x in learned.lessons] == [("train-2", False, "train-0")]
    assert learned.faults == ("the bundle of request 'train-2' has no guidance",)
    assert (learned.metrics["experience_failures"], learned.metrics["experience_memory"]) == (1, 1)


async def test_an_embedder_that_gives_up_leaves_the_step_without_experience() -> None:
    embedder = FakeEmbedder()
    embedder.down = True
    learned = await learn(make(embedder=embedder), 0)
    assert (learned.lessons, learned.metrics["embedder_failures"], learned.metrics["experience_memory"]) == ((), 1, 0)


async def test_shuffled_teaches_as_many_with_the_bundles_of_others() -> None:
    learned = await learn(make(control="shuffled"), 0, 1, 2)
    assert [x.request_id for x in learned.lessons] == ["train-0", "train-1", "train-2"]
    assert all(x.experience.request_id not in ("", x.request_id) and not x.own for x in learned.lessons)
    assert learned.metrics["experience_hit_rate"] == 1


async def test_shuffled_finds_another_bundle_in_the_memory_for_a_request_that_is_alone() -> None:
    experience = make(control="shuffled")
    await learn(experience, 0)
    [lesson] = (await learn(experience, 1, step=2)).lessons
    assert (lesson.request_id, lesson.experience.request_id) == ("train-1", "train-0")


async def test_constant_teaches_whoever_recalled_something_with_one_bundle() -> None:
    generic = Experience(search_strategy=("be careful",))
    learned = await learn(make(control="constant", constant=generic), 0, 1)
    assert [x.experience for x in learned.lessons] == [generic, generic]
    with pytest.raises(ValueError, match="control='constant', constant=None"):
        settings(control="constant")


async def test_a_snapshot_brings_the_memory_back() -> None:
    first, again = make(embedder=FakeEmbedder(2)), make(embedder=FakeEmbedder(2))
    await learn(first, 0, 1)
    await again.restore(await first.snapshot())
    assert await again.snapshot() == await first.snapshot()
    expected = await learn(first, 2, step=2, scores=(0.5, 0.5))
    assert await learn(again, 2, step=2, scores=(0.5, 0.5)) == expected


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


async def test_lessons_reach_the_learner_and_are_kept_with_the_step(scene: Scene) -> None:
    learner = FakeLearner()
    evolution = scene.begin(make_config(), learner=learner, experience=make())
    evolution.requests = Numbered()
    await evolve(evolution)
    assert any(learner.lessons), "no group of these runs has a gap: the test would show nothing"
    for step in (1, 2, 3):
        assert stored_lessons(evolution.store, step) == learner.lessons[step - 1]
    assert evolution.store.experience_steps() == [1, 2, 3]


async def test_a_resumed_run_ends_as_one_that_was_not_interrupted(scene: Scene, tmp_path: Path) -> None:
    def begin(of: Scene, steps: int, learner: FakeLearner) -> Any:
        experience = make(embedder=FakeEmbedder(classes=3), memory=MemoryConfig(capacity=8))
        evolution = of.begin(make_config(steps=steps), FakeRollouts(), learner, experience)
        evolution.requests = Numbered()
        return evolution

    await evolve(begin(scene, 2, FakeLearner()))
    resumed = begin(scene, 4, FakeLearner())
    await evolve(resumed)
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    whole = begin(other, 4, FakeLearner())
    await evolve(whole)
    assert [m.state_hash for m in resumed.store.manifests()] == [m.state_hash for m in whole.store.manifests()]
    assert resumed.store.get_experience(4) == whole.store.get_experience(4)
    other.close()


class CountingSummariser(FakeSummariser):
    """Counts what it is asked, and fails as `fault` says."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__()
        self.asked, self.fault = list[str](), fault

    async def compare(self, request: Request, pair: Pair) -> Experience:
        self.asked.append(request.id)
        if self.fault is not None:
            raise self.fault
        return await super().compare(request, pair)


async def test_groups_that_were_compared_early_give_the_same_step(tmp_path: Path) -> None:
    early, late = CountingSummariser(), CountingSummariser()
    first, second = make(early), make(late)
    for index in (2, 0):
        await first.prepare([Numbered().train(index)], [group(index)], 1)
    assert await first.changes() == await second.changes(), "nothing is remembered early"
    assert await learn(first, 0, 1, 2) == await learn(second, 0, 1, 2)
    assert await first.snapshot() == await second.snapshot()
    assert (early.asked, late.asked) == (["train-2", "train-0", "train-1"], ["train-0", "train-1", "train-2"])


@pytest.mark.parametrize(("fault", "asked"), [(InfraFailure("down"), 2), (UnusableAnswer("no JSON"), 1)])
async def test_what_was_down_is_asked_again_and_a_bad_answer_is_not(fault: InfraFailure, asked: int) -> None:
    summariser = CountingSummariser(fault)
    experience = make(summariser)
    await experience.prepare([Numbered().train(0)], [group(0)], 1)
    learned = await learn(experience, 0)
    assert len(summariser.asked) == asked
    assert learned.faults == (str(fault),)


class PlainSummariser(FakeSummariser):
    """Says the same about every pair, and gives the moons of every request away."""

    async def compare(self, request: Request, pair: Pair) -> Experience:
        said = ("read both", "draw seven moons")
        return (await super().compare(request, pair)).guided({"prompt_construction": said})


async def test_lessons_are_counted_by_where_they_come_from() -> None:
    experience = make(embedder=FakeEmbedder(classes=2), merge={"nearest": 5})
    await learn(experience, 0, 2, 4)
    learned = await experience.learn(
        [Numbered().train(i) for i in (6, 8, 1)], [group(6, 2, (0.5, 0.5)), group(8, 2), group(1, 2, (0.4, 0.5))], 2
    )
    assert [(x.request_id, x.kind, x.merged) for x in learned.lessons] == [
        ("train-6", "merged", (3, 2, 1, 0)),
        ("train-8", "own", ()),
    ]
    names = ("own", "remembered", "merged", "stuck", "stuck_taught")
    assert [learned.metrics[f"experience_{name}"] for name in names] == [1, 0, 1, 2, 1]


async def test_a_merged_lesson_gives_no_answer_of_its_request_away() -> None:
    experience = make(PlainSummariser(), FakeEmbedder(classes=2), merge={})
    await learn(experience, 0, 2)
    asked = Numbered().train(4).model_copy(update={"prompt": "Draw seven moons over Kerbria, as 4"})
    [lesson] = (await experience.learn([asked], [group(4, 2, (0.5, 0.5))], 2)).lessons
    assert lesson.experience.guidance == {"prompt_construction": ("read both",)}


async def test_a_merged_lesson_of_which_nothing_is_left_teaches_nobody() -> None:
    class Telling(FakeSummariser):
        async def compare(self, request: Request, pair: Pair) -> Experience:
            return (await super().compare(request, pair)).guided({"prompt_construction": ("draw seven",)})

    experience = make(Telling(), FakeEmbedder(classes=2), merge={})
    await learn(experience, 0, 2)
    asked = Numbered().train(4).model_copy(update={"prompt": "Draw seven moons, as 4"})
    assert (await experience.learn([asked], [group(4, 2, (0.5, 0.5))], 2)).lessons == ()
    kept = ExperienceMemory.restore(await experience.snapshot())
    assert [use.request_id for entry in kept.rows() for use in entry.uses] == ["train-0", "train-2"], (
        "their own bundles"
    )


async def test_stuck_requests_are_taught_first() -> None:
    experience = make(embedder=FakeEmbedder(classes=1), recall="stuck_first", max_taught=1)
    await learn(experience, 0)
    requests = [Numbered().train(i) for i in (1, 2)]
    learned = await experience.learn(requests, [group(1, 2), group(2, 2, (0.5, 0.55))], 2)
    assert [x.request_id for x in learned.lessons] == ["train-2"]


async def test_a_placebo_teaches_the_same_requests_with_other_words() -> None:
    def neutral(bundle: Experience) -> Experience:
        return bundle.guided({slot: ("and so",) * len(b) for slot, b in bundle.guidance.items()})

    experience = LocalExperience(settings(control="placebo"), FakeSummariser(), FakeEmbedder(), neutral)
    learned = await learn(experience, 0, 1)
    assert [(x.request_id, x.experience.guidance) for x in learned.lessons] == [
        (f"train-{i}", {"search_strategy": ("and so",)}) for i in (0, 1)
    ]
    assert all(x.experience.request_id == x.request_id and not x.own for x in learned.lessons)


async def test_a_bundle_without_a_placebo_is_a_fault_of_the_step_and_teaches_nobody() -> None:
    def neutral(bundle: Experience) -> Experience:
        if bundle.request_id == "train-0":
            raise PlaceboError("no neutral text has the 7 tokens")
        return bundle

    experience = LocalExperience(settings(control="placebo"), FakeSummariser(), FakeEmbedder(), neutral)
    learned = await learn(experience, 0, 1)
    assert [x.request_id for x in learned.lessons] == ["train-1"]
    assert learned.faults == ("no neutral text has the 7 tokens",)
    assert (learned.metrics["placebo_failures"], learned.metrics["experience_hit_rate"]) == (1, 0.5)


def test_a_placebo_needs_its_writer() -> None:
    with pytest.raises(ValueError, match="control='placebo' needs what writes placebos"):
        make(control="placebo")


async def test_a_merged_bundle_shuffles_to_one_that_shares_nothing_with_it() -> None:
    experience = make(embedder=FakeEmbedder(classes=2), merge={}, control="shuffled")
    await learn(experience, 0, 2, 1, 3)
    requests = [Numbered().train(i) for i in (4, 5)]
    learned = await experience.learn(requests, [group(4, 2, (0.5, 0.5)), group(5, 2, (0.5, 0.5))], 2)
    assert [x.merged for x in learned.lessons] == [(3, 2), (1, 0)], "each has the other's"


async def test_merged_lessons_are_the_same_after_a_resume(scene: Scene, tmp_path: Path) -> None:
    def begin(of: Scene, steps: int, learner: FakeLearner) -> Any:
        experience = make(embedder=FakeEmbedder(classes=2), merge={"own": True}, recall="stuck_first", max_taught=2)
        evolution = of.begin(make_config(steps=steps), FakeRollouts(), learner, experience)
        evolution.requests = Numbered()
        return evolution

    await evolve(begin(scene, 2, FakeLearner()))
    resumed = begin(scene, 4, FakeLearner())
    await evolve(resumed)
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    whole = begin(other, 4, FakeLearner())
    await evolve(whole)
    assert any(lesson.merged for step in (1, 2, 3, 4) for lesson in stored_lessons(whole.store, step))
    assert [m.state_hash for m in resumed.store.manifests()] == [m.state_hash for m in whole.store.manifests()]
    assert resumed.store.get_experience(4) == whole.store.get_experience(4)
    other.close()
