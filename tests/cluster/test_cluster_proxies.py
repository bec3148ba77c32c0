"""Calls to services: retried where that may help, and typed failures after that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from cluster_fakes import FakeHandle, FakeMethod, remote_error
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from genevolve_ray.cluster.errors import await_remote
from genevolve_ray.cluster.inference import _ports
from genevolve_ray.cluster.proxies import (
    Caller,
    ServeGroupJudge,
    ServeJudge,
    ServeRenderer,
    connect,
    connect_judge,
    connect_judges,
)
from genevolve_ray.errors import InfraFailure, ToolArgumentError, UserFault
from genevolve_ray.evolution.inference import Wanted
from genevolve_ray.records.components import KSCORE_SCALES
from genevolve_ray.records.images import reference
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.protocol import EpisodeContext, ToolCard

OVERLOADED = BackPressureError(num_queued_requests=1, max_queued_requests=1)
PICTURE = reference(b"picture", width=8, height=8)


def caller(method: FakeMethod, attempts: int = 3, timeout: float = 5.0) -> Caller:
    return Caller("renderer", FakeHandle(render=method), attempts, timeout, backoff=0.0)


@pytest.mark.parametrize("fault", [ActorDiedError(), OVERLOADED], ids=["dead replica", "overloaded"])
async def test_a_call_is_tried_again_until_it_succeeds(fault: Exception) -> None:
    method = FakeMethod(fault, fault, PICTURE)
    assert await ServeRenderer("r", caller(method)).render("a heron", [PICTURE], seed=1) == PICTURE
    assert method.calls == 3


async def test_after_the_last_try_it_is_an_infrastructure_failure_that_names_the_service() -> None:
    method = FakeMethod(ActorDiedError())
    with pytest.raises(InfraFailure, match="renderer: render failed 3 times; last error: ActorDiedError"):
        await ServeRenderer("r", caller(method)).render("a heron", [], seed=1)
    assert method.calls == 3


async def test_a_call_that_takes_too_long_is_given_up() -> None:
    class Never:
        calls = 0

        async def remote(self, *arguments: Any) -> None:
            self.calls += 1
            await asyncio.Event().wait()

    never = Never()
    with pytest.raises(InfraFailure, match="failed 2 times; last error: TimeoutError"):
        await caller(never, attempts=2, timeout=0.01)("render")  # type: ignore[arg-type]
    assert never.calls == 2


async def test_a_call_that_is_given_up_is_cancelled_where_it_runs() -> None:
    class Reply:
        cancelled = 0

        def __await__(self) -> Any:
            return asyncio.Event().wait().__await__()

        def cancel(self) -> None:
            self.cancelled += 1

    class Method:
        def remote(self, *arguments: Any) -> Reply:
            return reply

    reply = Reply()
    with pytest.raises(InfraFailure, match="TimeoutError"):
        await caller(Method(), attempts=1, timeout=0.01)("render")  # type: ignore[arg-type]
    assert reply.cancelled == 1
    waiting = asyncio.create_task(caller(Method())("render"))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert reply.cancelled == 2


@pytest.mark.parametrize("error", [ToolArgumentError("no query"), InfraFailure("the source is down"), KeyError("x")])
async def test_what_a_plug_in_raises_arrives_as_itself_and_at_once(error: Exception) -> None:
    method = FakeMethod(remote_error(error))
    with pytest.raises(type(error)) as caught:
        await caller(method)("render")
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "Traceback: remote" in str(caught.value.__cause__)
    assert method.calls == 1


async def test_an_error_of_ray_itself_is_left_alone() -> None:
    with pytest.raises(ActorDiedError):
        await await_remote(FakeMethod(ActorDiedError()).remote())


def judge_caller(role: str, *, groups: bool, kscore: bool = True) -> Caller:
    methods = {
        "describe": FakeMethod("critic/1"),
        "components": FakeMethod(dict(KSCORE_SCALES)),
        "judges_groups": FakeMethod(groups),
        "gives_kscore": FakeMethod(kscore),
        "judge_group": FakeMethod(["verdicts"]),
    }
    return Caller(role, FakeHandle(**methods), 1, 5.0)


async def test_a_judge_of_groups_is_told_from_one_of_pictures() -> None:
    callers = {"judges.one": judge_caller("judges.one", groups=False), "tools": judge_caller("tools", groups=False)}
    callers["judges.order"] = order = judge_caller("judges.order", groups=True)
    found = await connect_judges(callers)
    assert isinstance(found["one"], ServeJudge) and list(found) == ["one", "order"]
    group_judge = found["order"]
    assert isinstance(group_judge, ServeGroupJudge) and group_judge.components == KSCORE_SCALES
    request = Request(id="r", prompt="a heron", eval_type=EvalType.QUALITY)
    assert await group_judge.judge_group(request, []) == ["verdicts"]
    with pytest.raises(UserFault, match="judges.order: critic/1 judges groups"):
        await connect_judge(order)


@dataclass
class Started:
    """The services of a command that were started, as `launched` returns them."""

    wanted: Wanted
    judge: Caller
    rollouts: Any = None

    def callers(self) -> dict[str, Caller]:
        return {"judge": self.judge}


async def test_a_judge_that_only_its_own_environment_can_load_is_asked_for_its_kscore_before_the_first_picture() -> (
    None
):
    launch: Any = Started(Wanted(judge=True), judge_caller("judge", groups=False, kscore=False))
    with pytest.raises(UserFault, match=r"^critic/1 gives no KScore, only .*kscore.*: name another judge$"):
        await _ports(launch)
    launch.wanted = Wanted(judge=True, panel=True)
    assert (await _ports(launch)).judge is not None
    launch.wanted, launch.judge = Wanted(judge=True), judge_caller("judge", groups=False)
    assert (await _ports(launch)).judge is not None


async def test_stand_ins_carry_what_the_services_say_of_themselves() -> None:
    card = ToolCard(name="search", description="finds facts", parameters={"type": "object"})
    call = FakeMethod("hits")
    tools, renderer, judge = await connect(
        Caller("tools", FakeHandle(describe=FakeMethod([card]), call=call), 1, 5.0),
        Caller("renderer", FakeHandle(describe=FakeMethod("painter/1")), 1, 5.0),
        judge_caller("judge", groups=False),
    )
    assert (renderer.identity, judge.identity) == ("painter/1", "critic/1")
    tool = tools["search"]
    assert (tool.description, tool.parameters) == ("finds facts", {"type": "object"})
    episode = EpisodeContext(request=Request(id="r", prompt="a heron", eval_type=EvalType.QUALITY))
    assert await tool.call({"query": "heron"}, episode) == "hits"
