"""A run in one process is given another renderer, and goes on with it when it is resumed."""

from __future__ import annotations

from pathlib import Path

from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.swaps import Swaps, SwapState

NEW = RendererSpec(type="genevolve_ray.atlas.renderer:AtlasRenderer", config={"slip": 0.5})


def config_of(steps: int) -> RunConfig:
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.1, tool_calls: 1}",
            f"loop={{steps: {steps}, requests_per_step: 1, group_size: 2, validate_every: 0, parity_limit: 1.0}}",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "heldout.requests=0",
        ],
    )


def renderers(store: RunStore, step: int) -> set[str]:
    return {t.provenance.renderer for group in store.groups(step) for t in group.trajectories}


def test_groups_change_the_renderer_and_a_resumed_run_keeps_the_new_one(tmp_path: Path) -> None:
    swaps, run = Swaps(Folder(str(tmp_path / "run"))), tmp_path / "run"
    swaps.ask(NEW)
    evolve_run(config_of(10), run, in_process=True)
    new, [swap] = NEW.build().identity, swaps.all()
    assert (swap.state, swap.identity) == (SwapState.DONE, new)
    store = RunStore.read(str(run))
    assert renderers(store, 1) <= {AtlasRenderer().identity, new}
    assert renderers(store, 10) == {new}
    evolve_run(config_of(11), run, in_process=True)
    assert renderers(RunStore.read(str(run)), 11) == {new}
