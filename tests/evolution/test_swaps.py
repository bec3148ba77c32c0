"""A renderer replaced under a running evolution: each group keeps its own, nothing is lost, a failure changes nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeRollouts, Recorder, Scene, evolve, make_config

from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.swaps import Swaps, SwapState, swapping

NEW = RendererSpec(type="painters:Gouache", config={"steps": 4})


class FakeHost:
    """Renderers as numbers; `fault` keeps the next one from coming up."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.live, self.gone = fault, [0], asyncio.Event()

    async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.live.append(generation)
        return f"{spec.type}/{generation}"

    async def remove_renderer(self, generation: int) -> None:
        self.live.remove(generation)
        self.gone.set()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def swaps_of(scene: Scene) -> Swaps:
    return Swaps(Folder(str(scene.folder / "run")))


def watched(evolution: Any, scene: Scene, host: FakeHost | None) -> Any:
    return swapping(swaps_of(scene), host, evolution.generations, evolution.monitor, poll_seconds=0)


async def until_ended(swaps: Swaps, number: int) -> None:
    while swaps.get(number).state is SwapState.ASKED:
        await asyncio.sleep(0)


async def test_groups_keep_their_renderer_and_later_ones_have_the_new(scene: Scene) -> None:
    host, rollouts = FakeHost(), FakeRollouts()
    evolution = scene.begin(make_config(steps=6), rollouts)

    async def ask_in_the_middle(task: RolloutTask) -> None:
        if task.key.step == 3 and not swaps_of(scene).all():
            swaps_of(scene).ask(NEW)
            await until_ended(swaps_of(scene), 1)  # this very sample is under way while the renderer changes
            assert host.live == [0, 1]

    rollouts.before = ask_in_the_middle
    async with watched(evolution, scene, host):
        await evolve(evolution)
        await host.gone.wait()
    assert host.live == [1]
    by_group: dict[tuple[int, str], set[int]] = defaultdict(set)
    for task in rollouts.tasks:
        by_group[task.key.step, task.key.request_id].add(task.renderer)
    assert all(len(renderers) == 1 for renderers in by_group.values())
    assert {renderer for [renderer] in by_group.values()} == {0, 1}
    manifests = evolution.store.manifests()
    assert len([path for m in manifests for path in m.groups]) == 6 * 2
    assert [m.loop["renderer_swap"] for m in manifests][0::5] == [0, 1]
    last = evolution.store.metrics()[-1]
    assert (last["samples_consumed"], last["samples_discarded"]) == (6 * 2 * 2, 0)


async def test_a_renderer_that_does_not_come_up_changes_nothing(scene: Scene) -> None:
    host, rollouts = FakeHost(fault=RuntimeError("no such\nmodel")), FakeRollouts()
    evolution = scene.begin(make_config(), rollouts)
    swaps_of(scene).ask(NEW)
    async with watched(evolution, scene, host):
        await until_ended(swaps_of(scene), 1)
        await evolve(evolution)
    swap = swaps_of(scene).get(1)
    assert (swap.state, swap.message) == (SwapState.REFUSED, "no such model")
    assert {task.renderer for task in rollouts.tasks} == {0}
    assert "swap 1 rejected; the renderer is unchanged: no such model" in evolution.monitor.notes
    assert swaps_of(scene).in_force() is None


async def test_the_last_swap_that_was_done_is_in_force_when_the_run_goes_on(scene: Scene) -> None:
    evolution = scene.begin(make_config())
    async with watched(evolution, scene, FakeHost()):
        for number in (1, 2):
            swaps_of(scene).ask(NEW.model_copy(update={"config": {"steps": number}}))
            await until_ended(swaps_of(scene), number)
    swaps_of(scene).ask(NEW)  # nobody has taken this one up
    swap = swaps_of(scene).in_force()
    assert swap is not None
    assert (swap.number, swap.renderer.config, swap.identity) == (2, {"steps": 2}, "painters:Gouache/2")


async def test_a_run_that_keeps_its_renderer_says_so(scene: Scene) -> None:
    evolution = scene.begin(make_config())
    swaps_of(scene).ask(NEW)
    async with watched(evolution, scene, None):
        await until_ended(swaps_of(scene), 1)
    assert "deterministic=true" in swaps_of(scene).get(1).message
    assert evolution.generations.current == 0


async def test_a_renderer_that_will_not_go_does_not_end_the_run(scene: Scene) -> None:
    class Clinging(FakeHost):
        async def remove_renderer(self, generation: int) -> None:
            raise RuntimeError("Serve does not answer")

    evolution = scene.begin(make_config())
    swaps_of(scene).ask(NEW)
    async with watched(evolution, scene, Clinging()):
        await until_ended(swaps_of(scene), 1)
        await evolve(evolution)
    assert "swap 1: the previous renderer could not be removed: Serve does not answer" in evolution.monitor.notes
    assert evolution.store.last_step == 3


async def test_a_damaged_request_is_told_once_and_ends_nothing(scene: Scene) -> None:
    evolution = scene.begin(make_config())
    folder = scene.folder / "run/swaps"
    folder.mkdir()
    (folder / "000001.json").write_text("{")
    monitor: Recorder = evolution.monitor  # type: ignore[assignment]
    async with watched(evolution, scene, FakeHost()), asyncio.timeout(10):
        while not monitor.notes:
            await asyncio.sleep(0)
        (folder / "000001.json").unlink()
        swaps_of(scene).ask(NEW)
        await until_ended(swaps_of(scene), 1)
    assert [note for note in monitor.notes if "corrupt" in note] == monitor.notes[:1]


async def test_a_generation_is_drained_when_the_last_that_holds_it_is_done() -> None:
    generations = RendererGenerations()
    with generations.hold() as first:
        with generations.hold() as second:
            generations.switch(1)
            waiting = asyncio.create_task(generations.drained(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (first, second, generations.current, waiting.done()) == (0, 0, 1, False)
    async with asyncio.timeout(5):
        await waiting
