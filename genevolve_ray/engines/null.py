"""Engine of a rehearsal: turns of a script in a set time, with log-probs derived from its weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from genevolve_ray.engines.checks import room_for
from genevolve_ray.engines.probe import probe_difference
from genevolve_ray.engines.protocol import FinishReason, Generation, Probe, PromptImage, SamplingParams
from genevolve_ray.learning.null import NULL_FILE, null_logprob

_CALLS = (
    ("image_search", {"query": "reference"}),
    ("search", {"queries": ["fact"]}),
    ("query_knowledge", {"skill_name": "spatial_layout"}),
    ("image_search", {"query": "another reference"}),
)
_ANSWER = {
    "gen_prompt": "as the first reference image shows",
    "reference_images": [{"img_id": "IMG_001", "note": "looks"}],
}


def script(tool_calls: int) -> list[str]:
    """Return the turns of an episode: `tool_calls` tool calls, then a valid program."""
    calls = [_CALLS[i % len(_CALLS)] for i in range(tool_calls)]
    turns = [f"<tool_call>{json.dumps({'name': name, 'arguments': args})}</tool_call>" for name, args in calls]
    return [f"<think>go on</think>{turn}" for turn in [*turns, f"<answer>{json.dumps(_ANSWER)}</answer>"]]


class NullEngine:
    """Play the same script in every episode without sampling; each turn takes `turn_seconds`."""

    name = "null"

    def __init__(self, tokenizer: Any, *, turn_seconds: float, tool_calls: int, max_model_len: int = 1 << 20) -> None:
        """Keep the script; before the first update there are no weights, and log-probs have no meaning."""
        self.version = 0
        self._seconds, self._turns, self._max_model_len = turn_seconds, script(tool_calls), max_model_len
        self._logprob = 0.0
        self._encode = lru_cache(maxsize=None)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Generation:
        """Return the turn of the script that the request's id ends in (`.../turn`); pictures have no effect."""
        limit = room_for(len(token_ids), sampling.max_tokens, self._max_model_len)
        await asyncio.sleep(self._seconds)
        turn = int(request_id.rpartition("/")[2])
        tokens = (*self._encode(self._turns[min(turn, len(self._turns) - 1)]), *sampling.stop_token_ids[:1])
        finish = FinishReason.STOP if len(tokens) <= limit else FinishReason.LENGTH
        tokens = tokens[:limit]
        return Generation(
            tokens=tokens,
            logprobs=(self._logprob,) * len(tokens),
            versions=(self.version,) * len(tokens),
            finish=finish,
        )

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Take the digest in `folder`; see `Engine.update`."""
        state = json.loads((Path(folder) / NULL_FILE).read_text(encoding="utf-8"))["state"]
        logprob = null_logprob(state)
        difference = 0.0
        if probe is not None:
            difference = probe_difference(probe, [logprob] * (len(probe.token_ids) - 1), version)
        self._logprob, self.version = logprob, version
        return difference

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        """Return the one log-prob for every token."""
        return [self._logprob] * (len(token_ids) - 1)

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
