"""Restoration of the last committed state of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from genevolve_ray.errors import RunError
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.overlap import stored_parts
from genevolve_ray.evolution.ports import ExperiencePort, LearnerLost, LearnerPort
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.lessons import stored_lessons, stored_redraws
from genevolve_ray.evolution.store.manifest import ResumePlan
from genevolve_ray.evolution.store.run import RunStore


class ResumeError(RunError):
    """Signal that stored batches do not reproduce the committed state."""


async def restore(
    store: RunStore, learner: LearnerPort, experience: ExperiencePort | None, monitor: Monitor, *, exact: bool = True
) -> int:
    """Load the last checkpoint, apply the stored batches of later steps again, and return the policy version.

    Instead of a corrupt checkpoint an earlier one is loaded, or the policy that the run started from, and more batches
    are applied: the state is the same. The experience memory is restored to the last committed step.

    Args:
        store: the run.
        learner: the learner in its initial state.
        experience: the experience memory, None where it is not restored.
        monitor: is told what happens.
        exact: whether the learner computes a step again bit for bit. Where it does not, the steps after the checkpoint
            are discarded, and the run continues from the checkpoint.

    Raises:
        ResumeError: when the restored state does not have the hash of the committed one.
        StoreError: naming a corrupt file that is needed.
    """
    plan = await _load(store, learner, monitor)
    if plan.steps_to_reapply and not exact:
        plan = _discard(store, plan, monitor)
    for step in plan.steps_to_reapply:
        monitor.note(f"applying the stored batch of step {step} again")
        lessons, redraws = stored_lessons(store, step), stored_redraws(store, step)
        await learner.step(store.groups(step), step, lessons, stored_parts(store, step), redraws)
    if plan.state_hash is not None and not _same(plan.state_hash, restored := await learner.state_hash(), monitor):
        raise ResumeError(
            f"run {store.root}: step {plan.next_step - 1} was committed with state {plan.state_hash}, but its stored "
            f"batches give {restored}: another machine, another version of a library or other settings of threads "
            "compute differently. Resume it where it was started"
        )
    if experience is not None and plan.next_step > 1:
        await experience.restore(store.get_experience(plan.next_step - 1))
    return plan.next_step - 1


def _same(committed: str, restored: str, monitor: Monitor) -> bool:
    """Return whether two hashes are of one state; those of different kinds ("kind:digits") are not compared."""
    if committed.rpartition(":")[0] == restored.rpartition(":")[0]:
        return committed == restored
    monitor.note("the last step was committed by an earlier version, so the hash of its state cannot be compared")
    return True


def _discard(store: RunStore, plan: ResumePlan, monitor: Monitor) -> ResumePlan:
    """Discard the steps that a plan applies again, and return the plan without them."""
    kept = plan.checkpoint_step or 0
    state_hash = store.manifest(kept).state_hash if kept else None
    start = "the policy that it started from" if plan.checkpoint_step is None else f"its checkpoint of step {kept}"
    monitor.note(
        f"discarded {_steps(store.discard_steps(kept))}: the learner's device does not compute a step again bit for bit "
        f"(in a new run learner.deterministic=true does). The run continues from {start}"
    )
    return ResumePlan(
        checkpoint_step=plan.checkpoint_step, steps_to_reapply=(), next_step=kept + 1, state_hash=state_hash
    )


def _steps(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


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


async def revive(store: RunStore, learner: LearnerPort, monitor: Monitor, *, exact: bool = True) -> None:
    """Bring a learner in new processes to the last committed state; engines and experience stay unchanged.

    Engines may hold weights of the step that was lost; repeating it on the same batch gives the same weights.

    Raises:
        LearnerLost: when it was lost too often, and when steps after the last checkpoint cannot be computed again bit
            for bit (`exact` of `restore`): the run then continues from the checkpoint when it is resumed.
    """
    plan = store.resume_plan()
    if plan.steps_to_reapply and not exact:
        raise LearnerLost(
            f"the learner died, and its device does not compute {_steps(plan.steps_to_reapply)} again bit for bit: the "
            f"same command resumes the run from the state before"
        )
    while True:
        await learner.restart()
        try:
            await restore(store, learner, None, monitor, exact=exact)
            return
        except LearnerLost as error:
            monitor.note(str(error))
