"""Restoration of the last committed state of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from genevolve_ray.errors import RunError
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.ports import ExperiencePort, LearnerLost, LearnerPort
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.lessons import stored_lessons
from genevolve_ray.evolution.store.manifest import ResumePlan
from genevolve_ray.evolution.store.run import RunStore


class ResumeError(RunError):
    """Signal that stored batches do not reproduce the committed state."""


async def restore(store: RunStore, learner: LearnerPort, experience: ExperiencePort | None, monitor: Monitor) -> int:
    """Load the last checkpoint, apply the stored batches of later steps again, and return the policy version.

    Instead of a corrupt checkpoint an earlier one is loaded, or the policy that the run started from, and more batches
    are applied: the state is the same. The experience memory is restored to the last committed step.

    Raises:
        ResumeError: when the restored state does not have the hash of the committed one.
        StoreError: naming a corrupt file that is needed.
    """
    plan = await _load(store, learner, monitor)
    for step in plan.steps_to_reapply:
        monitor.note(f"applying the stored batch of step {step} again")
        await learner.step(store.groups(step), step, stored_lessons(store, step))
    if plan.state_hash is not None and (restored := await learner.state_hash()) != plan.state_hash:
        raise ResumeError(
            f"run {store.root}: step {plan.next_step - 1} was committed with state {plan.state_hash}, but its stored "
            f"batches give {restored}: another machine, another version of a library or other settings of threads "
            "compute differently. Resume it where it was started"
        )
    if experience is not None and plan.next_step > 1:
        await experience.restore(store.get_experience(plan.next_step - 1))
    return plan.next_step - 1


async def _load(store: RunStore, learner: LearnerPort, monitor: Monitor) -> ResumePlan:
    """Load the newest sound checkpoint and return its plan. Raises StoreError of the newest one where there is none."""
    faults: list[StoreError] = []
    for plan in store.resume_plans():
        if plan.checkpoint_step is None:
            _check_batches(store, plan, faults)
            return plan
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(store.open_checkpoint(plan.checkpoint_step))
            except StoreError as error:
                faults.append(error)
                monitor.note(f"{error}; an earlier state and the stored batches replace this checkpoint")
                continue
            _check_batches(store, plan, faults)
            await learner.load(str(folder))
        return plan
    raise AssertionError("the last plan has no checkpoint")


def _check_batches(store: RunStore, plan: ResumePlan, faults: Sequence[StoreError]) -> None:
    """Check that the manifests of the batches to apply again exist.

    Raises StoreError about the first corrupt checkpoint, or about the manifest.
    """
    try:
        for step in plan.steps_to_reapply:
            store.manifest(step)
    except StoreError as error:
        raise StoreError(f"{faults[0]}, and {error}" if faults else str(error)) from error


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
