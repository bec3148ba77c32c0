"""A renderer replaced under a running evolution on real Ray: no trajectory lost, no group with two renderers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_run import build_model, run_config
from head_node import Head

from genevolve_ray.cluster.launch import on_ray
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState, swapping
from genevolve_ray.records.trajectory import Outcome

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SAMPLES = 2 * 3


async def until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    """Wait for a condition while the run goes on; what ends the run is raised."""
    while not condition():
        if running.done():
            running.result()
            pytest.fail("the run came to its end first")
        await asyncio.sleep(0.1)


async def test_a_renderer_is_replaced_between_groups(tmp_path: Path, shared_cluster: Head) -> None:
    from ray import serve

    config = run_config(
        tmp_path,
        "rehearsal={turn_seconds: 0.02, tool_calls: 1, step_seconds: 0.1}",
        "loop={steps: 100000, requests_per_step: 2, group_size: 3, mode: async, validate_every: 0, checkpoint_every: 1000}",
        "experience.enabled=false",
        "learner.ved.coefficient=0",
        f"cluster.address={shared_cluster.address}",
    )
    model = build_model(tmp_path / "model")

    def spec(name: str) -> RendererSpec:
        return RendererSpec.model_validate(config.renderer.model_dump() | {"type": f"cluster_plugins:{name}"})

    run = tmp_path / "run"
    with RunStore.open(str(run), config, run_seed=1, keep=config.checkpoints) as store:
        requests, swaps = config.requests.build(store.images), Swaps(Folder(str(run)))
        async with on_ray(config, run_name="swap", images_uri=store.images.uri, model_dir=model) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, NullMonitor())
            async with swapping(swaps, ports.renderers, loop.generations, NullMonitor(), poll_seconds=0.1):
                running = asyncio.create_task(loop.run(await loop.start()))

                async def swapped(renderer: RendererSpec) -> Swap:
                    number = swaps.ask(renderer).number
                    await until(lambda: swaps.get(number).state is not SwapState.ASKED, running)
                    return swaps.get(number)

                await until(lambda: store.last_step >= 2, running)
                refused = await swapped(spec("BrokenRenderer"))
                done = await swapped(spec("SecondRenderer"))
                await until(lambda: "swap-renderer" not in serve.status().applications, running)
                there = set(serve.status().applications)
                after = store.last_step
                await until(lambda: store.last_step >= after + 4, running)
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
        groups = [group for step in store.committed_steps() for group in store.groups(step)]
        rows = store.metrics()
    assert refused.state is SwapState.REFUSED
    assert "cluster_plugins:BrokenRenderer cannot be built: ValueError: no weights at port 0" in refused.message
    assert (done.state, done.identity) == (SwapState.DONE, "grey/2")
    assert there == {"swap-tools", "swap-judge", "swap-renderer-2"}
    renderers = [{t.provenance.renderer for t in group.trajectories} for group in groups]
    assert all(len(group) == 1 for group in renderers)
    assert renderers[0] == {"grey/1"}
    assert renderers[-1] == {"grey/2"}
    assert {t.outcome for group in groups for t in group.trajectories} == {Outcome.SCORED}
    assert len(groups) == 2 * len(rows)
    assert rows[-1]["samples_consumed"] == SAMPLES * len(rows)
    assert {row["samples_discarded"] for row in rows} == {0}
