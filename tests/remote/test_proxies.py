"""Proxies of the environment: used for services elsewhere, never for loopback, and named in every failure."""

from __future__ import annotations

import os
import sys

import pytest
from scripted_server import Reply, in_turn, serving

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.remote.client import Answer, Remote, ServiceRefusal
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.remote.proxies import ServiceProxy, is_loopback, mounted, proxy_for


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def client(url: str) -> Remote:
    return Remote(RemoteConfig(url=url, attempts=1, backoff_s=0), "judge")


async def test_a_service_elsewhere_is_called_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(in_turn(Reply({"answer": 1}))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert await client("http://service.test/v1").call("x", Answer.object, body={}) == {"answer": 1}
    assert [call.path for call in proxy.calls] == ["http://service.test/v1/x"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_called_directly(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(in_turn(Reply({}))) as server:
        await client(server.url.replace("127.0.0.1", host)).call("x", Answer.object, body={})
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("variable", "address", "url"),
    [
        ("HTTP_PROXY", "http://me:pass-word@127.0.0.1:1", "http://service.test/v1"),
        ("https_proxy", "http://127.0.0.1:1", "https://service.test/v1"),
        ("ALL_PROXY", "127.0.0.1:1", "http://service.test/v1"),
    ],
)
async def test_a_failure_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str, url: str
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(InfraFailure, match=rf"through the proxy http://.*127\.0\.0\.1:1 of {variable}\)") as caught:
        await client(url).call("x", Answer.object, body={})
    assert "pass-word" not in str(caught.value)


async def test_a_refusal_of_the_proxy_names_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(in_turn(Reply(b"log in", 407))) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(ServiceRefusal, match=r"status 407: log in \(through the proxy .* of HTTP_PROXY\)"):
            await client("http://service.test").call("x", Answer.object, body={})


@pytest.mark.parametrize("address", ["ftp://proxy:1", "http://", "http://host:notaport", "socks4://h:1"])
def test_an_address_that_is_no_proxy_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(UserFault, match="^environment variable HTTPS_PROXY: .* is no proxy"):
        mounted(("https://service.test/v1",))
    assert mounted(("http://127.0.0.1/v1",)) == {}


def test_a_socks_proxy_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(UserFault, match="^environment variable ALL_PROXY: .*socksio"):
        mounted(("https://service.test/v1",))


def test_socks_proxies_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("socksio")
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:1080")
    assert list(mounted(("https://service.test/v1",))) == ["https://service.test"]


def test_the_workers_of_a_gateway_follow_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy")
    GatewayClient("https://127.0.0.1:8443", "token")
    with pytest.raises(UserFault, match="HTTPS_PROXY"):
        GatewayClient("https://gateway.test", "token")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("gpu.localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("::2", False),
    ],
)
def test_loopback_is_known_by_name_and_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("listed", "url", "direct"),
    [
        ("*", "http://a.b", True),
        ("b.c", "http://a.b.c", True),
        (".b.c", "http://a.b.c", True),
        ("*.b.c", "http://a.b.c", True),
        ("b.c", "http://ab.c", False),
        ("other, a.b:8000", "http://a.b:8000", True),
        ("a.b:8000", "http://a.b:9000", False),
        ("10.0.0.0/8", "http://10.1.2.3:8000/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("[fd00::]/8", "http://[fd00::1]/v1", False),
        ("fd00::/8", "http://[fd00::1]/v1", True),
        ("", "http://a.b", False),
        (" , ", "http://a.b", False),
    ],
)
def test_no_proxy_takes_names_ports_and_networks(
    monkeypatch: pytest.MonkeyPatch, listed: str, url: str, direct: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", listed)
    assert (proxy_for(url) is None) is direct


def test_lower_case_wins_and_the_scheme_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert proxy_for("https://a.b") == ServiceProxy("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://upper:1")
    assert proxy_for("https://a.b") == ServiceProxy("HTTPS_PROXY", "http://upper:1")
    monkeypatch.setenv("https_proxy", "http://lower:1")
    assert proxy_for("https://a.b") == ServiceProxy("https_proxy", "http://lower:1")
    assert proxy_for("http://a.b") == ServiceProxy("ALL_PROXY", "http://all:1")
