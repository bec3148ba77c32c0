"""Renderer and judge in the process beside a run: results and failures arrive, a death is one call's failure."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from genevolve_ray.config import load_config
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.beside import PluginProcess, plugins_beside
from genevolve_ray.evolution.plugins import JudgeSpec, RendererSpec
from genevolve_ray.records.base import Config


class Calculator:
    """A plug-in in two roles that says where it is."""

    Config = Config
    identity, blocking = "calculator/1", True

    def __init__(self, config: Config) -> None:
        self.calls = 0

    async def render(self, what: str, *rest: Any) -> Any:
        if what == "fail":
            raise InfraFailure("the canvas is torn")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait":
            await asyncio.sleep(0)
        self.calls += 1
        return os.getpid(), self.calls, what, *rest

    judge = render


SPECS = {
    "renderer": RendererSpec(type="test_beside:Calculator"),
    "judge": JudgeSpec(type="test_beside:Calculator"),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def process() -> AsyncIterator[PluginProcess]:
    process = PluginProcess(SPECS)
    yield process
    await process.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_calls_are_made_there_and_everything_else_here(process: PluginProcess) -> None:
    here = Calculator(Config())
    renderer, judge = process.stand_in("renderer", here), process.stand_in("judge", here)
    assert (renderer.identity, renderer.calls) == ("calculator/1", 0)
    there, calls, *arguments = await renderer.render("a", b"b", 3)
    assert there != os.getpid() and arguments == ["a", b"b", 3] and here.calls == 0
    assert (await judge.judge("a"))[0] == there
    assert (await renderer.render("a"))[1] == calls + 1
    assert process.stand_in("tools", here) is here


@pytest.mark.asyncio(loop_scope="module")
async def test_failures_keep_their_class(process: PluginProcess) -> None:
    renderer = process.stand_in("renderer", Calculator(Config()))
    with pytest.raises(InfraFailure, match="the canvas is torn"):
        await renderer.render("fail")
    with pytest.raises(TypeError, match=r"Calculator.render waits"):
        await renderer.render("wait")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_that_dies_fails_its_calls_and_is_replaced(process: PluginProcess) -> None:
    renderer = process.stand_in("renderer", Calculator(Config()))
    before = (await renderer.render("a"))[0]
    outcomes = await asyncio.gather(*(renderer.render("die") for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InfraFailure] * 3
    assert "the process of the renderer died" in str(outcomes[0])
    assert (await renderer.render("a"))[0] not in (before, os.getpid())


@pytest.mark.parametrize(
    "overrides",
    [
        ["deterministic=true", "engine.kind=transformers"],
        ["engine.kind=transformers"],
        ["rehearsal={}"],
        ["renderer={type: 'benchmarks.null_parts:Renderer'}", "judge={type: 'benchmarks.null_parts:Judge'}"],
    ],
)
async def test_some_runs_keep_their_plug_ins(overrides: list[str]) -> None:
    async with plugins_beside(load_config("atlas", overrides)) as process:
        assert process is None


async def test_one_core_keeps_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genevolve_ray.evolution.beside._cores", lambda: 1)
    async with plugins_beside(load_config("atlas")) as process:
        assert process is None


async def test_the_process_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genevolve_ray.evolution.beside._cores", lambda: 2)
    config = load_config("atlas").model_copy(update={"renderer": SPECS["renderer"]})
    async with plugins_beside(config) as process:
        assert process is not None
        pid = (await process.stand_in("renderer", Calculator(Config())).render("a"))[0]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
