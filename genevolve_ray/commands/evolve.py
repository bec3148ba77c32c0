"""The commands of an evolution: open the run, start the parts, evolve, compare, report."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from anyio.from_thread import start_blocking_portal

from genevolve_ray.commands.assemble import open_ports
from genevolve_ray.commands.memory_gauge import MemoryGauge
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.preflight import model_folder, preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.curriculum import check_pool
from genevolve_ray.evolution.hub_models import pin_models
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.metrics import PARITIES, evaluation_metrics, verdict_parts
from genevolve_ray.evolution.monitor import Recording
from genevolve_ray.evolution.sources import open_source, prime_source
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swaps, swapping
from genevolve_ray.evolution.telemetry.watching import WatchedRun, watched
from genevolve_ray.evolution.trackers.opening import open_trackers
from genevolve_ray.evolution.trackers.port import TrackedRun
from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.secrets import REMEDY, hide_secrets, masked
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.viewer.progress import open_progress
from genevolve_ray.viewer.recorded import RecordedProgress
from genevolve_ray.viewer.report import write_report

ATLAS_START = "genevolve_ray.atlas:cold_start"
"""The policy of the preset `atlas`."""


def evolve_run(config: RunConfig, folder: Path, *, in_process: bool) -> dict[str, Any]:
    """Evolve a policy in a run folder to the end and return the summary. Ctrl-C and SIGTERM end the run cleanly.

    Inside a running event loop, as in a notebook, a run in process gets a thread with a loop of its own, and this call
    blocks until it ends; an interrupt cancels it there. `evolve_async` is the form to await.

    Raises:
        UserFault: for a run on Ray inside a running event loop. Ray's processes end with the thread that started them,
            so a second thread must not start them.
    """
    if _in_loop():
        if not in_process:
            raise UserFault(
                "evolve_run cannot start Ray inside a running event loop, as that of a notebook: write "
                "`await evolve_async(config, folder, in_process=False)`, or set in_process=True"
            )
        with start_blocking_portal() as portal:
            return portal.call(partial(evolve_async, config, folder, in_process=in_process))
    config = _prepared(config, folder, in_process=in_process)
    return asyncio.run(_until_signal(_evolve(config, folder, local=in_process)))


async def evolve_async(config: RunConfig, folder: Path, *, in_process: bool) -> dict[str, Any]:
    """Evolve a policy as `evolve_run` does, in the running event loop; cancellation ends the run cleanly."""
    config = await asyncio.to_thread(_prepared, config, folder, in_process=in_process)
    return await _evolve(config, folder, local=in_process)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _prepared(config: RunConfig, folder: Path, *, in_process: bool) -> RunConfig:
    """Check a configuration before a run, and return it with the commits of its hub models."""
    if config.deterministic and not in_process:
        raise UserFault("deterministic=true needs --in-process: parallel processes are not bit-exact")
    config = pin_models(config, _recorded(folder))
    prime_source(config.requests, Folder(str(folder)))
    preflight(as_swapped(config, folder), local=in_process)
    return config


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the configuration with which the run of a folder began, empty where there is none."""
    return RunStore.read(str(folder)).config if (folder / "run.json").is_file() else {}


def as_swapped(config: RunConfig, folder: Path) -> RunConfig:
    """Return a configuration with the renderer that a run in a folder uses since its last swap."""
    swap = Swaps(Folder(str(folder))).in_force()
    return config if swap is None else config.model_copy(update={"renderer": swap.renderer})


def with_date(config: RunConfig, store: RunStore) -> RunConfig:
    """Return a configuration with the day that templates print: by default that of the run's start, also on resume."""
    return config if config.date else config.model_copy(update={"date": store.info.created[:10]})


def tracked(config: RunConfig, store: RunStore, folder: Path) -> TrackedRun:
    """Return a run for trackers; folders of one name have different ids, a resumed run keeps its own."""
    own = store.info.run_id
    return TrackedRun(
        name=config.name,
        id=f"{config.name}-{own}" if own else config.name,
        config=masked(config.model_dump(mode="json")),
        folder=folder if store.is_local else None,
    )


async def _until_signal(work: Any) -> dict[str, Any]:
    """Run `work`; SIGTERM cancels it, so that every part is closed before the process ends."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    result: dict[str, Any] = await task
    return result


async def _evolve(config: RunConfig, folder: Path, *, local: bool) -> dict[str, Any]:
    started = perf_counter()
    model = model_folder(config.policy.model)
    with (
        MemoryGauge() as gauge,
        RunStore.open(str(folder), config, run_seed=config.seed, keep=config.checkpoints) as store,
        RecordedProgress(open_progress(), folder) as screen,
        open_trackers(
            config.logging, tracked(config, store, folder), store, Folder(str(folder)), screen.note
        ) as trackers,
        watched(
            Recording(screen, trackers),
            config.logging,
            Folder(str(folder)),
            partial(WatchedRun.of, store, folder.name or config.name, config.loop.steps),
        ) as (monitor, listener),
    ):
        config = with_date(config, store)
        screen.start(config.loop.steps, _headline(config), store.last_step)
        for key in hide_secrets(config.model_dump(mode="json")):
            screen.note(f"{key} is a secret in plain: it is masked in the files of the run; {REMEDY}")
        requests = open_source(config, store, screen.note)
        check_pool(requests, config.loop.curriculum)
        async with open_ports(as_swapped(config, folder), model, store, screen, local=local) as ports:
            evolution = Evolution(
                config,
                requests,
                ports.rollouts,
                ports.learner,
                store,
                monitor,
                ports.experience,
                panel=ports.panel,
                listener=listener,
            )
            async with swapping(Swaps(Folder(str(folder))), ports.renderers, evolution.generations, screen):
                version = await evolution.start()
                trackers.begin(version)
                await _heldout(evolution, version, "heldout-sft", wanted=version == 0)
                evolving = perf_counter()
                await evolution.run(version)
                evolved = perf_counter() - evolving
                await _heldout(evolution, store.last_step, "heldout-final", wanted=True)
        summary = summarise(store, config)
        setup = float(os.environ.get("GENEVOLVE_SETUP_SECONDS", 0.0))
        total = perf_counter() - started + setup
        summary["seconds"] = {"setup": setup, "evolve": round(evolved, 1), "total": round(total, 1)}
        summary["peak_memory_bytes"] = gauge.peak
        summary["report"] = str(folder / "report.html")
        store.put_summary(summary)
        trackers.complete(summary)
        write_report(store, folder / "report.html")
    print(verdict(summary))
    return summary


async def _heldout(evolution: Evolution, version: int, name: str, *, wanted: bool) -> None:
    """Evaluate the current policy on the held-out requests, unless this version was evaluated before."""
    config, store = evolution.config, evolution.store
    if not config.heldout.requests or not wanted:
        return
    marker = f"{name}-{version:06d}"
    if marker in store.trajectory_names():
        return
    requests = evolution.requests.heldout(config.heldout.requests)
    trajectories = await evolution.evaluate(requests, "heldout")
    store.put_requests("heldout", requests)
    store.put_trajectories(name, trajectories)
    store.put_trajectories(marker, trajectories)


def summarise(store: RunStore, config: RunConfig) -> dict[str, Any]:
    """Return the run's headline numbers: the held-out comparison with its paired interval, parity, shape of the run."""
    names, metrics = store.trajectory_names(), store.metrics()
    summary: dict[str, Any] = {
        "run": config.name,
        "steps": store.last_step,
        "seed": config.seed,
        "score_formula": config.reward.formula.value,
        "parity_max": max((row[name] for row in metrics for name in PARITIES if name in row), default=None),
        "probe_difference_max": max((row["probe_difference"] for row in metrics), default=None),
        "seconds_per_step_max": max((row["seconds_step"] for row in metrics), default=None),
    }
    found = {
        short: store.get_trajectories(f"heldout-{short}") for short in ("sft", "final") if f"heldout-{short}" in names
    }
    for short, trajectories in found.items():
        measured = evaluation_metrics(trajectories)
        summary |= {
            f"heldout_reward_{short}": measured["reward_mean"],
            f"valid_fraction_{short}": measured["valid_fraction"],
            f"tool_calls_{short}": measured["tool_calls_mean"],
            f"infra_failures_{short}": measured["infra_failures"],
            f"heldout_parts_{short}": verdict_parts(trajectories),
            f"heldout_renderers_{short}": sorted({t.provenance.renderer for t in trajectories}),
        }
    if len(found) == 2:
        before, after = paired_scores(found["sft"], found["final"])
        heldout = config.heldout
        gain = paired_interval(
            before, after, seed=config.seed, samples=heldout.bootstrap, confidence=heldout.confidence
        )
        summary |= {
            "heldout_gain": gain.mean,
            "heldout_gain_interval": [gain.low, gain.high],
            "heldout_pairs": len(before),
        }
    return summary


def paired_scores(before: list[Trajectory], after: list[Trajectory]) -> tuple[list[float], list[float]]:
    """Return the scores of requests that have one on both sides, in one order; missing ones are left out, not 0."""
    scored = (Outcome.SCORED, Outcome.POLICY_FAILURE)
    first = {t.key.request_id: t.score for t in before if t.outcome in scored}
    second = {t.key.request_id: t.score for t in after if t.outcome in scored}
    both = [request_id for request_id in first if request_id in second]
    return [first[r] for r in both], [second[r] for r in both]


def demo_run(config: RunConfig, folder: Path, *, cold_start: bool, in_process: bool) -> dict[str, Any]:
    """Evolve a preset from its cold start, and print the result. That of the preset atlas is copied to `folder`/sft.

    Raises:
        UserFault: with `cold_start` for a preset or a `policy.model` with another cold start.
    """
    model = config.policy.model
    if model == ATLAS_START:
        model = str(_atlas_start(config, folder / "sft", cold_start))
    elif cold_start:
        raise UserFault(
            f"--cold-start trains that of the preset atlas, but policy.model={model}: `genevolve sft` trains others, "
            "`genevolve small setup --from-nothing` that of the preset small"
        )
    policy = config.policy.model_copy(update={"model": model})
    return evolve_run(config.model_copy(update={"name": folder.name, "policy": policy}), folder, in_process=in_process)


def _atlas_start(config: RunConfig, start: Path, cold_start: bool) -> Path:
    """Return a folder with the cold start of the preset atlas: the shipped one, or one that is trained first."""
    if not (start / "config.json").is_file():
        preflight(config, model=not cold_start)  # Before anything is written.
        if cold_start:
            from genevolve_ray.commands.sft import sft_run

            sft_run("atlas", start, steps=None, seed=None, threads=None)
        else:
            shutil.copytree(model_folder(config.policy.model), start, dirs_exist_ok=True)
    return start


def verdict(summary: dict[str, Any]) -> str:
    """Return the end of a run for the screen: held-out rewards, the gain with its interval, and the report's path."""
    if "heldout_gain" not in summary:
        return f"report: {summary['report']}"
    low, high = summary["heldout_gain_interval"]
    return (
        f"held-out reward {summary['heldout_reward_sft']:.3f} -> {summary['heldout_reward_final']:.3f} "
        f"(gain {summary['heldout_gain']:+.3f}, interval {low:+.3f} to {high:+.3f}) in {summary['steps']} steps, "
        f"{summary['seconds']['total']:.0f} s\nreport: {summary['report']}"
    )


def _headline(config: RunConfig) -> dict[str, object]:
    loop = config.loop
    return {
        "run": config.name,
        "policy": config.policy.model,
        "engine": config.engine.kind,
        "rollouts": f"{loop.requests_per_step} x {loop.group_size}",
        "seed": config.seed,
    }
