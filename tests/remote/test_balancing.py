"""Which server gets the next call: least busy, well, in turn; and one call at a time for one that failed."""

from __future__ import annotations

from contextlib import ExitStack

from genevolve_ray.remote.balancing import Servers

NAMES = ("a", "b", "c")


def test_idle_servers_take_turns() -> None:
    servers = Servers(NAMES)
    assert [servers.choose(0.0).url for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_the_least_busy_server_is_chosen() -> None:
    servers = Servers(NAMES)
    a, b, c = servers.all
    with a.busy(), a.busy(), b.busy(), b.busy(), c.busy():
        assert servers.choose(0.0) is c
    assert (a.running, b.running, c.running) == (0, 0, 0)


def test_a_server_that_hangs_gathers_no_more_calls_than_the_others() -> None:
    servers = Servers(("hangs", "works"))
    hangs, works = servers.all
    with ExitStack() as never_ends:
        for _ in range(100):
            # Eight calls are on the way to the one that works at any time.
            server = servers.choose(0.0)
            if server is hangs or works.running < 8:
                never_ends.enter_context(server.busy())
        assert hangs.running <= 9


def test_a_server_that_failed_is_passed_over_and_then_tried_by_one_call_at_a_time() -> None:
    servers = Servers(("a", "b"))
    a, b = servers.all
    a.let_down(now=0.0, cooldown=10.0)
    assert {servers.choose(5.0) for _ in range(4)} == {b}
    with b.busy():
        trial = servers.choose(11.0)
        assert trial is a
        with trial.busy():
            assert servers.choose(11.0) is b
        a.answered(12.0)
        with a.busy():
            assert servers.choose(12.0).running == 1


def test_when_all_have_failed_the_one_that_may_be_tried_soonest_is() -> None:
    servers = Servers(NAMES)
    for server, now in zip(servers.all, (3.0, 1.0, 2.0), strict=True):
        server.let_down(now, cooldown=10.0)
    assert servers.choose(4.0).url == "b"


def test_a_server_that_asked_for_patience_is_left_alone_while_others_are_there() -> None:
    servers = Servers(("a", "b"))
    servers.all[0].asked_to_wait(now=0.0, seconds=30.0)
    assert {servers.choose(5.0).url for _ in range(3)} == {"b"}
    assert {servers.choose(31.0).url for _ in range(2)} == {"a", "b"}


def test_a_foreign_address_is_no_member() -> None:
    servers = Servers(("a",))
    servers.named("elsewhere").let_down(0.0, 10.0)
    assert servers.named("a") is servers.all[0] and not servers.all[0].failed
