"""The whole comparison over stand-ins: which runs are made, what is read again, what the result holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeLearner, FakeRequests, FakeRollouts, make_config

from genevolve_ray.bench import ablation
from genevolve_ray.bench.ablation import AblationPlan, ablate
from genevolve_ray.bench.arms import Arm
from genevolve_ray.bench.worlds import CurveEvolution
from genevolve_ray.errors import OutageError, UserFault
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import WeightFolders
from genevolve_ray.experience.changes import encode_changes
from genevolve_ray.experience.memory import ExperienceMemory, MemoryPoint
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.trajectory import Outcome

Ablate = Callable[..., Any]
GENERIC = Experience(search_strategy=("search facts",))


class StubEngine:
    """Remembers which weights it was given, and whether it was closed."""

    def __init__(self) -> None:
        self.updates: list[str] = []
        self.closed = False

    async def update(self, folder: str, version: int) -> float:
        self.updates.append(folder)
        return 0.0

    async def close(self) -> None:
        self.closed = True


class StubExperience:
    """Learns nothing and keeps an empty memory."""

    async def learn(self, *arguments: Any) -> Any:
        from genevolve_ray.evolution.ports import ExperienceStep

        return ExperienceStep()

    async def snapshot(self) -> bytes:
        return ExperienceMemory().snapshot()

    async def changes(self) -> bytes:
        return encode_changes(ExperienceMemory(), MemoryPoint())

    async def restore(self, snapshot: bytes) -> None:
        return None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What was built, by kind."""
    made: dict[str, list[Any]] = {"engine": [], "rollouts": [], "learner": []}

    def build(kind: str, make: Callable[[], Any]) -> Callable[..., Any]:
        def built(*_: Any) -> Any:
            made[kind].append(make())
            return made[kind][-1]

        return built

    def start_learner(config: EvolutionConfig, model: Path, folders: WeightFolders, images: Any) -> FakeLearner:
        made["learner"].append(FakeLearner())
        made["learner"][-1].folders = folders
        return made["learner"][-1]

    async def start_engine(*_: Any) -> StubEngine:
        made["engine"].append(StubEngine())
        return made["engine"][-1]

    monkeypatch.setattr(ablation, "start_engine", start_engine)
    monkeypatch.setattr(ablation, "build_rollouts", build("rollouts", FakeRollouts))
    monkeypatch.setattr(ablation, "start_learner", start_learner)
    monkeypatch.setattr(
        ablation, "start_experience", lambda config, model: StubExperience() if config.experience.enabled else None
    )
    monkeypatch.setattr(ablation, "student_check", lambda config, model: made.setdefault("checked", []).append)
    monkeypatch.setattr(PluginSpec, "build", lambda self, *_: FakeRequests())
    return made


def full() -> EvolutionConfig:
    base = make_config(validate_every=1, validation_requests=2)
    ved = base.learner.ved.model_copy(update={"coefficient": 1.0})
    return base.model_copy(
        update={
            "experience": base.experience.model_copy(update={"enabled": True}),
            "learner": base.learner.model_copy(update={"ved": ved}),
        }
    )


async def compare(folder: Path, *arms: str, seeds: int = 2, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    plan = AblationPlan(arms=arms, seeds=seeds, requests=4, constant=GENERIC, **changes)
    return await ablate(full(), Path("model"), folder, plan, notes.append), notes


async def test_every_arm_is_run_under_every_seed_from_one_engine(made: dict[str, list[Any]], tmp_path: Path) -> None:
    result, notes = await compare(tmp_path, Arm.SFT, Arm.GRPO, Arm.FULL)
    assert [note.split(":")[0] for note in notes] == [
        f"seed {seed} {arm}" for seed in (1, 2) for arm in ("sft", "grpo", "full")
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full-1", "full-2", "grpo-1", "grpo-2", "sft-1", "sft-2"]
    assert len(made["engine"]) == 1 and made["engine"][0].closed
    assert [len(learner.steps) for learner in made["learner"]] == [0, 3, 3] * 2
    arms = result["arms"]
    assert {"mean", "low", "high", "greedy", "per_seed"} <= arms["full"].keys()
    assert [len(arms[name]["per_seed"]) for name in ("sft", "grpo", "full")] == [2, 2, 2]
    assert [step for step, _ in arms["grpo"]["curve"]] == [1, 2, 3] and arms["sft"]["curve"] == []
    assert {"full_minus_grpo", "grpo_minus_sft"} <= result.keys() and "full_minus_shuffled" not in result


async def test_arms_meet_the_same_requests_and_the_same_dice(made: dict[str, list[Any]], tmp_path: Path) -> None:
    await compare(tmp_path, Arm.GRPO, Arm.SHUFFLED, seeds=1)
    drawn = [[(t.request.id, t.seed, t.render_seed, t.split) for t in r.tasks] for r in made["rollouts"]]
    assert sorted(drawn[0]) == sorted(drawn[1])


async def test_what_is_finished_is_read_and_not_made_again(made: dict[str, list[Any]], tmp_path: Path) -> None:
    first, _ = await compare(tmp_path, Arm.GRPO)
    for built in made.values():
        built.clear()
    again, _ = await compare(tmp_path, Arm.GRPO)
    assert again == first
    assert all(not rollouts.tasks for rollouts in made["rollouts"])
    assert all(not learner.steps for learner in made["learner"])


async def test_the_engine_is_closed_when_a_run_fails(
    made: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no learner")

    monkeypatch.setattr(ablation, "start_learner", fail)
    with pytest.raises(RuntimeError, match="no learner"):
        await compare(tmp_path, Arm.GRPO)
    assert made["engine"][0].closed


async def test_a_test_that_failed_from_outside_is_made_again(
    made: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(task: RolloutTask) -> Outcome:
        return Outcome.INFRA_FAILURE if task.split == "ablation" else Outcome.SCORED

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "build_rollouts", lambda *_: FakeRollouts(down))
        with pytest.raises(OutageError, match="all 4 test requests of world 1 failed from outside"):
            await compare(tmp_path, Arm.GRPO, seeds=1)
    result, _ = await compare(tmp_path, Arm.GRPO, seeds=1)
    assert result["arms"]["grpo"]["mean"] > 0
    assert made["learner"][-1].steps == [], "the training itself is finished"


async def test_several_worlds_are_compared_apart_and_together(made: dict[str, list[Any]], tmp_path: Path) -> None:
    result, _ = await compare(tmp_path, Arm.SFT, Arm.GRPO, Arm.FULL, seeds=2, test_worlds=(3, 4))
    assert result["test_worlds"] == [3, 4] and "world_seed" not in result
    for found in (result, *result["worlds"].values()):
        assert {"full_minus_grpo", "grpo_minus_sft"} <= found.keys()
        assert found["areas"].keys() == {"full_minus_grpo"}, "the start has no curve"
        assert {"mean", "low", "high"} == found["areas"]["full_minus_grpo"].keys()
    full, world = result["arms"]["full"], result["worlds"]["3"]["arms"]["full"]
    assert [step for step, _ in world["curve"]] == [step for step, _ in full["curve"]] == [1, 2, 3]
    means = [result["worlds"][name]["arms"]["full"]["mean"] for name in ("3", "4")]
    assert full["mean"] == pytest.approx(sum(means) / 2)
    gap = result["worlds"]["3"]["areas"]["full_minus_grpo"]["mean"]
    areas = [result["worlds"]["3"]["arms"][name]["area"]["mean"] for name in ("full", "grpo")]
    assert gap == pytest.approx(areas[0] - areas[1])


async def test_worlds_with_other_numbers_of_validation_requests_are_refused(tmp_path: Path) -> None:
    config = make_config(validation_requests=2)
    with RunStore.open(str(tmp_path / "run"), config) as store:
        parts = (FakeRequests(), FakeRollouts(), FakeLearner(), store, NullMonitor())
        evolution = CurveEvolution(config, *parts, worlds=(3, 4))
        with pytest.raises(
            UserFault, match="3 validation requests of 2 test worlds: each needs .*validation_requests=2"
        ):
            await evolution.evaluate(FakeRequests().validation(3), "validation")
        assert store.trajectory_names() == []


async def test_a_run_that_was_validated_on_other_worlds_has_no_curve(
    made: dict[str, list[Any]], tmp_path: Path
) -> None:
    first, _ = await compare(tmp_path, Arm.GRPO, seeds=1, test_worlds=(3, 4))
    assert first["arms"]["grpo"]["curve"]
    for changes in ({"test_worlds": (5, 6)}, {"test_worlds": (3,)}, {}):
        other, _ = await compare(tmp_path, Arm.GRPO, seeds=1, **changes)
        assert other["arms"]["grpo"]["curve"] == [] and other["arms"]["grpo"]["area"] is None
    again, _ = await compare(tmp_path, Arm.GRPO, seeds=1, test_worlds=(4, 3))
    assert again["arms"]["grpo"]["curve"] == first["arms"]["grpo"]["curve"]


async def test_a_run_is_not_continued_with_other_worlds(made: dict[str, list[Any]], tmp_path: Path) -> None:
    short = full().model_copy(update={"loop": full().loop.model_copy(update={"steps": 2})})
    plan = AblationPlan(arms=(Arm.GRPO,), seeds=1, requests=4, constant=GENERIC, test_worlds=(3, 4))
    await ablate(short, Path("model"), tmp_path, plan, lambda text: None)
    with pytest.raises(UserFault, match=r"run .*grpo-1 is validated on other worlds .* has 1 steps to go"):
        await compare(tmp_path, Arm.GRPO, seeds=1, test_worlds=(5, 6))
    result, _ = await compare(tmp_path, Arm.GRPO, seeds=1, test_worlds=(3, 4))
    assert [step for step, _ in result["arms"]["grpo"]["curve"]] == [1, 2, 3]


async def test_of_the_training_world_areas_are_compared_over_seeds(made: dict[str, list[Any]], tmp_path: Path) -> None:
    result, _ = await compare(tmp_path, Arm.GRPO, Arm.FULL, seeds=2)
    assert result["areas"]["full_minus_grpo"]["mean"] == pytest.approx(
        result["arms"]["full"]["area"] - result["arms"]["grpo"]["area"]
    )
    assert "worlds" not in result


async def test_a_comparison_killed_at_any_trajectory_ends_as_one_that_was_not(
    made: dict[str, list[Any]], tmp_path: Path
) -> None:
    whole, _ = await compare(tmp_path / "whole", Arm.GRPO, seeds=1, test_worlds=(3, 4))
    played = len(made["rollouts"][0].tasks)

    class Killed(Exception):
        pass

    async def kill(task: Any) -> None:
        raise Killed

    for at in range(1, played, 7):
        folder = tmp_path / f"killed-{at}"

        class Dying(FakeRollouts):
            async def rollout(self, task: Any, at: int = at) -> Any:
                if len(self.tasks) >= at:
                    raise Killed
                return await super().rollout(task)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ablation, "build_rollouts", lambda *_: Dying())
            with pytest.raises(BaseExceptionGroup):
                await compare(folder, Arm.GRPO, seeds=1, test_worlds=(3, 4))
        again, _ = await compare(folder, Arm.GRPO, seeds=1, test_worlds=(3, 4))
        for found in (whole, again):
            found["arms"]["grpo"].pop("seconds_per_seed", None)
        assert again == whole


async def test_every_student_of_an_evaluation_is_checked(made: dict[str, list[Any]], tmp_path: Path) -> None:
    await compare(tmp_path, Arm.GRPO, seeds=1, test_worlds=(3, 4))
    played = {str(t.key) for t in made["checked"]}
    assert {name.split("/")[1].split("-")[0] for name in played} == {"validation", "heldout"}
    validations, tests = 3 * 2 * 2, 2 * 2 * 4  # steps, worlds, requests; kinds of sampling, worlds, requests
    assert len(made["checked"]) == validations + tests
