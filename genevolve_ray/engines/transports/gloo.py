"""Weight transfer over gloo, for CPUs: both ends.

It is vLLM's NCCL transfer with another communicator. Rendezvous, order of calls, checks of the sent weights and
layer-wise loading are inherited. Tests on a CPU therefore cover the code that runs on GPUs, except the copying itself:
there vLLM packs tensors into pieces on GPU streams, here `packing` does the same on CPUs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import ParamMeta
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from genevolve_ray.engines.transports import packing
from genevolve_ray.engines.transports.protocol import EngineControl, Meeting, WeightSource


class GlooGroup:
    """Broadcast from rank 0, in a group that is independent of other groups of torch.distributed in this process."""

    def __init__(self, address: str, port: int, rank: int, size: int, timeout: float) -> None:
        """Join the group. Raises torch's DistStoreError when the others do not join in time."""
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=limit)
        self._group: Any = dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, size, limit)

    def start(self, tensor: torch.Tensor) -> packing.Travel:
        """Begin to send a contiguous tensor to all others, or to receive it. Raises RuntimeError in a closed group."""
        if self._group is None:
            raise RuntimeError("the group is closed")
        travel: packing.Travel = self._group.broadcast(tensor, 0)
        return travel

    def destroy(self) -> None:
        """Leave the group: a broadcast in progress ends with an error here and at every other member."""
        group, self._group = self._group, None
        if group is not None:
            # The connections close with the last reference; `abort` releases the one that a broadcast holds.
            group.abort()


@dataclass(kw_only=True)
class GlooInitInfo(NCCLWeightTransferInitInfo):  # type: ignore[misc]
    """Describe a group to an engine, as for NCCL, with the seconds it may wait for the others."""

    timeout: float = 300.0


@dataclass
class GlooTrainerInitInfo(NCCLTrainerInitInfo):  # type: ignore[misc]
    """Describe a group to the learner's end."""

    backend: ClassVar[str] = "gloo"
    timeout: float = 300.0


class GlooReceiver(NCCLWeightTransferEngine):  # type: ignore[misc]
    """Receive at an engine: tensors come in pieces and are loaded layer by layer."""

    init_info_cls = GlooInitInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Enter a group."""
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        rank = init_info.rank_offset + self.parallel_config.rank
        self.model_update_group = GlooGroup(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.timeout
        )

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive; there is no accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive the announced tensors, and load each piece while the next one arrives."""
        if self.model_update_group is None:
            raise RuntimeError("the engine is in no group")
        named = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        forms = [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in named]
        packing.receive(forms, self.packed_buffer_size_bytes, self.model_update_group.start, self.model.load_weights)


class GlooSender(NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
    """Send at the learner."""

    init_info_cls = GlooTrainerInitInfo

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: EngineControl, source: WeightSource | None = None
    ) -> GlooSender:
        """Join the group while the engines receive its address."""
        engine = cls(client=client, source=source, packed_buffer_size_bytes=init_info.packed_buffer_size_bytes)
        place = (init_info.master_address, init_info.master_port)
        told = GlooInitInfo(
            master_address=place[0],
            master_port=place[1],
            rank_offset=1,
            world_size=init_info.world_size,
            packed_buffer_size_bytes=init_info.packed_buffer_size_bytes,
            timeout=init_info.timeout,
        )
        with ThreadPoolExecutor(max_workers=1) as threads:
            joined = threads.submit(client.init_weight_transfer_engine, worker_init_payload(told))
            engine.model_update_group = GlooGroup(*place, 0, init_info.world_size, init_info.timeout)
            joined.result()
        return engine

    def _broadcast(self, source: WeightSource, meta: list[Any]) -> None:
        pairs = self._checked_iter(source, meta)
        packing.send(pairs, meta, self.packed_buffer_size_bytes, self.model_update_group.start)


def settings_of(meeting: Meeting, source: WeightSource) -> GlooTrainerInitInfo:
    """Return the settings of the learner's end."""
    return GlooTrainerInitInfo(
        **meeting.place(), packed_buffer_size_bytes=meeting.piece_bytes, timeout=meeting.timeout, rank=0
    )


WeightTransferTrainerFactory.register_engine("gloo", GlooSender)
