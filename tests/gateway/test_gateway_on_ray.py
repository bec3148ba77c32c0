"""A renderer replaced under an evolution on Ray with a worker outside: no group with two renderers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster_run import HERE
from head_node import Head

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config
from benchmarks.world import default_policy
from genevolve_ray.commands.assemble import open_ports
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState, swapping
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.worker import Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import start_engine
from genevolve_ray.records.trajectory import Outcome

OUTSIDE = "gateway:remote"


class Heard(NullMonitor):
    """Keeps what the run tells; the gateway's address is among it."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def url(self) -> str:
        [url] = [note.rpartition(" ")[2] for note in self.notes if "listening on" in note]
        return url


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_a_swapped_renderer_draws_for_workers_inside_and_outside(tmp_path: Path, shared_cluster: Head) -> None:
    from ray import serve

    policy, run, tokens = default_policy(), tmp_path / "run", tmp_path / "tokens.json"
    config = rehearsal_config(
        Options(policy),
        "loop={steps: 100000, requests_per_step: 2, group_size: 4, mode: async, validate_every: 0, checkpoint_every: 1000}",
        "rehearsal.step_seconds=0.1",
        f"cluster.address={shared_cluster.address}",
        f"gateway={{port: 0, share: 0.6, tokens: '{tokens}'}}",
    )
    first = config.renderer.model_dump()
    other: dict[str, Any] = first | {"type": "benchmarks.null_parts:OtherRenderer"}
    broken = first | {
        "type": "cluster_plugins:BrokenRenderer",
        "config": {"marker": str(tmp_path / "never")},
        "runtime_env": {"env_vars": {"PYTHONPATH": str(HERE)}},
    }
    heard = Heard()
    with RunStore.open(str(run), config, run_seed=1, keep=config.checkpoints) as store:
        requests, swaps = config.requests.build(store.images), Swaps(Folder(str(run)))
        async with open_ports(config, policy, store, heard, local=False) as ports:  # type: ignore[arg-type]
            client = GatewayClient(heard.url, TokenFile(tokens).new("remote", (Scope.ROLLOUT,)))
            settings = WorkerConfig(concurrent=4, poll_seconds=0.5, drain_seconds=10, patience=5)
            worker = Worker(client, settings, tmp_path / "worker", lambda card, model: start_engine(card, model, None))
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, heard)
            async with swapping(swaps, ports.renderers, loop.generations, heard, poll_seconds=0.1):
                evolving = asyncio.create_task(loop.run(await loop.start()))
                working = asyncio.create_task(worker.run())

                async def until(condition: Callable[[], bool]) -> None:
                    while not condition():
                        assert not evolving.done() and not working.done(), (heard.notes, evolving, working)
                        await asyncio.sleep(0.05)

                async def swap(renderer: dict[str, Any]) -> Swap:
                    number = swaps.ask(RendererSpec.model_validate(renderer)).number
                    await until(lambda: swaps.get(number).state is not SwapState.ASKED)
                    return swaps.get(number)

                await until(lambda: worker.progress.accepted >= 4)
                refused, swapped = await swap(broken), await swap(other)
                await until(lambda: "atlas-renderer" not in serve.status().applications)
                there = set(serve.status().applications)
                accepted, after = worker.progress.accepted, store.last_step
                await until(lambda: worker.progress.accepted >= accepted + 8 and store.last_step >= after + 4)
                worker.drain()
                await working
                evolving.cancel()
                with suppress(asyncio.CancelledError):
                    await evolving
        groups = [group for step in store.committed_steps() for group in store.groups(step)]
        rows = store.metrics()
    assert refused.state is SwapState.REFUSED
    assert "cluster_plugins:BrokenRenderer cannot be built: ValueError: no weights at port 0" in refused.message
    assert (swapped.state, swapped.identity) == (SwapState.DONE, "other null renderer"), swapped.message
    assert there == {"atlas-tools", "atlas-judge", "atlas-renderer-2"}
    drawn_by = [{t.provenance.renderer for t in group.trajectories} for group in groups]
    assert all(len(renderers) == 1 for renderers in drawn_by), "a group keeps its renderer"
    played = [t for group in groups for t in group.trajectories]
    assert {t.outcome for t in played} == {Outcome.SCORED}, "programs are valid, rendered and judged"
    sides = {(t.provenance.engine == OUTSIDE, t.provenance.renderer) for t in played}
    assert sides == {(side, name) for side in (True, False) for name in ("null renderer", "other null renderer")}
    assert len({str(t.key) for t in played}) == len(played) == rows[-1]["samples_consumed"]
