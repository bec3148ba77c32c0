"""Schedulers for vLLM's engine process that keep what requests sampled until these end.

vLLM sends the new token of every request to the process that asked, pass by pass. A rollout has no use for a token
before its turn ends. For a small model that traffic costs both processes as much time as the model.

vLLM imports this module by the names that `engines/vllm.py` passes; no other module should import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import LogprobsLists

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput


class _Held:
    """Keep the outputs of requests that run, and release them at their end or while the scheduler is paused.

    Weights change only during a pause, and vLLM states one version for all tokens of a message. So what was sampled
    before a change has left when it comes.
    """

    requests: dict[str, Any]
    pause_state: PauseState

    def __init__(self, *args: Any, **options: Any) -> None:
        """Begin without outputs; the arguments are those of vLLM's scheduler."""
        super().__init__(*args, **options)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def has_requests(self) -> bool:
        """Return whether there is work: a pause is complete once it has released everything."""
        found: bool = super().has_requests()  # type: ignore[misc]
        return found or (self._releases and bool(self._held))

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take the result of a pass, and return what leaves: by client, the outputs of requests that ended."""
        from vllm.v1.engine import EngineCoreOutputs

        found: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        clients = {name: request.client_index for name, request in self.requests.items()} if self._releases else {}
        for outputs in found.values():
            outputs.outputs = [whole for output in outputs.outputs if (whole := self._take(output)) is not None]
        for name in [name for name in self._held if name not in self.requests]:
            del self._held[name]  # aborted
        for name, client in clients.items():
            if parts := self._held.pop(name, None):
                found.setdefault(client, EngineCoreOutputs()).outputs.append(joined(parts))
        return {client: outputs for client, outputs in found.items() if _says_something(outputs)}

    @property
    def _releases(self) -> bool:
        return self.pause_state is not PauseState.UNPAUSED

    def _take(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """Keep an output, or return it with everything that was kept of its request."""
        parts = self._held.pop(output.request_id, [])
        parts.append(output)
        if output.finish_reason is not None:
            return joined(parts)
        self._held[output.request_id] = parts
        return None


class HeldScheduler(_Held, Scheduler):  # type: ignore[misc]
    """Schedule passes one after the other."""


class HeldAsyncScheduler(_Held, AsyncScheduler):  # type: ignore[misc]
    """Schedule a pass while the one before it runs."""


def joined(parts: list[EngineCoreOutput]) -> EngineCoreOutput:
    """Return successive outputs of a request as one: the last, with the tokens and log-probs of all."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    last.new_token_ids = [token for part in parts for token in part.new_token_ids]
    if logprobs := [part.new_logprobs for part in parts if part.new_logprobs is not None]:
        last.new_logprobs = LogprobsLists(*(np.concatenate([part[field] for part in logprobs]) for field in range(3)))
    first = parts[0]
    last.prefill_stats = first.prefill_stats
    last.new_prompt_logprobs_tensors = first.new_prompt_logprobs_tensors
    return last


def _says_something(outputs: EngineCoreOutputs) -> bool:
    return bool(outputs.outputs or outputs.finished_requests) or outputs.scheduler_stats is not None
