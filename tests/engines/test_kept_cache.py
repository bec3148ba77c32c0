"""The cache of keys and values over an update: dropped it leaves no trace, kept it shows as a gap to the new weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tiny_qwen3 import BANNED, CONTEXT, TinyModels, forward_logprobs

from genevolve_ray.engines.config import VllmConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.engines.vllm import VllmEngine

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROMPT = tuple(range(10, 80))
"""More than two blocks of the cache."""
OTHER = tuple(range(80, 10, -1))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keeping(tiny_models: TinyModels) -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.create(
        tiny_models.first, banned=BANNED, max_model_len=CONTEXT, max_num_seqs=4, config=VllmConfig(keep_cache=True)
    )
    yield engine
    await engine.close()


async def gap(engine: VllmEngine, folder: str, prompt: tuple[int, ...]) -> float:
    """The mean |engine - plain forward| of a short continuation: what `parity` measures."""
    result = await engine.generate(prompt, SamplingParams(max_tokens=8, seed=3), "gap")
    expected = forward_logprobs(folder, prompt, result.tokens, 1.0)
    return sum(abs(a - b) for a, b in zip(result.logprobs, expected, strict=True)) / len(expected)


async def test_a_dropped_cache_leaves_no_trace_of_older_weights(engine: VllmEngine, tiny_models: TinyModels) -> None:
    for folder in (tiny_models.first, tiny_models.second):
        await engine.update(folder, engine.version + 1)
        # The second time the prompt's blocks are in the cache.
        assert [await gap(engine, folder, PROMPT) < 1e-4 for _ in range(2)] == [True, True]
    await engine.update(tiny_models.first, engine.version + 1)


async def test_a_kept_cache_shows_in_prompts_that_were_read_before(
    keeping: VllmEngine, tiny_models: TinyModels
) -> None:
    await keeping.update(tiny_models.first, keeping.version + 1)
    assert await gap(keeping, tiny_models.first, PROMPT) < 1e-4
    await keeping.update(tiny_models.second, keeping.version + 1)
    assert await gap(keeping, tiny_models.second, PROMPT) > 0.05
    assert await gap(keeping, tiny_models.second, OTHER) < 1e-4


async def test_weights_are_verified_without_the_kept_cache(keeping: VllmEngine, tiny_models: TinyModels) -> None:
    await gap(keeping, tiny_models.second, PROMPT)
    await keeping.update(tiny_models.first, keeping.version + 1)
    scores = await keeping.score(PROMPT)
    reference = TransformersEngine(tiny_models.first, max_model_len=CONTEXT)
    assert scores == pytest.approx(await reference.score(PROMPT), abs=1e-4)
    await reference.close()


async def test_a_sequence_in_flight_goes_on_with_its_keys_and_the_new_weights(
    keeping: VllmEngine, tiny_models: TinyModels
) -> None:
    await keeping.update(tiny_models.first, keeping.version + 1)
    old, prompt = keeping.version, OTHER[:20]
    long = asyncio.create_task(keeping.generate(prompt, SamplingParams(max_tokens=70, seed=1), "long"))
    await keeping.generate((50, 60), SamplingParams(max_tokens=5, seed=9), "short")
    await keeping.update(tiny_models.second, old + 1)
    result = await long
    assert set(result.versions) == {old, old + 1}
    before = result.versions.index(old + 1)
    expected = forward_logprobs(tiny_models.first, prompt, result.tokens, 1.0)
    assert result.logprobs[:before] == pytest.approx(expected[:before], abs=1e-4)
