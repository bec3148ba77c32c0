"""No student ever sees experience: neither in training nor in an evaluation, in no arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.atlas.teacher import GENERIC
from genevolve_ray.bench.ablation import AblationPlan, ablate
from genevolve_ray.bench.arms import Arm
from genevolve_ray.bench.worlds import student_check
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.teaching import ExperienceLeakError
from genevolve_ray.records.images import FilesystemImages

SMALL = (
    "loop.steps=1",
    "loop.requests_per_step=2",
    "loop.group_size=2",
    "loop.validate_every=1",
    "loop.validation_requests=1",
    "loop.checkpoint_every=1",
    "learner.threads=1",
    "engine.kind=transformers",
    "experience.min_gap=0",
)


def config(*settings: str) -> RunConfig:
    return load_config("atlas", [*SMALL, *settings])


async def test_a_student_of_an_evaluation_that_saw_experience_is_found(tmp_path: Path) -> None:
    played = config("rehearsal={}")
    model, images = model_folder(played.policy.model), FilesystemImages(str(tmp_path))
    check, requests = student_check(played, model), played.requests.build(images).validation(1)
    rollouts, engine = await start_rollouts(played, model, images)
    guide = {"experience": GENERIC["atlas"]}
    for changes, told in (({}, False), (guide, True)):
        [trajectory] = await evaluate(
            requests,
            rollouts,
            run_seed=1,
            sampling=SamplingParams(),
            split="validation",
            adjust=lambda task, changes=changes: task.model_copy(update=changes),  # type: ignore[misc]
        )
        assert len(trajectory.ledger), "an empty context would show nothing"
        if told:
            with pytest.raises(ExperienceLeakError, match="sampled with experience"):
                check(trajectory)
        else:
            check(trajectory)
    await engine.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_no_student_of_any_arm_sees_experience(tmp_path: Path) -> None:
    base, taught = config(), dict[str, int]()
    model = model_folder(base.policy.model)
    plan = AblationPlan(arms=tuple(Arm), seeds=1, test_worlds=(3,), requests=1, constant=GENERIC["atlas"])
    await ablate(base, model, tmp_path, plan, lambda text: None)
    check = student_check(base, model)
    for arm in Arm:
        store = RunStore.read(str(tmp_path / f"{arm}-1"))
        trained = [t for step in store.committed_steps() for g in store.groups(step) for t in g.trajectories]
        tested = [t for name in store.trajectory_names() for t in store.get_trajectories(name)]
        assert tested and (trained or arm is Arm.SFT)
        for trajectory in [*trained, *tested]:
            check(trajectory)
        taught[arm] = sum(int(row.get("taught_sequences", 0)) for row in store.metrics())
    silent = {arm for arm, count in taught.items() if not count}
    assert silent == {Arm.SFT, Arm.GRPO}, "every other arm has a teacher that read something"
