"""Engines for tests: one that plays a script, one that emits noise. Neither needs torch or a model."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from genevolve_ray.engines.checks import probe_difference, room_for
from genevolve_ray.engines.protocol import FinishReason, Generation, Probe, SamplingParams

Script = Callable[[Sequence[int], str], str]
"""From (prompt token ids, request id) to the text of the next turn."""


class _FakeEngine:
    """What the fakes share: a version, a constant score and the calls that they saw."""

    name = "fake"

    def __init__(self, logprob: float, max_model_len: int) -> None:
        self.version = 0
        self.max_model_len = max_model_len
        self.calls: list[tuple[str, tuple[int, ...], SamplingParams]] = []
        self.closed = False
        self._logprob = logprob

    def _open_call(self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str) -> int:
        if self.closed:
            raise RuntimeError("the engine is closed")
        self.calls.append((request_id, tuple(token_ids), sampling))
        return room_for(len(token_ids), sampling.max_tokens, self.max_model_len)

    def _generation(self, tokens: Sequence[int], finish: FinishReason) -> Generation:
        return Generation(
            tokens=tuple(tokens),
            logprobs=(self._logprob,) * len(tokens),
            versions=(self.version,) * len(tokens),
            finish=finish,
        )

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Take the version; a probe is compared with the constant log-prob of this engine."""
        self.version = version
        return probe_difference(probe, await self.score(probe.token_ids), version) if probe else 0.0

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the same log-prob for every token."""
        return [self._logprob] * (len(token_ids) - 1)

    async def close(self) -> None:
        """Refuse further calls."""
        self.closed = True


class ScriptedEngine(_FakeEngine):
    """Answers each call with the next text of a script, followed by the first stop token of the call.

    Args:
        turns: Texts in the order of the calls, or a function of (prompt ids, request id).
        tokenizer: A Hugging Face tokenizer; texts are encoded without special tokens.
        max_model_len: Tokens a sequence may have in all.

    Raises (from `generate`):
        IndexError: If there are more calls than texts.
    """

    name = "scripted"

    def __init__(self, turns: Sequence[str] | Script, tokenizer: Any, max_model_len: int = 65536) -> None:
        super().__init__(logprob=-0.5, max_model_len=max_model_len)
        self._turns = turns
        self._tokenizer = tokenizer

    async def generate(self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str) -> Generation:
        """Return the tokens of the next text; see `Engine.generate`."""
        turn = len(self.calls)
        limit = self._open_call(token_ids, sampling, request_id)
        await asyncio.sleep(0)
        text = self._turns(token_ids, request_id) if callable(self._turns) else self._turns[turn]
        tokens = [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False)]
        tokens += sampling.stop_token_ids[:1]
        stopped = bool(sampling.stop_token_ids) and len(tokens) <= limit
        return self._generation(tokens[:limit], FinishReason.STOP if stopped else FinishReason.LENGTH)


class RandomEngine(_FakeEngine):
    """Emits uniform noise over the tokens that are not banned: any byte soup that a policy could produce.

    Args:
        vocab_size: Ids are drawn below it.
        banned: Ids that are never drawn.
        seed: Seeds requests without a seed, together with their id.
        max_model_len: Tokens a sequence may have in all.
    """

    name = "random"

    def __init__(self, vocab_size: int, banned: Sequence[int] = (), seed: int = 0, max_model_len: int = 65536) -> None:
        self._allowed = sorted(set(range(vocab_size)) - set(banned))
        super().__init__(logprob=-math.log(len(self._allowed)), max_model_len=max_model_len)
        self._seed = seed

    async def generate(self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str) -> Generation:
        """Return noise that ends at the first stop token or at the limit; see `Engine.generate`."""
        limit = self._open_call(token_ids, sampling, request_id)
        await asyncio.sleep(0)
        draw = random.Random(sampling.seed if sampling.seed is not None else f"{self._seed}:{request_id}")
        tokens: list[int] = []
        while len(tokens) < limit:
            tokens.append(draw.choice(self._allowed))
            if tokens[-1] in sampling.stop_token_ids:
                return self._generation(tokens, FinishReason.STOP)
        return self._generation(tokens, FinishReason.LENGTH)
