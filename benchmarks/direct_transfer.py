"""A transfer of weights from a learner in this process into one vLLM engine, by the calls that a run makes through Ray."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genevolve_ray.engines.protocol import Probe
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.learning.outgoing import OutgoingWeights

_SECONDS = 60.0


class DirectTransfer:
    """Send the weights of a source to an engine that was started with `transfer=way`; the group is made once."""

    def __init__(self, way: str, engine: VllmEngine, source: OutgoingWeights) -> None:
        """Keep both ends; `way` is ipc (one GPU) or gloo (CPUs)."""
        from genevolve_ray.engines.transports.queue import TransferQueue

        self._way, self._engine, self._source = way, engine, source
        self._calls = TransferQueue()
        self._loop = asyncio.get_running_loop()
        self._end: Any = None

    async def send(self, version: int, probe: Probe | None = None) -> float:
        """Send the current weights as a version; return the probe difference. Raises WeightUpdateError."""
        from genevolve_ray.engines.transports.queue import TransferQueue

        self._calls = TransferQueue()
        receiving = asyncio.ensure_future(self._engine.receive(self._calls.calls(), version, probe))
        try:
            await asyncio.to_thread(self._send)
        except BaseException as error:
            self._calls.close(str(error))
            await asyncio.wait([receiving])
            raise
        return await receiving

    def close(self) -> None:
        """Leave the group."""
        if self._end is not None:
            self._end.shutdown()

    def _send(self) -> None:
        if self._end is None:
            # vLLM registers its own families; this one registers itself.
            import genevolve_ray.engines.transports.gloo  # noqa: F401
            from genevolve_ray.engines.transports.protocol import Meeting
            from genevolve_ray.engines.transports.sender import open_sender

            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            self._end = open_sender(self._way, Meeting(address, 2, _SECONDS), self._source, self)
        self._end.send_weights()

    # --- the calls of vLLM's end on the engine, from the thread that sends ---

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the engine enter the group."""
        self._deliver("join", init_info)

    def start_weight_update(self) -> None:
        """Have the engine expect weights."""
        self._deliver("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have the engine receive weights; handles of GPU memory are sent as plain values."""
        if handles := update_info.get("ipc_handles"):
            from genevolve_ray.engines.transports.ipc import plain_handles

            update_info = update_info | {"ipc_handles": plain_handles(handles)}
        self._deliver("part", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Tell the engine that all weights have been sent."""
        self._deliver("finish")

    def _deliver(self, call: str, argument: dict[str, Any] | None = None) -> None:
        from genevolve_ray.engines.transports.queue import TransferCall

        delivered = self._calls.deliver(TransferCall(call), argument)
        asyncio.run_coroutine_threadsafe(delivered, self._loop).result(timeout=_SECONDS)
