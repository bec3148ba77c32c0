"""Checksums of tensors that do not depend on the order in which their elements are added up.

A checksum is the sum of a mixed number for each element, modulo 2^64. Sums over the shards of a tensor therefore add up
to the sum over the tensor, on any device and for any number of ranks. Zeros count nothing, so padding does not matter.
The numbers recognize accidents, such as a tensor that was not updated. They do not resist a deliberate forgery.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

WORD = 8
"""Bytes that are mixed together where the rows of a tensor hold a multiple of them; it halves the work at least."""
_WRAP = 1 << 64
_FACTOR = 0x9E3779B97F4A7C15 - _WRAP
_PIECE_CPU, _PIECE = 1 << 17, 1 << 24
_KINDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def word_of(row_bytes: int, itemsize: int) -> int:
    """Return the bytes that are mixed together in a tensor with rows of `row_bytes` bytes."""
    return WORD if row_bytes % WORD == 0 and row_bytes else itemsize


def checksum(tensor: Tensor, *, word: int | None = None, ordered: bool = False, start: int = 0) -> int:
    """Return the checksum of a tensor's values, between -2^63 and 2^63 - 1.

    Args:
        tensor: of any shape and dtype, on any device.
        word: bytes that are mixed together, at least those of an element; by default `word_of` its rows.
        ordered: weigh each element by its position. Small tensors often hold few different values, which an update may
            only exchange.
        start: words of the whole tensor before this part of it, by which `ordered` counts.
    """
    if not tensor.numel():
        return 0
    size = tensor.element_size()
    if word is None:
        word = word_of(tensor.shape[-1] * size if tensor.ndim else size, size)
    flat = tensor.detach().contiguous().view(-1)
    words = flat.view(_KINDS[word]) if word >= size else flat.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for piece in words.split(_PIECE_CPU if tensor.device.type == "cpu" else _PIECE):
        mixed = piece.to(torch.int64) * _FACTOR
        mixed ^= mixed >> 32
        if ordered:
            mixed *= 2 * torch.arange(start, start + len(piece), device=tensor.device) + 1
            start += len(piece)
        total += mixed.sum()
    return int(total)


def tensor_checksum(tensor: Tensor) -> int:
    """Return the checksum by which a published tensor is compared: of a vector with positions."""
    return checksum(tensor, ordered=tensor.ndim <= 1)


def added(checksums: Iterable[int]) -> int:
    """Return the sum of checksums, as that of all their tensors together."""
    return wrapped(sum(checksums))


def wrapped(number: int) -> int:
    """Return a number modulo 2^64, between -2^63 and 2^63 - 1."""
    return (number + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)
