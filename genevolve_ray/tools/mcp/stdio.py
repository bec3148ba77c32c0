"""A server over its standard streams. Unlike the SDK's own transport, it bounds lines and stderr, and logs nothing of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage

TOO_LARGE = -32099
"""Code of the error in place of an answer that is too large to be read."""
_CHUNK = 1 << 16
_HEAD = 256
_ID = re.compile(rb'"id"\s*:\s*(\d{1,15})\b')
_MOST_JUNK = 100
"""Lines in a row that are no message, after which a server is given up."""
_GRACE_SECONDS = 1.0
_POLL_SECONDS = 0.01
_STDERR_BYTES = 4096

Incoming = SessionMessage | Exception


class Lines:
    """Split a stream of bytes into lines of bounded length."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes of a line."""
        self._limit, self._line, self._cut = limit, bytearray(), False

    def feed(self, chunk: bytes) -> list[tuple[bytes, bool]]:
        """Return the lines that end in a chunk, each with whether it was longer than allowed and only its head is kept."""
        ended = []
        *parts, rest = chunk.split(b"\n")
        for part in parts:
            self._add(part)
            ended.append((bytes(self._line), self._cut))
            self._line, self._cut = bytearray(), False
        self._add(rest)
        return ended

    def _add(self, part: bytes) -> None:
        if not self._cut:
            self._line += part
        if len(self._line) > self._limit:
            self._cut = True
            del self._line[_HEAD:]


class Tail:
    """Keep the end of what a server writes to stderr."""

    def __init__(self) -> None:
        """Start empty."""
        self._data = b""

    def add(self, data: bytes) -> None:
        """Append bytes; those beyond the last few thousand are dropped."""
        self._data = (self._data + data)[-_STDERR_BYTES:]

    def __str__(self) -> str:
        """Return its last line, cut to a length for messages."""
        lines = self._data.decode(errors="replace").split("\n")
        return next((" ".join(line.split())[-200:] for line in reversed(lines) if line.strip()), "")


@asynccontextmanager
async def stdio_streams(
    command: Sequence[str], env: Mapping[str, str], limit: int, said: Tail
) -> AsyncIterator[tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]]:
    """Start a server, and yield its incoming and outgoing messages; at the end it is stopped, and killed if need be.

    Args:
        command: program and arguments.
        env: variables besides the few that are inherited.
        limit: the largest message, bytes. A larger answer becomes an error of the code `TOO_LARGE`.
        said: receives the end of stderr.

    Raises:
        OSError: when the program cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=get_default_environment() | dict(env),
        start_new_session=True,
    )
    arrived, incoming = anyio.create_memory_object_stream[Incoming](0)
    outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(process, arrived, limit)),
        asyncio.create_task(_write(process, to_send, arrived)),
        asyncio.create_task(_listen(process, said)),
    ]
    try:
        yield incoming, outgoing
    finally:
        for stream in (incoming, outgoing, arrived, to_send):
            stream.close()
        for task in tasks:
            task.cancel()
        await _end(process)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(process: Process, arrived: MemoryObjectSendStream[Incoming], limit: int) -> None:
    assert process.stdout is not None
    lines, junk = Lines(limit), 0
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with arrived:
            while junk < _MOST_JUNK and (chunk := await process.stdout.read(_CHUNK)):
                for line, cut in lines.feed(chunk):
                    message = _too_large(line, limit) if cut else _message(line)
                    if message is None:
                        junk += bool(line.strip())
                    else:
                        junk = 0
                        await arrived.send(SessionMessage(message))


def _message(line: bytes) -> Any:
    """Return the message of a line, None where it holds none."""
    try:
        return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        return None


def _too_large(head: bytes, limit: int) -> types.JSONRPCError | None:
    """Return the error in place of an answer; one whose request cannot be told is lost, and its call runs out of time."""
    if (found := _ID.search(head)) is None:
        return None
    error = types.ErrorData(code=TOO_LARGE, message=f"the answer is larger than {limit} bytes")
    return types.JSONRPCError(jsonrpc="2.0", id=int(found[1]), error=error)


async def _write(
    process: Process, to_send: MemoryObjectReceiveStream[SessionMessage], arrived: MemoryObjectSendStream[Incoming]
) -> None:
    assert process.stdin is not None
    try:
        async for item in to_send:
            process.stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await process.stdin.drain()
    except OSError:
        arrived.close()  # The session sees the end, and no request waits for it.


async def _listen(process: Process, said: Tail) -> None:
    assert process.stderr is not None
    while data := await process.stderr.read(_CHUNK):
        said.add(data)


async def _end(process: Process) -> None:
    """Close the server's input, wait for its end, and kill its process group, which it alone forms."""
    assert process.stdin is not None
    # Pipes that a child of the server still holds would keep the transport open.
    with contextlib.closing(process._transport):  # type: ignore[attr-defined]
        process.stdin.close()
        try:
            await _exited(process)
        finally:  # Also where the wait is canceled.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        await _exited(process)


async def _exited(process: Process) -> None:
    """Wait a moment for the end of a process; `Process.wait` would also wait for pipes that nobody reads any more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            while process.returncode is None:  # noqa: ASYNC110  nothing else tells of it
                await asyncio.sleep(_POLL_SECONDS)
