"""The fakes keep the generation half of the contract."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.contracts import engine as contract
from genevolve_ray.engines.fake import RandomEngine, ScriptedEngine
from genevolve_ray.engines.protocol import FinishReason, Probe, SamplingParams, WeightUpdateError


@pytest.mark.parametrize("check", [contract.check_generate, contract.check_stop, contract.check_concurrent])
async def test_the_random_engine_keeps_the_contract(check: Any, engine_case: contract.EngineCase) -> None:
    case = engine_case
    await check(RandomEngine(case.vocab_size, case.banned, max_model_len=case.max_model_len), case)


async def test_a_script_is_played_in_order_and_ends_with_the_stop_token(tokenizer: Any) -> None:
    engine = ScriptedEngine(["one", "two"], tokenizer)
    sampling = SamplingParams(stop_token_ids=(tokenizer.eos_token_id,))
    results = [await engine.generate((1, 2), sampling, name) for name in ("a", "b")]
    assert [tokenizer.decode(r.tokens) for r in results] == ["one<|im_end|>", "two<|im_end|>"]
    assert [call[0] for call in engine.calls] == ["a", "b"]


async def test_a_script_may_be_a_function_and_is_cut_at_the_limit(tokenizer: Any) -> None:
    engine = ScriptedEngine(lambda ids, request_id: f"{request_id}:{len(ids)}", tokenizer)
    result = await engine.generate((1, 2, 3), SamplingParams(max_tokens=4, stop_token_ids=(5,)), "name")
    assert (tokenizer.decode(result.tokens), result.finish) == ("name", FinishReason.LENGTH)


async def test_a_fake_refuses_a_probe_that_is_not_its_own(tokenizer: Any) -> None:
    engine = ScriptedEngine([], tokenizer)
    assert await engine.update("", 3, Probe(token_ids=(1, 2), logprobs=(-0.5,))) == 0.0
    assert engine.version == 3
    with pytest.raises(WeightUpdateError, match=r"off by 1\.5"):
        await engine.update("", 4, Probe(token_ids=(1, 2), logprobs=(-2.0,)))
