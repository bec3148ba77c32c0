"""A diffusion pipeline as the generator of an evolution step on Ray: engine and learner rehearse, its pictures are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers_helpers import LIGHT, pixels

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config, rehearse
from benchmarks.world import default_policy
from genevolve_ray.evolution.store import RunStore
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.renderers.diffusers import DiffusersRenderer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
NAME = "StableDiffusionImg2ImgPipeline"


def test_a_step_on_ray_is_rendered_by_a_pipeline(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    settings = {"model": str(model_of(NAME)), "width": 64, "height": 64, "threads": 1, "device": "cpu", **LIGHT[NAME]}
    plugin = {"type": "genevolve_ray.renderers.diffusers:DiffusersRenderer", "config": settings}
    policy = default_policy()
    config = rehearsal_config(
        Options(policy),
        "loop.steps=1",
        "loop.requests_per_step=2",
        "loop.group_size=2",
        "cluster.start_timeout=500",
        f"renderer={json.dumps(plugin)}",
    )
    metrics = asyncio.run(rehearse(config, tmp_path / "run", policy))
    assert [row["valid_fraction"] for row in metrics] == [1.0]

    store = RunStore.read(str(tmp_path / "run"))
    here = DiffusersRenderer(DiffusersRenderer.Config.model_validate(settings))
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
