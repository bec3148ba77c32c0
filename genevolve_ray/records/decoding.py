"""Untrusted pictures decoded in processes of their own, which are killed when one takes too long.

A decoder is C code that no thread can interrupt, and that a crafted file may crash. The process inherits no environment
variables, so it holds no token. The package `pebble` offers pools with such deadlines; they import the main module of
the caller in every process, which inside a Ray worker is Ray itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from genevolve_ray.records.pictures import ImageRefused, Picture, PictureLimits, clean_picture

DECODE_SECONDS = 20.0
"""Most seconds for one picture."""
SMALL_BYTES, _SMALL_PIXELS = 1 << 16, 1 << 16
"""Up to this size a picture takes about a millisecond, less than the way to another process."""
_MEMORY_BYTES = 6 << 30
"""Address space of a decoder."""
_HEAD = struct.Struct(">II")
"""Lengths of the JSON and of the bytes of a message."""
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")
"""Environment variables that a decoder inherits."""


def clean_apart(data: bytes, limits: PictureLimits | None = None, seconds: float = DECODE_SECONDS) -> Picture:
    """Return the result of `clean_picture` on untrusted bytes; large pictures are decoded in another process.

    It blocks: call it from a thread.

    Raises:
        ImageRefused: as `clean_picture`, and when decoding takes longer than `seconds` or ends the process.
    """
    limits = limits or PictureLimits()
    if (small := clean_small(data, limits)) is not None:
        return small
    found, encoded = _answer(data, {"limits": limits.model_dump(mode="json")}, seconds)
    return Picture(encoded, found["width"], found["height"], found["media_type"])


def check_apart(data: bytes, limits: PictureLimits, seconds: float = DECODE_SECONDS) -> None:
    """Check that untrusted bytes are a picture that `clean_picture` accepts. Raises ImageRefused."""
    if clean_small(data, limits) is None:
        _answer(data, {"limits": limits.model_dump(mode="json"), "check": True}, seconds)


def clean_small(data: bytes, limits: PictureLimits) -> Picture | None:
    """Return a small picture, decoded in this process; None for a large one, and for one that is not accepted.

    Raises:
        ImageRefused: for more bytes than the limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageRefused(f"{len(data)} bytes, allowed {limits.max_bytes}")
    if len(data) > SMALL_BYTES:
        return None
    # A small file may be a large picture: the smaller limit is checked on its header.
    small = limits.model_copy(update={"max_pixels": min(limits.max_pixels, _SMALL_PIXELS)})
    try:
        return clean_picture(data, small)
    except ImageRefused:
        return None


def _answer(data: bytes, head: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
    """Return the answer of a decoder. Raises ImageRefused."""
    with _GATE:
        answer, used = None, True
        # A process that was idle may have died for another reason than this picture: then a new one decides.
        while answer is None and used:
            decoder, used = _take()
            answer = decoder.ask(data, head, seconds)
    if answer is None:
        raise ImageRefused("the picture ended its decoder")
    if "refused" in answer[0]:
        raise ImageRefused(str(answer[0]["refused"]))
    return answer


class _Decoder:
    """Hold one process that decodes pictures, one at a time."""

    def __init__(self) -> None:
        """Start the process."""
        self.owner = os.getpid()
        package = str(Path(__file__).resolve().parents[2])
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "genevolve_ray.records.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)]), **kept, **threads},
            start_new_session=True,  # Ctrl-C in a terminal is for the caller alone, which closes the pipes.
        )

    def ask(self, data: bytes, head: dict[str, Any], seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer, None when the process ended without one; otherwise it can be used again.

        Raises:
            ImageRefused: when it took longer than `seconds`; the process is killed.
        """
        late, process = threading.Event(), self.process

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, head, data)
            answer = _receive(process.stdout)
        except (OSError, EOFError, ValueError):
            pass  # It has ended, or was ended.
        finally:
            timer.cancel()
            if answer is None or late.is_set():
                self.close()
            else:
                _IDLE.append(self)
        if answer is None and late.is_set():
            raise ImageRefused(f"decoding took longer than {seconds:g} s")
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_IDLE: list[_Decoder] = []
_GATE = threading.BoundedSemaphore(max(2, min(8, os.cpu_count() or 2)))
"""Bounds the pictures that are decoded at once, and so the memory of decoded pixels."""


def _end() -> None:
    """End the idle decoders of this process."""
    while _IDLE:
        if (decoder := _IDLE.pop()).owner == os.getpid():
            decoder.close()


atexit.register(_end)


def _take() -> tuple[_Decoder, bool]:
    """Return a decoder of this process, and whether it was used before."""
    while _IDLE:
        with contextlib.suppress(IndexError):  # Another thread was faster.
            decoder = _IDLE.pop()
            # A forked child must not share the pipes of its parent.
            if decoder.owner == os.getpid() and decoder.process.poll() is None:
                return decoder, True
    try:
        return _Decoder(), False
    except OSError as error:
        raise ImageRefused(f"no process to decode it: {error}") from error


def _send(pipe: IO[bytes], head: object, data: bytes) -> None:
    text = json.dumps(head).encode()
    pipe.write(_HEAD.pack(len(text), len(data)) + text)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return a message. Raises EOFError when the other side has ended."""
    sizes = pipe.read(_HEAD.size)
    if len(sizes) < _HEAD.size:
        raise EOFError
    text, data = _HEAD.unpack(sizes)
    head, body = pipe.read(text), pipe.read(data)
    if len(body) < data:
        raise EOFError
    found: dict[str, Any] = json.loads(head)
    return found, body


def _serve() -> None:
    """Decode the pictures of the parent until it closes its end."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            head, data = _receive(source)
        except EOFError:
            return
        try:
            picture = clean_picture(data, PictureLimits.model_validate(head["limits"]))
        except ImageRefused as error:
            _send(sink, {"refused": str(error)}, b"")
            continue
        size = {"width": picture.width, "height": picture.height, "media_type": picture.media_type}
        _send(sink, size, b"" if head.get("check") else picture.data)


if __name__ == "__main__":
    _serve()
