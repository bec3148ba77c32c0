"""Outputs that stay in vLLM's engine process until their requests end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.engines.vllm import VllmEngine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def output(request: str, token: int, finish: Any = None) -> Any:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists

    row = [np.array([[value]]) for value in (token, -float(token))]
    return EngineCoreOutput(
        request_id=request,
        new_token_ids=[token],
        new_logprobs=LogprobsLists(*row, np.array([token])),
        finish_reason=finish,
    )


def scheduler(passes: list[list[Any]]) -> Any:
    """Return the scheduler over one whose passes give the stated outputs to client 0."""
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.engine import EngineCoreOutputs

    from genevolve_ray.engines.vllm_scheduler import _Held

    class Scripted:
        def __init__(self) -> None:
            self.requests = {name: SimpleNamespace(client_index=0) for name in ("a", "b")}
            self.pause_state = PauseState.UNPAUSED

        def has_requests(self) -> bool:
            return bool(self.requests) and self.pause_state == PauseState.UNPAUSED

        def update_from_output(self, _scheduled: Any, _ran: Any) -> dict[int, Any]:
            outputs = passes.pop(0)
            for each in outputs:
                if each.finish_reason is not None:
                    del self.requests[each.request_id]
            return {0: EngineCoreOutputs(outputs=outputs)} if outputs else {}

    class Held(_Held, Scripted):
        """The mixin over the script."""

    return Held()


def told(found: dict[int, Any]) -> list[tuple[str, list[int]]]:
    return [(each.request_id, each.new_token_ids) for outputs in found.values() for each in outputs.outputs]


def test_a_request_leaves_once_with_all_its_tokens_and_logprobs() -> None:
    from vllm.v1.engine import FinishReason

    held = scheduler([[output("a", 1), output("b", 5)], [output("a", 2, FinishReason.STOP), output("b", 6)]])
    assert held.update_from_output(None, None) == {}
    found = held.update_from_output(None, None)
    assert told(found) == [("a", [1, 2])]
    [whole] = found[0].outputs
    assert [field.ravel().tolist() for field in whole.new_logprobs[:3]] == [[1, 2], [-1.0, -2.0], [1, 2]]


def test_a_pause_has_work_until_everything_has_left() -> None:
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.engine import FinishReason

    held = scheduler([[output("a", 1), output("b", 5)], [], [output("a", 2, FinishReason.STOP)]])
    held.update_from_output(None, None)
    held.pause_state = PauseState.PAUSED_ALL
    assert held.has_requests()
    assert told(held.update_from_output(None, None)) == [("a", [1]), ("b", [5])]
    assert not held.has_requests()
    held.pause_state = PauseState.UNPAUSED
    assert told(held.update_from_output(None, None)) == [("a", [2])]


def test_an_aborted_request_leaves_nothing() -> None:
    held = scheduler([[output("a", 1), output("b", 5)], []])
    held.update_from_output(None, None)
    del held.requests["a"]
    held.update_from_output(None, None)
    assert list(held._held) == ["b"]


@pytest.mark.asyncio(loop_scope="session")
async def test_the_engine_sends_one_message_for_each_request(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, sent = engine._open().output_processor, []
    process = processor.process_outputs

    def counted(outputs: list[Any], *arguments: Any, **options: Any) -> Any:
        sent.extend(len(each.new_token_ids) for each in outputs)
        return process(outputs, *arguments, **options)

    monkeypatch.setattr(processor, "process_outputs", counted)
    sampling = SamplingParams(max_tokens=12, seed=1)
    results = await asyncio.gather(*(engine.generate((7, 8, n), sampling, f"held-{n}") for n in range(3)))
    assert sent == [len(result.tokens) for result in results] == [12, 12, 12]
