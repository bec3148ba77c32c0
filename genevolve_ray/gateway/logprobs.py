"""Scorers of a worker's tokens: the run's own policy, at the version that the worker claims to have sampled with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from genevolve_ray.engines.protocol import PromptImage
from genevolve_ray.learning.null import NULL_FILE, null_logprob

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import ImageInputs
    from genevolve_ray.learning.rescoring import Rescorer
    from genevolve_ray.models.image_tokens import ImageTokens


class Scores(NamedTuple):
    """Hold the scores of policy tokens, in nats; see `learning.rescoring.TokenScores`."""

    logprobs: list[float]
    masses: list[float]
    entropies: list[float]
    variances: list[float]


class Scorer(Protocol):
    """Score policy tokens under published weights, at the sampling temperature and under the ban mask."""

    async def score(
        self,
        folder: Path,
        tokens: Sequence[int],
        policy_mask: Sequence[bool],
        temperature: float,
        top_p: float,
        media: Sequence[PromptImage] = (),
    ) -> Scores:
        """Return the scores of the policy tokens, in order, under the weights in `folder`; `media` are the pictures."""
        ...

    async def close(self) -> None:
        """Release the model."""
        ...


class PolicyScorer:
    """Run the run's policy in a thread of its own; it holds one version until another is requested."""

    def __init__(self, build: Callable[[], Rescorer], image_tokens: ImageTokens | None = None) -> None:
        """Keep the function that builds it; nothing is loaded before the first call.

        `image_tokens` are those of a policy that sees.
        """
        self._build, self._image_tokens = build, image_tokens
        self._model: Rescorer | None = None
        self._loaded: Path | None = None
        self._thread = ThreadPoolExecutor(1, "gateway-scorer")

    async def score(
        self,
        folder: Path,
        tokens: Sequence[int],
        policy_mask: Sequence[bool],
        temperature: float,
        top_p: float,
        media: Sequence[PromptImage] = (),
    ) -> Scores:
        """Score in the thread; see `Scorer.score`."""

        def work() -> Scores:
            if self._model is None:
                self._model = self._build()
            if self._loaded != folder:
                self._loaded = None
                self._model.load(folder)
                self._loaded = folder
            return Scores(*self._model.score(tokens, policy_mask, temperature, top_p, self._images(tokens, media)))

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _images(self, tokens: Sequence[int], media: Sequence[PromptImage]) -> ImageInputs | None:
        if not media:
            return None
        from genevolve_ray.learning.vision import LedgerPictures

        assert self._image_tokens is not None, "pictures need a policy that sees"
        files = {image.span.sha256: image.data for image in media}
        return LedgerPictures(self._image_tokens).inputs(tokens, [image.span for image in media], files.__getitem__)

    async def close(self) -> None:
        """End the thread after its current work."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
        self._model = None


class NullScorer:
    """Score for a rehearsal: every token has the one log-prob of the version's digest, without any sampling."""

    async def score(
        self,
        folder: Path,
        tokens: Sequence[int],
        policy_mask: Sequence[bool],
        temperature: float,
        top_p: float,
        media: Sequence[PromptImage] = (),
    ) -> Scores:
        """Read the digest; see `Scorer.score`."""
        logprob = null_logprob(json.loads((folder / NULL_FILE).read_text(encoding="utf-8"))["state"])
        n = sum(policy_mask)
        return Scores([logprob] * n, [0.0] * n, [-logprob] * n, [0.0] * n)

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
