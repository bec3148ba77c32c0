"""The parts of a transfer at the learner's end: the weights, the calls on the engines, and the rendezvous."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 256 << 20
"""Usual size of the pieces in which weights travel; a larger tensor is a piece of its own."""


class WeightSource(Protocol):
    """Yield a model's tensors, by the two channels of vLLM's own `WeightSource` that its transfers read."""

    def metadata(self) -> list[Any]:
        """Return name, dtype and shape of each tensor, in the order of a pass."""
        ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and whole tensor."""
        ...


class EngineControl(Protocol):
    """Make the calls of the learner's end on all engines together (vLLM's `VLLMWeightSyncClient`)."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have every engine enter the group."""
        ...

    def start_weight_update(self) -> None:
        """Have every engine expect weights."""
        ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have every engine receive some weights."""
        ...

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Inform every engine that all weights have been sent."""
        ...


@dataclass(frozen=True)
class Meeting:
    """Describe a group: the learner's rank 0, and every process of every engine.

    Attributes:
        address: `host:port` of the rendezvous.
        size: processes in total.
        timeout: seconds that each waits for the others.
        piece_bytes: size of the pieces in which weights travel.
    """

    address: str
    size: int
    timeout: float
    piece_bytes: int = PIECE_BYTES

    def place(self) -> dict[str, Any]:
        """Return the rendezvous address of a vLLM group, under the names of its settings."""
        host, _, port = self.address.rpartition(":")
        return {"master_address": host, "master_port": int(port), "world_size": self.size}
