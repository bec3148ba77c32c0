"""The reference engine: contract, log-probs, independence of company, bit-equality."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio
from tiny_qwen3 import BANNED, CONTEXT, VOCAB, TinyModels, forward_logprobs

from genevolve_ray.contracts import engine as contract
from genevolve_ray.engines import transformers
from genevolve_ray.engines.protocol import SamplingParams, WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine


def make(models: TinyModels, **settings: Any) -> TransformersEngine:
    return TransformersEngine(models.first, banned=BANNED, max_model_len=CONTEXT, **settings)


@pytest_asyncio.fixture
async def engine(tiny_models: TinyModels) -> AsyncIterator[TransformersEngine]:
    engine = make(tiny_models)
    yield engine
    await engine.close()


@pytest.mark.parametrize(
    "check",
    [
        contract.check_generate,
        contract.check_stop,
        contract.check_greedy,
        contract.check_streaming,
        contract.check_concurrent,
        contract.check_context,
        contract.check_update,
    ],
)
async def test_contract(
    engine: TransformersEngine, engine_case: contract.EngineCase, check: Callable[..., Any]
) -> None:
    await check(engine, engine_case)


async def test_logprobs_are_those_of_a_plain_forward(engine: TransformersEngine, tiny_models: TinyModels) -> None:
    prompts = [tuple(range(10, 10 + n)) for n in (3, 17, 9, 30)]
    sampling = [SamplingParams(temperature=t, max_tokens=20, seed=i) for i, t in enumerate((1.0, 0.7, 1.3, 1.0))]
    results = await asyncio.gather(
        *(engine.generate(p, s, str(i)) for i, (p, s) in enumerate(zip(prompts, sampling, strict=True)))
    )
    for prompt, params, result in zip(prompts, sampling, results, strict=True):
        expected = forward_logprobs(tiny_models.first, prompt, result.tokens, params.temperature)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)


async def test_top_p_renormalises_over_the_kept_tokens(engine: TransformersEngine, tiny_models: TinyModels) -> None:
    prompt = (11, 45, 200)
    result = await engine.generate(prompt, SamplingParams(top_p=0.5, max_tokens=30, seed=1), "a")
    full = forward_logprobs(tiny_models.first, prompt, result.tokens, 1.0)
    gains = [mine - plain for mine, plain in zip(result.logprobs, full, strict=True)]
    assert all(-1e-5 <= gain <= -math.log(0.5) + 1e-5 for gain in gains)
    assert max(gains) > 0.1


async def test_a_seeded_request_does_not_depend_on_its_company(engine: TransformersEngine) -> None:
    prompt, sampling = (5, 9, 77), SamplingParams(max_tokens=24, seed=42)
    alone = await engine.generate(prompt, sampling, "alone")
    company = (engine.generate((4,) * n, SamplingParams(max_tokens=n, seed=n), f"c{n}") for n in range(1, 20))
    among = (await asyncio.gather(engine.generate(prompt, sampling, "among"), *company))[0]
    assert among.tokens == alone.tokens
    assert among.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


async def test_sampling_follows_the_distribution(tiny_models: TinyModels) -> None:
    engine = make(tiny_models, max_batch=2000)
    prompt = (11, 45, 200)
    results = await asyncio.gather(
        *(engine.generate(prompt, SamplingParams(max_tokens=1, seed=i), str(i)) for i in range(2000))
    )
    await engine.close()
    [logprob] = forward_logprobs(tiny_models.first, prompt, results[0].tokens, 1.0)
    prob = math.exp(logprob)
    share = sum(r.tokens == results[0].tokens for r in results) / 2000
    assert share == pytest.approx(prob, abs=4 * (prob * (1 - prob) / 2000) ** 0.5)
    assert len({r.tokens for r in results}) > VOCAB / 20


async def lock_step(engine: TransformersEngine) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Eight episodes of three turns of different lengths, each turn appended to the prompt."""

    async def episode(number: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        ids: tuple[int, ...] = tuple(range(10, 12 + number))
        logprobs: tuple[float, ...] = ()
        for turn in range(3):
            for _ in range(number):
                await asyncio.sleep(0)
            with engine.hold():
                await asyncio.to_thread(lambda: None)
            params = SamplingParams(max_tokens=4 + (number + turn) % 5, seed=100 * number + turn)
            result = await engine.generate(ids, params, f"{number}-{turn}")
            ids, logprobs = ids + result.tokens, logprobs + result.logprobs
        return ids, logprobs

    return await asyncio.gather(*(episode(number) for number in range(8)))


async def test_deterministic_runs_are_bit_equal(tiny_models: TinyModels) -> None:
    runs = []
    for _ in range(2):
        engine = make(tiny_models, deterministic=True, max_batch=5)
        runs.append(await lock_step(engine))
        await engine.close()
    assert runs[0] == runs[1]


async def test_requests_without_a_seed_differ_by_their_id(engine: TransformersEngine) -> None:
    sampling = SamplingParams(max_tokens=16)
    first, second = await asyncio.gather(*(engine.generate((8, 9), sampling, name) for name in ("a", "b")))
    assert first.tokens != second.tokens


async def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/model"):
        TransformersEngine("/no/such/model")


async def test_closing_twice_is_safe_and_a_closed_engine_refuses(tiny_models: TinyModels) -> None:
    engine = make(tiny_models)
    await engine.close()
    await engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        await engine.generate((1, 2), SamplingParams(), "late")


async def test_a_request_during_an_update_waits_for_it(
    engine: TransformersEngine, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go, real = threading.Event(), threading.Event(), transformers.published_tensors

    def slow(*arguments: Any) -> Any:
        started.set()
        assert go.wait(30)
        return real(*arguments)

    monkeypatch.setattr(transformers, "published_tensors", slow)
    update = asyncio.create_task(engine.update(tiny_models.second, 1))
    assert await asyncio.to_thread(started.wait, 30)
    request = asyncio.create_task(engine.generate([1, 2, 3], SamplingParams(max_tokens=2, seed=1), "during"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not request.done()
    go.set()
    await update
    assert set((await request).versions) == {1}


async def test_a_request_during_an_update_that_fails_is_refused(
    engine: TransformersEngine, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = threading.Event(), threading.Event()

    def broken(*_: Any) -> Any:
        started.set()
        assert go.wait(30)
        raise WeightUpdateError("no such weights")

    monkeypatch.setattr(transformers, "published_tensors", broken)
    update = asyncio.create_task(engine.update(tiny_models.second, 1))
    assert await asyncio.to_thread(started.wait, 30)
    request = asyncio.create_task(engine.generate([1, 2, 3], SamplingParams(max_tokens=2, seed=1), "during"))
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(WeightUpdateError, match="no such weights"):
        await update
    with pytest.raises(WeightUpdateError, match="did not complete"):
        await request


async def test_an_error_of_a_listener_ends_its_own_request_alone(
    engine: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def listener(tokens: Sequence[int]) -> None:
        raise BrokenPipeError

    heard = engine.generate((5, 6, 7), SamplingParams(max_tokens=8, seed=1), "heard", on_tokens=listener)
    silent = engine.generate((5, 6, 7), SamplingParams(max_tokens=8, seed=1), "silent")
    ended = await asyncio.gather(heard, silent, return_exceptions=True)
    assert isinstance(ended[0], BrokenPipeError) and not isinstance(ended[1], BaseException)
    assert caplog.records == []
