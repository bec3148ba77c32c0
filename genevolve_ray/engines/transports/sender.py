"""The learner's end of a transfer: one function over vLLM's own transfer families and those built like them."""

from __future__ import annotations

from typing import Any

from genevolve_ray.engines.transports.protocol import EngineControl, Meeting, WeightSource


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
    """Return the settings of vLLM's NCCL transfer; two pieces at a time are on their way."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(**meeting.place(), packed_buffer_size_bytes=meeting.piece_bytes, rank=0)
