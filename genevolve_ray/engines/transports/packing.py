"""Weights in pieces: tensors side by side in one buffer, and two pieces at a time.

While a piece travels, its sender gathers and packs the next one, and its receiver loads the last one. vLLM does this on
GPUs with two streams. Nothing travels before the optimizer's step: gradients of the last micro-batch are needed for
every weight, so a transfer cannot overlap the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes to which tensors are aligned in a piece: a view in another dtype must begin at a multiple of its size."""


class Form(Protocol):
    """Describe a tensor before it is there."""

    @property
    def name(self) -> str:
        """The published name."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it travels."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """The whole shape."""
        ...


class Travel(Protocol):
    """Represent a buffer on its way."""

    def wait(self) -> object:
        """Wait until it has arrived. Raises RuntimeError when an end is lost."""
        ...


@dataclass(frozen=True)
class Piece:
    """Describe one buffer: its tensors, the byte at which each begins, and the bytes in all."""

    forms: Sequence[Form]
    starts: Sequence[int]
    size: int


def pieces(forms: Sequence[Form], limit: int) -> Iterator[Piece]:
    """Yield the pieces of at most `limit` bytes in which tensors travel, in order; a larger tensor is one of its own."""
    held: list[Form] = []
    starts: list[int] = []
    end = 0
    for form in forms:
        start, size = math.ceil(end / _ALIGNMENT) * _ALIGNMENT, math.prod(form.shape) * form.dtype.itemsize
        if held and start + size > limit:
            yield Piece(held, starts, end)
            held, starts, start = [], [], 0
        held.append(form)
        starts.append(start)
        end = start + size
    if held:
        yield Piece(held, starts, end)


def send(
    tensors: Iterator[tuple[str, Tensor]], forms: Sequence[Form], limit: int, start: Callable[[Tensor], Travel]
) -> None:
    """Send tensors in the order of their forms; `start` begins to send a buffer of bytes."""
    last: Travel | None = None
    for piece in pieces(forms, limit):
        buffer = torch.empty(piece.size, dtype=torch.uint8)
        for begin, form in zip(piece.starts, piece.forms, strict=True):
            _, tensor = next(tensors)
            _view(buffer, begin, form).copy_(tensor)
        travel = start(buffer)
        if last is not None:
            last.wait()
        last = travel
    next(tensors, None)  # A source that yields more than it declared says so at its end.
    if last is not None:
        last.wait()


def receive(
    forms: Sequence[Form],
    limit: int,
    start: Callable[[Tensor], Travel],
    load: Callable[[list[tuple[str, Tensor]]], object],
) -> None:
    """Receive what `send` sends, and load each piece while the next one arrives; `start` begins to fill a buffer."""
    last: tuple[Piece, Tensor, Travel] | None = None
    for piece in pieces(forms, limit):
        # A buffer of its own for each: a loader may keep tensors of a layer until the last of them has arrived.
        buffer = torch.empty(piece.size, dtype=torch.uint8)
        travel = start(buffer)
        if last is not None:
            _load(*last, load)
        last = piece, buffer, travel
    if last is not None:
        _load(*last, load)


def _load(piece: Piece, buffer: Tensor, travel: Travel, load: Callable[[list[tuple[str, Tensor]]], object]) -> None:
    travel.wait()
    load([(form.name, _view(buffer, begin, form)) for begin, form in zip(piece.starts, piece.forms, strict=True)])


def _view(buffer: Tensor, begin: int, form: Form) -> Tensor:
    size = math.prod(form.shape) * form.dtype.itemsize
    return buffer[begin : begin + size].view(form.dtype).view(tuple(form.shape))
