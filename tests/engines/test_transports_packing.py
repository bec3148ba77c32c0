"""Tensors in pieces: where pieces end, that every value arrives, and that two pieces are on their way at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from genevolve_ray.engines.transports.packing import pieces, receive, send
from genevolve_ray.learning.outgoing import TensorForm

SHAPES = {
    "embed": ((40, 8), torch.float32),  # 1,280 bytes: larger than a piece
    "scale": ((3,), torch.int8),  # the next tensor must be aligned
    "norm": ((8,), torch.float64),
    "q": ((16, 8), torch.bfloat16),
    "empty": ((0, 8), torch.float32),
    "k": ((4, 8), torch.bfloat16),
    "bias": ((), torch.float32),
    "head": ((8, 40), torch.float32),
}
FORMS = [TensorForm(name, dtype, shape) for name, (shape, dtype) in SHAPES.items()]


def tensors() -> dict[str, Tensor]:
    """Random tensors; those with two axes are not contiguous."""
    generator = torch.Generator().manual_seed(1)
    made = {form.name: (torch.randn(form.shape, generator=generator) * 50).to(form.dtype) for form in FORMS}
    return {name: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor for name, tensor in made.items()}


def names(limit: int) -> list[list[str]]:
    return [[form.name for form in piece.forms] for piece in pieces(FORMS, limit)]


def test_a_piece_ends_before_the_tensor_that_it_cannot_hold() -> None:
    assert names(512) == [["embed"], ["scale", "norm", "q", "empty", "k", "bias"], ["head"]]
    assert names(1) == [[name] for name in SHAPES]
    assert names(1 << 20) == [list(SHAPES)]
    assert list(pieces([], 512)) == []


@pytest.mark.parametrize("limit", [1, 100, 512, 1 << 20])
def test_tensors_of_a_piece_are_aligned_and_do_not_overlap(limit: int) -> None:
    for piece in pieces(FORMS, limit):
        ends = [s + math.prod(f.shape) * f.dtype.itemsize for s, f in zip(piece.starts, piece.forms, strict=True)]
        assert all(start % 16 == 0 for start in piece.starts)
        assert all(end <= start for end, start in zip(ends, piece.starts[1:], strict=False))
        assert piece.size == ends[-1]
        assert piece.size <= limit or len([f for f in piece.forms if math.prod(f.shape)]) == 1


class Pair:
    """Two ranks of gloo in threads of this process."""

    def __init__(self) -> None:
        self.store = dist.HashStore()
        self.received: dict[str, Tensor] = {}

    def group(self, rank: int) -> Any:
        return dist.ProcessGroupGloo(self.store, rank, 2, timedelta(seconds=20))

    def carry(self, limit: int, sent: dict[str, Tensor]) -> None:
        def end() -> None:
            group = self.group(1)
            receive(FORMS, limit, lambda buffer: group.broadcast(buffer, 0), self.received.update)

        thread = threading.Thread(target=end)
        thread.start()
        group = self.group(0)
        send(iter(sent.items()), FORMS, limit, lambda buffer: group.broadcast(buffer, 0))
        thread.join(timeout=20)


@pytest.mark.parametrize("limit", [1, 512, 1 << 20])
def test_every_tensor_arrives_bit_for_bit(limit: int) -> None:
    pair, sent = Pair(), tensors()
    pair.carry(limit, sent)
    assert list(pair.received) == list(sent)
    for name, tensor in sent.items():
        assert pair.received[name].dtype == tensor.dtype
        assert torch.equal(pair.received[name], tensor), name


class Wire:
    """Notes when buffers begin to travel and when somebody waits for them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.count = 0

    def start(self, buffer: Tensor) -> Wire.Journey:
        self.events.append(f"start {self.count}")
        self.count += 1
        return Wire.Journey(self, self.count - 1)

    class Journey:
        def __init__(self, wire: Wire, number: int) -> None:
            self.wire, self.number = wire, number

        def wait(self) -> None:
            self.wire.events.append(f"wait {self.number}")


def test_the_next_piece_is_packed_while_one_travels_and_no_third_exists() -> None:
    wire = Wire()

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors().items():
            wire.events.append(name)
            yield name, tensor

    send(gathered(), FORMS, 512, wire.start)
    inner = ["scale", "norm", "q", "empty", "k", "bias"]
    assert wire.events == ["embed", "start 0", *inner, "start 1", "wait 0", "head", "start 2", "wait 1", "wait 2"]


def test_the_next_piece_arrives_while_one_is_loaded() -> None:
    wire = Wire()
    receive(FORMS, 512, wire.start, lambda loaded: wire.events.append(f"load {loaded[0][0]}"))
    assert wire.events == [
        *("start 0", "start 1", "wait 0", "load embed"),
        *("start 2", "wait 1", "load scale", "wait 2", "load head"),
    ]


def test_a_source_that_yields_more_than_it_declared_can_say_so() -> None:
    def checked() -> Iterator[tuple[str, Tensor]]:
        yield from tensors().items()
        raise ValueError("one tensor too many")

    with pytest.raises(ValueError, match="too many"):
        send(checked(), FORMS, 512, Wire().start)
