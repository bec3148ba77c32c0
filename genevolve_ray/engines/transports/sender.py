"""The learner's end of a transfer: one interface over vLLM's own transfer families and those built like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 256 << 20
"""Size of the pieces in which weights travel between GPUs; a larger tensor is a piece of its own."""


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
    """

    address: str
    size: int
    timeout: float

    def place(self) -> dict[str, Any]:
        """Return the rendezvous address of a vLLM group, under the names of its settings."""
        host, _, port = self.address.rpartition(":")
        return {"master_address": host, "master_port": int(port), "world_size": self.size}


def open_sender(way: str, meeting: Meeting, source: WeightSource, control: EngineControl) -> Any:
    """Build a group with the engines, and return vLLM's end for the learner's rank 0: `send_weights()`, `shutdown()`.

    Args:
        way: nccl, ipc or gloo.
        meeting: the rendezvous of the group.
        source: the weights to send.
        control: makes the calls on the engines that belong to it.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    from genevolve_ray.engines.transports import gloo, ipc

    families = {"nccl": _nccl_settings, "gloo": gloo.settings_of, "ipc": ipc.settings_of}
    return WeightTransferTrainerFactory.trainer_init(families[way](meeting, source), client=control, source=source)


def _nccl_settings(meeting: Meeting, source: WeightSource) -> Any:
    """Return the settings of vLLM's NCCL transfer; it packs tensors into pieces of `BUFFER_BYTES`."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(**meeting.place(), packed_buffer_size_bytes=BUFFER_BYTES, rank=0)
