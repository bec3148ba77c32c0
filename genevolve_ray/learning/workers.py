"""Threads that compute the micro-batches of a step side by side on a CPU.

The operations of a small model are too short to be divided among threads. Two threads with a micro-batch each use two
cores better than one micro-batch after the other with two threads inside each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from genevolve_ray.learning.batch import MicroBatch
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import Ranks

T = TypeVar("T")
_MOST = 2
"""More of them were not measured. Each holds gradients and activations of its own."""


class Workers:
    """Compute micro-batches on one thread each, and add up their gradients in an order that never changes."""

    def __init__(self, count: int = 1) -> None:
        """Prepare `count` threads, which share torch's threads; with 1 the caller's thread computes."""
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            inside = max(1, torch.get_num_threads() // count)
            self._pool = ThreadPoolExecutor(count, "micro-batches", lambda: torch.set_num_threads(inside))

    @staticmethod
    def of(config: LearnerConfig, ranks: Ranks, shared: bool) -> Workers:
        """Return the workers of a learner: several where one process trains on a CPU with several threads.

        Args:
            config: the settings.
            ranks: the ranks; a sharded model computes one micro-batch at a time.
            shared: whether policy and reference are one model that is switched between them.
        """
        alone = config.device == "cpu" and ranks.size == 1 and not ranks.sharded and not shared
        return Workers(min(_MOST, torch.get_num_threads()) if alone else 1)

    def map(self, work: Callable[[MicroBatch], T], batches: Sequence[MicroBatch]) -> list[T]:
        """Return the results of all micro-batches, computed without gradient."""

        def quiet(batch: MicroBatch) -> T:
            # Whether gradients are recorded is a setting of each thread.
            with torch.no_grad():
                return work(batch)

        return list(map(quiet, batches) if self._pool is None else self._pool.map(quiet, batches))

    def add_gradients(
        self,
        loss: Callable[[MicroBatch], tuple[Tensor, T]],
        batches: Sequence[MicroBatch],
        parameters: Sequence[nn.Parameter],
    ) -> list[T]:
        """Add the gradients of the losses of all micro-batches to the parameters; return what came with each loss."""
        if self._pool is None:
            found = []
            for batch in batches:
                value, rest = loss(batch)
                value.backward()
                found.append(rest)
            return found

        def share(first: int) -> tuple[list[Tensor | None], list[T]]:
            sums: list[Tensor | None] = [None] * len(parameters)
            rests = []
            for batch in batches[first :: self.count]:
                value, rest = loss(batch)
                _add(sums, torch.autograd.grad(value, parameters, allow_unused=True))
                rests.append(rest)
            return sums, rests

        results: list[T | None] = [None] * len(batches)
        for first, (sums, rests) in enumerate(self._pool.map(share, range(self.count))):
            for parameter, gradient in zip(parameters, sums, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            results[first :: self.count] = rests
        return results  # type: ignore[return-value]


def _add(sums: list[Tensor | None], gradients: Iterable[Tensor | None]) -> None:
    for place, gradient in enumerate(gradients):
        if gradient is not None:
            # A gradient may be a view that several parameters share, so that the first is copied.
            total = sums[place]
            sums[place] = gradient.clone() if total is None else total.add_(gradient)
