"""Sleep of a vLLM engine that shares its GPU with the learner: it keeps no weights and no cache until the next update.

The order of a synchronous step is: last rollout, sleep, learner step, wake of the weights' memory, load, wake of the
cache's memory, probe. vLLM keeps the addresses of its memory, so CUDA graphs stay valid. Never run on a GPU. On a CPU
vLLM frees nothing, but it pauses and resumes as on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genevolve_ray.engines.protocol import WeightUpdateError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_DROP_ALL = 2
"""vLLM's level at which weights are dropped instead of copied to the host: the next update replaces all of them."""


class SleepState:
    """Put an engine to sleep, and wake it in two parts around a load."""

    def __init__(self) -> None:
        """Begin awake."""
        self.asleep = False

    async def begin(self, llm: AsyncLLM) -> None:
        """Drop weights and cache. Requests that are in flight or arrive are kept, and continue after the next load."""
        if not self.asleep:
            self.asleep = True
            await llm.sleep(level=_DROP_ALL, mode="keep")

    async def wake_weights(self, llm: AsyncLLM) -> None:
        """Take memory for the weights, whose values are undefined until they are loaded.

        The cache has no memory yet: a load needs some for itself. Raises WeightUpdateError where memory is lacking.
        """
        if self.asleep:
            await _wake(llm, "weights")

    async def end(self, llm: AsyncLLM) -> None:
        """Take memory for the cache, and let requests continue; an engine that was only paused continues as well.

        Raises WeightUpdateError where memory is lacking.
        """
        if self.asleep:
            await _wake(llm, "kv_cache")
            self.asleep = False
        await llm.resume_generation()


async def _wake(llm: AsyncLLM, part: str) -> None:
    try:
        await llm.wake_up([part])
    except Exception as error:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError):
            raise
        # vLLM raises plain Exception for every error in its processes.
        raise WeightUpdateError(
            f"the sleeping engine got no memory for {part}: {error}; lower engine.vllm.gpu_memory_utilization, or keep the "
            "learner's state on the host with learner.offload=true"
        ) from error
