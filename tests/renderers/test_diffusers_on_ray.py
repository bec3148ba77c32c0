"""A diffusion pipeline as the generator of an evolution on Ray: engine and learner rehearse, its pictures are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers_helpers import LIGHT, pixels
from head_node import Head

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config
from benchmarks.world import default_policy
from genevolve_ray.cluster.launch import on_ray
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState, swapping
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.renderers.diffusers import DiffusersRenderer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
NAME, OTHER = "StableDiffusionImg2ImgPipeline", "FluxKontextPipeline"


def plugin(model_of: Callable[[str], Path], name: str) -> dict[str, Any]:
    settings = {"model": str(model_of(name)), "width": 64, "height": 64, "threads": 1, "device": "cpu", **LIGHT[name]}
    return {"type": "genevolve_ray.renderers.diffusers:DiffusersRenderer", "config": settings}


@dataclass
class Evolved:
    """A run whose pipeline was replaced on the way."""

    first: dict[str, Any]
    """The plug-in that it began with."""
    store: RunStore
    swap: Swap


@pytest.fixture(scope="module")
def evolved(model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, shared_cluster: Head) -> Evolved:
    """One run on Ray for all tests of this module: to load pipelines, engines and Ray takes longer than its steps."""
    first, other = plugin(model_of, NAME), RendererSpec.model_validate(plugin(model_of, OTHER))
    run = tmp_path_factory.mktemp("pipes") / "run"
    swap = asyncio.run(evolve(run, first, other, shared_cluster.address))
    return Evolved(first, RunStore.read(str(run)), swap)


async def evolve(run: Path, first: dict[str, Any], other: RendererSpec, address: str) -> Swap:
    """Evolve for two steps, replace the pipeline, go on for four steps, and return what became of the replacement."""
    policy = default_policy()
    config = rehearsal_config(
        Options(policy),
        "loop.steps=100000",
        "loop.mode=async",
        "loop.requests_per_step=2",
        "loop.group_size=2",
        "rehearsal.step_seconds=0.1",
        "cluster.start_timeout=500",
        f"renderer={json.dumps(first)}",
        f"cluster.address={address}",
    )
    with RunStore.open(str(run), config, run_seed=1, keep=config.checkpoints) as store:
        requests, swaps = config.requests.build(store.images), Swaps(Folder(str(run)))
        async with on_ray(config, run_name="pipes", images_uri=store.images.uri, model_dir=policy) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, NullMonitor())
            async with swapping(swaps, ports.renderers, loop.generations, NullMonitor(), poll_seconds=0.2):
                running = asyncio.create_task(loop.run(await loop.start()))

                async def until(condition: Callable[[], bool]) -> None:
                    while not condition():
                        assert not running.done(), "the run came to its end first"
                        await asyncio.sleep(0.1)

                await until(lambda: store.last_step >= 2)
                number = swaps.ask(other).number
                await until(lambda: swaps.get(number).state is not SwapState.ASKED)
                after = store.last_step
                await until(lambda: store.last_step >= after + 4)
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
        return swaps.get(number)


def test_a_step_on_ray_is_rendered_by_a_pipeline(evolved: Evolved) -> None:
    store = evolved.store
    assert store.metrics()[0]["valid_fraction"] == 1.0
    here = DiffusersRenderer(DiffusersRenderer.Config.model_validate(evolved.first["config"]))
    pictures = {}
    for group in store.groups(1):
        for played in group.trajectories:
            assert played.outcome is Outcome.SCORED, played.reason
            assert played.provenance.renderer == here.identity
            assert played.program is not None
            assert played.rendered is not None
            shown = [played.images[r.img_id].image for r in played.program.reference_images]
            seed, prompt = played.provenance.render_seed, played.program.gen_prompt
            again = asyncio.run(here.render(prompt, [store.images.get(image) for image in shown], seed))
            assert store.images.get(played.rendered) == again
            assert pixels(again).shape == (64, 64, 3)
            pictures[seed] = again
    assert len(set(pictures.values())) == 2, "each request has a seed of its own, and so a picture"


def test_another_pipeline_takes_over_while_the_run_goes_on(evolved: Evolved) -> None:
    assert evolved.swap.state is SwapState.DONE, evolved.swap.message
    store = evolved.store
    groups = [group for step in store.committed_steps() for group in store.groups(step)]
    rows = store.metrics()
    drawn_by = [{t.provenance.renderer for t in group.trajectories} for group in groups]
    assert all(len(renderers) == 1 for renderers in drawn_by)
    assert NAME in min(drawn_by[0]) and OTHER in min(drawn_by[-1])
    assert {t.outcome for group in groups for t in group.trajectories} == {Outcome.SCORED}
    assert rows[-1]["samples_consumed"] == 2 * 2 * len(rows)
    assert {row["samples_discarded"] for row in rows} == {0}
