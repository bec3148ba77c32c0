"""The contract of an engine as async checks, for the project's own engines and for plug-in authors.

Each check raises AssertionError with the numbers that broke the contract. `check_engine` runs them all. It leaves the
engine with the weights of `case.folder` and with a version above the initial one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from genevolve_ray.engines.protocol import (
    Engine,
    FinishReason,
    Generation,
    Probe,
    PromptTooLong,
    SamplingParams,
    StreamingEngine,
    WeightUpdateError,
)


@dataclass(frozen=True)
class EngineCase:
    """Hold the inputs of the engine checks, which depend on the engine's model.

    Attributes:
        prompt: token ids of a short prompt.
        vocab_size: size of the model's vocabulary.
        banned: token ids that the engine was built to ban.
        max_model_len: context length of the engine, tokens.
        folder: other weights of the same architecture: whole weights, or an adapter over the initial model.
        probe: a probe that holds under the weights of `folder`, and does not hold under the initial weights.
    """

    prompt: tuple[int, ...]
    vocab_size: int
    banned: tuple[int, ...]
    max_model_len: int
    folder: str
    probe: Probe


def _check_shape(result: Generation, sampling: SamplingParams, case: EngineCase, version: int) -> None:
    size = len(result.tokens)
    assert 1 <= size <= sampling.max_tokens, f"{size} tokens for max_tokens {sampling.max_tokens}"
    assert len(result.logprobs) == len(result.versions) == size, "tokens, logprobs and versions differ in length"
    assert all(math.isfinite(p) and p <= 1e-6 for p in result.logprobs), f"log-probs out of range: {result.logprobs}"
    assert all(0 <= token < case.vocab_size for token in result.tokens), "a token is outside the vocabulary"
    assert not set(result.tokens) & set(case.banned), f"banned tokens were sampled: {result.tokens}"
    assert set(result.versions) == {version}, f"versions {set(result.versions)}, expected {version}"
    stops = [i for i, token in enumerate(result.tokens) if token in sampling.stop_token_ids]
    if result.finish is FinishReason.STOP:
        assert stops == [size - 1], f"finish is stop, but stop tokens are at {stops} of {size}"
    else:
        assert not stops, f"finish is length, but stop tokens are at {stops} of {size}"


async def check_generate(engine: Engine, case: EngineCase) -> None:
    """Check shapes, finite log-probs, the token limit and the ban mask."""
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (0.0, 1.0)):
        sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=16, seed=3)
        result = await engine.generate(case.prompt, sampling, f"contract-generate-{temperature}")
        _check_shape(result, sampling, case, engine.version)
        assert len(result.tokens) == 16, f"{len(result.tokens)} tokens without a stop token, expected 16"


async def check_stop(engine: Engine, case: EngineCase) -> None:
    """Check that a stop token ends the continuation and is its last token."""
    free = SamplingParams(temperature=1.0, max_tokens=8, seed=5)
    first = (await engine.generate(case.prompt, free, "contract-stop-free")).tokens[0]
    allowed = tuple(set(range(case.vocab_size)) - set(case.banned))
    sampling = SamplingParams(temperature=1.0, max_tokens=8, seed=5, stop_token_ids=allowed)
    result = await engine.generate(case.prompt, sampling, "contract-stop")
    _check_shape(result, sampling, case, engine.version)
    assert result.finish is FinishReason.STOP, "every token is a stop token and the engine did not stop"
    assert result.tokens == (first,), f"the same seed drew {result.tokens[0]} after {first}"


async def check_greedy(engine: Engine, case: EngineCase) -> None:
    """Check that temperature 0 gives the same tokens for every seed."""
    results = [
        await engine.generate(case.prompt, SamplingParams(temperature=0, max_tokens=8, seed=seed), f"greedy-{seed}")
        for seed in (1, 2)
    ]
    assert results[0].tokens == results[1].tokens, f"greedy differs: {results[0].tokens} and {results[1].tokens}"


async def check_streaming(engine: Engine, case: EngineCase) -> None:
    """Check that an engine that streams tells every token in order, and samples what it samples without a listener."""
    if not isinstance(engine, StreamingEngine):
        return
    sampling = SamplingParams(temperature=1.0, max_tokens=12, seed=5)
    heard: list[Sequence[int]] = []
    plain = await engine.generate(case.prompt, sampling, "contract/silent")
    told = await engine.generate(case.prompt, sampling, "contract/heard", on_tokens=heard.append)
    tokens = tuple(token for piece in heard for token in piece)
    assert tokens == told.tokens, f"told {tokens}, returned {told.tokens}"
    assert told == plain, f"with a listener {told}, without {plain}"


async def check_concurrent(engine: Engine, case: EngineCase) -> None:
    """Check that concurrent requests of different lengths get their own answers, and that different seeds differ."""
    samplings = [SamplingParams(temperature=1.0, max_tokens=4 + i, seed=i) for i in range(12)]
    prompts = [case.prompt + case.prompt[: i % 3] for i in range(12)]
    results = await asyncio.gather(
        *(engine.generate(p, s, f"contract-many-{i}") for i, (p, s) in enumerate(zip(prompts, samplings, strict=True)))
    )
    for result, sampling in zip(results, samplings, strict=True):
        _check_shape(result, sampling, case, engine.version)
        assert len(result.tokens) == sampling.max_tokens, "a request used the limit of another request"
    assert len({result.tokens[:4] for result in results}) > 1, "twelve seeds gave one continuation"


async def check_context(engine: Engine, case: EngineCase) -> None:
    """Check that a prompt that fills the context is refused, and that a continuation is cut where the context ends."""
    long = (case.prompt * case.max_model_len)[: case.max_model_len]
    sampling = SamplingParams(max_tokens=8, seed=0)
    try:
        await engine.generate(long, sampling, "contract-long")
    except PromptTooLong as error:
        assert str(case.max_model_len) in str(error), f"the message lacks the numbers: {error}"
    else:
        raise AssertionError(f"a prompt of {case.max_model_len} tokens was accepted")
    result = await engine.generate(long[:-2], sampling, "contract-nearly")
    assert len(result.tokens) == 2, f"{len(result.tokens)} tokens where the context has room for 2"
    assert result.finish is FinishReason.LENGTH, f"finish is {result.finish} at the end of the context"


async def check_update(engine: Engine, case: EngineCase) -> None:
    """Check that an update changes the scores and is verified by the probe.

    A wrong probe must stop the engine until a correct update follows.
    """
    before = await engine.score(case.probe.token_ids)
    version = engine.version + 1
    difference = await engine.update(case.folder, version, case.probe)
    after = await engine.score(case.probe.token_ids)
    assert 0 <= difference <= case.probe.tolerance, f"difference {difference} beyond {case.probe.tolerance}"
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-3, "the update changed no score"
    assert engine.version == version, f"version {engine.version} after an update to {version}"
    sampling = SamplingParams(max_tokens=4, seed=0)
    _check_shape(await engine.generate(case.prompt, sampling, "contract-after"), sampling, case, version)

    wrong = case.probe.model_copy(update={"logprobs": tuple(p - 1.0 for p in case.probe.logprobs)})
    for attempt in (
        lambda: engine.update(case.folder, version + 1, wrong),
        lambda: engine.generate(case.prompt, sampling, "contract-faulty"),
    ):
        try:
            await attempt()
        except WeightUpdateError:
            continue
        raise AssertionError("an engine that disagrees with the probe continues to sample")
    await engine.update(case.folder, version + 2, case.probe)
    _check_shape(await engine.generate(case.prompt, sampling, "contract-mended"), sampling, case, version + 2)


async def check_engine(engine: Engine, case: EngineCase) -> None:
    """Run every check against one engine. Raises AssertionError at the first one that fails."""
    for check in (
        check_generate,
        check_stop,
        check_greedy,
        check_streaming,
        check_concurrent,
        check_context,
        check_update,
    ):
        await check(engine, case)
