"""Connections: callers without a token cost little and shut nobody out, and a token has its own budget."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_helpers import House, house

from genevolve_ray.gateway.auth import Scope
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.config import LimitsConfig
from genevolve_ray.gateway.connections import ConnectionBudget, Connections, connection_budget
from genevolve_ray.gateway.http import HEAD_BYTES
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Held:
    """A connection that records that it was closed."""

    def __init__(self, *, busy: bool = False) -> None:
        self.owner: str | None = None
        self.busy, self.closed = busy, False

    def drop(self) -> None:
        self.closed = True


def _connections(holders: int = 10, strangers: int = 3, per_owner: int = 2) -> Connections:
    return Connections(ConnectionBudget(holders, strangers), per_owner)


@asynccontextmanager
async def connected(h: House, count: int = 1, **options: Any) -> AsyncIterator[list[Streams]]:
    """Open plain connections to the gateway."""
    port = int(h.server.url.rpartition(":")[2])
    streams = [await asyncio.open_connection("127.0.0.1", port, **options) for _ in range(count)]
    try:
        yield streams
    finally:
        for _, writer in streams:
            writer.close()


async def _end(reader: asyncio.StreamReader) -> bytes:
    """Return everything until the gateway closes the connection."""
    found = b""
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(1 << 16):
                found += piece
    except ConnectionError:
        pass
    return found


def test_the_oldest_stranger_leaves_for_a_new_one() -> None:
    connections, held = _connections(), [_Held() for _ in range(5)]
    for connection in held:
        connections.opened(connection)
    assert [c.closed for c in held] == [True, True, False, False, False]
    assert connections.counts()["strangers"] == 3


def test_a_token_has_a_budget_of_its_own() -> None:
    connections, busy = _connections(), [_Held(busy=True) for _ in range(3)]
    for connection in busy[:2]:
        connections.opened(connection)
        connections.admit(connection, "anna")
    connections.opened(busy[2])
    with pytest.raises(GatewayRefusal) as refused:
        connections.admit(busy[2], "anna")
    assert refused.value.reason is RefusalReason.RATE_LIMITED
    busy[0].busy = False  # its request was answered
    connections.admit(busy[2], "anna")
    assert busy[0].closed and not busy[1].closed
    other = _Held()
    connections.opened(other)
    connections.admit(other, "ben")
    assert connections.counts()["holders"] == 3


def test_when_all_places_are_taken_an_idle_connection_of_the_largest_owner_leaves() -> None:
    connections = _connections(holders=3, per_owner=3)
    held = [_Held() for _ in range(4)]
    for connection, owner in zip(held, ("anna", "anna", "ben", "carl"), strict=True):
        connections.opened(connection)
        connections.admit(connection, owner)
    assert [c.closed for c in held] == [True, False, False, False]
    for connection in held[1:]:
        connections.closed(connection)
    assert connections.counts()["holders"] == connections.counts()["strangers"] == 0


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "expected"),
    [
        (1024, 1 << 20, True, ConnectionBudget(2048, 2048)),
        (1 << 20, 1 << 20, False, ConnectionBudget(2048, 2048)),
        (600, 1024, True, ConnectionBudget(443, 147)),
    ],
)
def test_descriptors_are_raised_and_what_is_left_is_respected(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: bool, expected: ConnectionBudget
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    monkeypatch.setattr("psutil.Process.num_fds", lambda self: 50)
    budget = connection_budget(LimitsConfig())
    assert bool(limits) == raised and budget == expected
    used = 50 + 256 + 128 + budget.holders + budget.strangers
    assert used <= (limits[-1][0] if limits else soft)


def test_too_few_descriptors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: None)
    with pytest.raises(ValueError, match="ulimit -n"):
        connection_budget(LimitsConfig())


async def test_connections_that_send_nothing_are_closed_and_callers_are_served(tmp_path: Path) -> None:
    async with house(tmp_path, limits={"strangers": 8, "head_seconds": 0.5}) as h, connected(h, 30) as idle:
        assert (await h.client(h.token("anna")).run()).run == "atlas"
        assert h.server.gateway.connections is not None
        assert h.server.gateway.connections.counts()["strangers"] <= 9
        assert [await _end(reader) for reader, _ in idle] == [b""] * 30
        assert h.server.gateway.connections.counts()["strangers"] == 0


async def test_a_head_that_trickles_is_given_up(tmp_path: Path) -> None:
    async with house(tmp_path, limits={"head_seconds": 0.3}) as h, connected(h) as [(reader, writer)]:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.monotonic()
        while not reader.at_eof() and time.monotonic() - began < 5:
            writer.write(b"x")
            try:
                async with asyncio.timeout(0.02):
                    await reader.read(1)
            except (TimeoutError, ConnectionError):
                pass
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("line", [b"X: " + b"x" * 1000 + b"\r\n", b"a:b\r\n", b"x" * 1000])
async def test_a_huge_head_is_refused_at_its_first_kilobytes(tmp_path: Path, line: bytes) -> None:
    async with house(tmp_path) as h, connected(h) as [(reader, writer)]:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" if line.endswith(b"\n") else b"GET /healthz?")
        block, sent = line * (1 + (1 << 16) // len(line)), 0
        try:
            while sent < 100 << 20 and not reader.at_eof():
                writer.write(block)
                await writer.drain()
                sent += len(block)
        except ConnectionError:
            pass
        assert sent < 32 << 20, "the gateway read on"
    assert HEAD_BYTES <= 16 << 10


async def test_a_stranger_gets_an_answer_and_no_lasting_connection(tmp_path: Path) -> None:
    async with house(tmp_path) as h, connected(h) as [(reader, writer)]:
        writer.write(b"GET /v1/run HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        assert b"no_token" in await _end(reader)
        assert time.monotonic() - began < 5


async def test_a_body_without_a_token_is_not_read(tmp_path: Path) -> None:
    async with house(tmp_path) as h, connected(h) as [(reader, writer)]:
        writer.write(b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        sent = 0
        try:
            while sent < 100_000_000 and not reader.at_eof():
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            pass
        assert sent < 32 << 20


async def test_a_body_of_tiny_chunks_is_not_parsed_to_its_end(tmp_path: Path) -> None:
    async with house(tmp_path) as h, connected(h) as [(reader, writer)]:
        head = f"PUT /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {h.token('a')}\r\n"
        writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200_000)
        await _end(reader)
        assert h.server.gateway.meters.bytes_in == 0


async def test_calls_are_answered_without_delay(tmp_path: Path) -> None:
    async with house(tmp_path) as h, h.http(h.token("anna")) as http:
        await http.get("/v1/run")
        began = time.monotonic()
        for _ in range(20):
            assert (await http.get("/v1/run")).status_code == 200
        assert (time.monotonic() - began) / 20 < 0.03, "without TCP_NODELAY it is 0.044 s"


async def test_a_request_that_waits_ends_with_its_client(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        table = h.server.gateway.lease_table
        async with connected(h, 5) as streams:
            head = f"POST /v1/leases HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {h.token('a')}\r\nContent-Length: 24\r\n\r\n"
            for _, writer in streams:
                writer.write(head.encode() + b'{"count": 4, "wait": 30}')
            while len(table._askers) < 5:
                await asyncio.sleep(0.01)
        while table._askers:
            await asyncio.sleep(0.01)
        answer = asyncio.create_task(h.rollouts.rollout(h.task(0)))
        while not table.counts()["waiting"]:
            await asyncio.sleep(0.01)
        assert table.counts()["leased"] == 0, "nobody who has left takes a sample"
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def test_tls_connections_that_never_shake_hands_are_closed(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    tls = {"tls_key": str(key), "tls_certificate": str(certificate)}
    async with house(tmp_path, limits={"strangers": 8, "head_seconds": 0.5}, **tls) as h, connected(h, 20) as idle:
        client = GatewayClient(h.server.url, h.token("anna", Scope.ROLLOUT), ca_file=certificate)
        assert (await client.run()).run == "atlas"
        await client.close()
        assert [await _end(reader) for reader, _ in idle] == [b""] * 20
        assert h.server.gateway.connections is not None
        while h.server.gateway.connections.counts()[
            "strangers"
        ]:  # The server counts down after its peer reads the end.
            await asyncio.sleep(0.01)


def test_the_listening_socket_names_its_protocol(tmp_path: Path) -> None:
    async def proto() -> int:
        async with house(tmp_path) as h:
            assert h.server._socket is not None
            return h.server._socket.proto

    assert asyncio.run(proto()) == socket.IPPROTO_TCP
