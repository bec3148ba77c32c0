"""What a replica used reaches the meter of whoever called it, also with a failure, through what Ray does to values."""

from __future__ import annotations

import pickle

import pytest
from cluster_fakes import FakeHandle, FakeMethod

from genevolve_ray.cluster.proxies import Caller, ServeRenderer
from genevolve_ray.cluster.replies import Reply, replied
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import reference
from genevolve_ray.records.usage import Usage, metered, record_usage
from genevolve_ray.remote.client import ServiceRefusal

PICTURE = reference(b"picture", width=8, height=8)
SPENT = Usage(calls=3, failed_calls=2, images=1, money=0.25)


async def paint(error: Exception | None = None) -> object:
    record_usage("renderer", SPENT)
    if error:
        raise error
    return PICTURE


async def shipped(error: Exception | None = None) -> Reply:
    reply = pickle.loads(pickle.dumps(await replied(paint(error))))
    assert isinstance(reply, Reply)
    return reply


def renderer(*replies: object) -> ServeRenderer:
    return ServeRenderer("r", Caller("renderer", FakeHandle(render=FakeMethod(*replies)), 3, 5.0, backoff=0.0))


async def test_usage_of_a_replica_is_the_callers() -> None:
    reply = await shipped()
    with metered() as meter:
        assert await renderer(reply).render("a heron", [], seed=1) == PICTURE
    assert meter.by_service == {"renderer": SPENT}


@pytest.mark.parametrize("error", [InfraFailure("gave up"), ServiceRefusal("no", 400)])
async def test_a_failure_arrives_as_itself_with_what_it_cost(error: InfraFailure) -> None:
    reply = await shipped(error)
    with metered() as meter, pytest.raises(type(error), match=str(error)):
        await renderer(reply).render("a heron", [], seed=1)
    assert meter.by_service == {"renderer": SPENT}


async def test_what_nobody_expects_is_no_reply() -> None:
    with pytest.raises(KeyError):
        await replied(paint(KeyError("x")))
