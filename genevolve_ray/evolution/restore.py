"""Restoration of the last committed state of a run."""

from __future__ import annotations

from genevolve_ray.errors import GenevolveError
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.ports import ExperiencePort, LearnerLost, LearnerPort
from genevolve_ray.evolution.store.lessons import stored_lessons
from genevolve_ray.evolution.store.run import RunStore


class ResumeError(GenevolveError, RuntimeError):
    """Signal that stored batches do not reproduce the committed state."""


async def restore(store: RunStore, learner: LearnerPort, experience: ExperiencePort | None, monitor: Monitor) -> int:
    """Load the last checkpoint, apply the stored batches of later steps again, and return the policy version.

    The experience memory is restored to the last committed step.

    Raises:
        ResumeError: when the restored state does not have the hash of the committed one.
    """
    plan = store.resume_plan()
    if plan.checkpoint_step is not None:
        with store.open_checkpoint(plan.checkpoint_step) as folder:
            await learner.load(str(folder))
    for step in plan.steps_to_reapply:
        monitor.note(f"applying the stored batch of step {step} again")
        await learner.step(store.groups(step), step, stored_lessons(store, step))
    if plan.state_hash is not None and (restored := await learner.state_hash()) != plan.state_hash:
        raise ResumeError(f"step {plan.next_step - 1} was committed with state {plan.state_hash}, got {restored}")
    if experience is not None and plan.next_step > 1:
        await experience.restore(store.get_experience(plan.next_step - 1))
    return plan.next_step - 1


async def revive(store: RunStore, learner: LearnerPort, monitor: Monitor) -> None:
    """Bring a learner in new processes to the last committed state; engines and experience stay unchanged.

    Engines may hold weights of the step that was lost; repeating it on the same batch gives the same weights.

    Raises:
        LearnerLost: when it was lost too often.
    """
    while True:
        await learner.restart()
        try:
            await restore(store, learner, None, monitor)
            return
        except LearnerLost as error:
            monitor.note(str(error))
