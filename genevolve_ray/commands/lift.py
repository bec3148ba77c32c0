"""`genevolve experience lift`: what a run's bundles are worth in the prompt of the policy of one of its steps."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from genevolve_ray.bench.lift import guides_of, measure_guides
from genevolve_ray.commands.policies import policy_folder
from genevolve_ray.config import RunConfig, validate_config, with_overrides
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inprocess import load_chat, start_rollouts
from genevolve_ray.evolution.placebo import PlaceboWriter
from genevolve_ray.evolution.sources import posed_requests, recorded_source, trained_ids
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.request import Request

START = "start"
"""Names the policy with which a run began."""


@dataclass(frozen=True)
class LiftOptions:
    """Hold the options of a measurement of lifts."""

    step: int | None = None
    """Step whose memory and policy are measured; None: that of the last checkpoint."""
    requests: int = 100
    samples: int = 1
    start: bool = False
    """Measure the policy that the run began with as well."""
    settings: tuple[str, ...] = ()
    out: Path | None = None


def lift_run(run: Path, options: LiftOptions) -> dict[str, Any]:
    """Measure the lift of each kind of guide for one or two policies of a run, print it, and write it as JSON and as a page.

    Raises:
        UserFault: for a run without experience, or a step without a checkpoint.
        StoreError: for a folder that is no run, or a corrupt file.
    """
    from genevolve_ray.viewer.lift import write_lifts

    store = RunStore.read(str(run))
    step = _step(store, run, options.step)
    out = options.out or run / f"lift-{step:06d}.json"
    if out.suffix != ".json":
        raise UserFault(f"--json {str(out)!r} must end in .json")
    config = validate_config(with_overrides(store.config, options.settings))
    measured = dict[str, Any]()
    with store.open_checkpoint(step) as kept, policy_folder(kept) as folder:
        policies = {f"step {step}": folder} | ({START: model_folder(config.policy.model)} if options.start else {})
        for name, model in policies.items():
            found = asyncio.run(_measured(config, store, model, step, options))
            measured[name] = found
            print_lift(name, found)
    result = {"run": str(run), "step": step, "policies": measured}
    write_object(out, result)
    print(f"{out}\nreport: {write_lifts(result, out.with_suffix('.html'))}")
    return result


def _step(store: RunStore, run: Path, wanted: int | None) -> int:
    """Return the step to measure, which has a checkpoint and a memory."""
    if not store.experience_steps():
        raise UserFault(f"run {run} has no experience: it is disabled, or no step is committed yet")
    known = [checkpoint.step for checkpoint in store.checkpoints() if checkpoint.step in store.experience_steps()]
    if not known:
        raise UserFault(f"run {run} has no checkpoint yet")
    step = known[-1] if wanted is None else wanted
    if step not in known:
        raise UserFault(f"--step {step}: no checkpoint of that step; checkpoints: {', '.join(map(str, known))}")
    return step


async def _measured(config: RunConfig, store: RunStore, model: Path, step: int, options: LiftOptions) -> dict[str, Any]:
    with _images() as images:
        requests = _trained(config, store, images, step)[-options.requests :]
        placebo = PlaceboWriter(load_chat(model, config.date), config.protocol).of
        guides = await guides_of(config, requests, store.get_experience(step), placebo, _constant(config))
        rollouts, engine = await start_rollouts(config, model, images)
        try:
            return await measure_guides(config, rollouts, requests, guides, options.samples)
        finally:
            await rollouts.aclose()
            await engine.close()


@contextmanager
def _images() -> Iterator[FilesystemImages]:
    """Provide a store for pictures that no run keeps."""
    with tempfile.TemporaryDirectory(prefix="genevolve-lift-") as folder:
        yield FilesystemImages(folder)


def _trained(config: RunConfig, store: RunStore, images: FilesystemImages, step: int) -> list[Request]:
    """Return the different requests that the learner saw up to a step, in that order."""
    source = recorded_source(config, store, images)
    return list(posed_requests(source, config.loop, trained_ids(store, step), step).values())


def _constant(config: RunConfig) -> Any:
    """Return the constant bundle of a run, or that of its protocol, None where neither has one."""
    from genevolve_ray.atlas.teacher import GENERIC

    return config.experience.constant or GENERIC.get(config.protocol.name)


def print_lift(policy: str, found: dict[str, Any]) -> None:
    """Print the lift of each kind of guide for a policy."""
    reward = "–" if found["reward"] is None else f"{found['reward']:.3f}"
    table = Table(title=f"{policy}: reward {reward} without a guide, {found['requests']} requests")
    for heading in ("guide", "lift", "95% interval", "requests"):
        table.add_column(heading, justify="left" if heading == "guide" else "right", no_wrap=True)
    rows = {**found["lift"], **{k.replace("_minus_", " - "): v for k, v in found["differences"].items()}}
    for name, gain in rows.items():
        if gain is not None:
            bounds = f"{gain['low']:+.3f} to {gain['high']:+.3f}"
            table.add_row(name, f"{gain['mean']:+.3f}", bounds, str(gain["pairs"]))
    Console().print(table)
    for kind, reasons in found["left_out"].items():
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
        Console().print(f"left out with guide {kind}: {counts}", highlight=False)
