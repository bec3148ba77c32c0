"""Engine protocol: tokens in, tokens and log-probs out, and weights that can be replaced while the engine runs.

The chat protocol is for models that only answer: messages with pictures in, text out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import ConfigDict, Field

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.ledger import MediaMismatch as MediaMismatch
from genevolve_ray.records.ledger import MediaSpan


class FinishReason(StrEnum):
    """Name the reasons for the end of sampling."""

    STOP = "stop"
    """A stop token was sampled; it is the last token returned."""
    LENGTH = "length"
    """The token limit was reached."""


class SamplingParams(Config):
    """Configure the sampling of one turn. Returned log-probs are at this temperature, after ban mask and top-p."""

    temperature: float = Field(default=1.0, ge=0)
    """0 means greedy (log-probs are then those at temperature 1)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()


class Generation(Record):
    """Hold one sampled continuation: parallel lists, and the policy version behind each token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish: FinishReason


class PromptImage(Record):
    """Hold a picture of a prompt: the placeholder tokens that it occupies, its hash and patch grid, and its file."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    span: MediaSpan
    data: bytes
    """The encoded picture, whose SHA-256 is `span.sha256`."""


class Probe(Record):
    """Hold a fixed sequence and the learner's log-probs on it, which verify the effect of a weight update.

    `logprobs[i]` is log p(token_ids[i + 1] | token_ids[: i + 1]) at temperature 1 without the ban mask, so it has
    len(token_ids) - 1 entries. `tolerance` bounds the mean absolute difference (1e-4 for fp32, about 0.03 for bf16).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float = 1e-4
    media: tuple[PromptImage, ...] = Field(default=(), exclude_if=lambda media: not media)
    """Pictures of the sequence; not written where there are none, so that older workers read the probe."""
    tensors: dict[str, int] | None = Field(default=None, exclude=True, repr=False)
    """The learner's checksum of each published tensor (`learning.digests`), None where it states none. It stays among
    the processes of a run and is never written: outside workers compare the digests of files instead."""


class WeightUpdateError(GenevolveError, RuntimeError):
    """Report that the engine disagrees with the learner on the probe after an update: it must not sample."""


class PromptTooLong(GenevolveError, ValueError):
    """Report that the prompt leaves no room in the model's context; the message holds the numbers."""


class ChatReply(Record):
    """Hold one turn of a chat endpoint: the text, and its tokens where the endpoint counts them."""

    text: str
    finish: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatPolicy(Protocol):
    """Define a policy that exchanges only text: messages in, text out, no tokens and no log-probs."""

    name: str
    """The model, without the address where it runs."""

    async def reply(self, messages: Sequence[dict[str, Any]], sampling: SamplingParams) -> ChatReply:
        """Return the assistant's next turn. Raises PromptTooLong, and InfraFailure when the endpoint gave up.

        The content of a message is a text, or texts and pictures as parts in the form of OpenAI's endpoint.
        """
        ...


class Engine(Protocol):
    """Define an engine that samples tokens. Many `generate` calls may be in flight."""

    name: str
    version: int

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Generation:
        """Sample one continuation of `token_ids`.

        Args:
            token_ids: the prompt as in the token ledger: a picture of grid (t, h, w) occupies t * h * w / merge_size**2
                image tokens.
            sampling: settings of this turn.
            request_id: unique among the requests in flight.
            media: the pictures of the prompt, in the order of their tokens.

        Raises:
            PromptTooLong: when the prompt leaves no room.
            MediaMismatch: when a picture does not have the hash or the grid of its span, when the spans are not exactly
                the prompt's image tokens, or when the engine takes fewer pictures.
        """
        ...

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Load the weights in `folder`, drop every cache, and verify them by the probe.

        The folder holds whole weights (safetensors in HF layout), or an adapter in peft's layout. An adapter is merged
        into the base: the model folder that the engine was started on, which must stay unchanged. Returns the mean
        absolute probe difference (0.0 without a probe).

        Raises:
            WeightUpdateError: beyond the probe's tolerance, and before anything is loaded for an adapter that does not
                fit the base.
        """
        ...

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        """Return log p(token_ids[i + 1] | token_ids[: i + 1]), temperature 1, no ban mask; len(token_ids) - 1 values.

        `media` as in `generate`.
        """
        ...

    async def close(self) -> None:
        """Release processes and memory. Safe to call twice."""
        ...


OnTokens = Callable[[Sequence[int]], None]
"""Hears the tokens of a turn as they are sampled; called in the event loop of the caller."""


@runtime_checkable
class StreamingEngine(Protocol):
    """Define an engine that can tell tokens before a turn ends."""

    streams: bool
    """Always True; the attribute by which such an engine is known."""

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        media: Sequence[PromptImage] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Sample one continuation as `Engine.generate` does; `on_tokens` hears every token before the call returns.

        The result is the same with and without a listener.
        """
        ...


@dataclass(frozen=True)
class ChatImage:
    """Hold an encoded picture of a message."""

    data: bytes
    media_type: str = "image/jpeg"


@dataclass(frozen=True)
class ChatMessage:
    """Hold one message; its parts, texts and pictures, are read in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | ChatImage, ...]


class CutAnswer(str):
    """Represent an answer that reached its limit of tokens: no judge's answer is read from what it only began."""

    __slots__ = ()


class ChatModel(Protocol):
    """Define a model that answers conversations greedily. Many calls may be in flight."""

    identity: str
    """The model, without the address where it runs."""

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        """Return the text of the answer, "" for none, a `CutAnswer` where `max_tokens` ended it.

        `schema` is the JSON schema that the answer should satisfy. Some models cannot be constrained to a schema, so
        treat the text as untrusted. Raises InfraFailure when the model gave up after bounded retries.
        """
        ...

    def check_health(self) -> None:
        """Raise when the model can no longer answer."""
        ...

    async def aclose(self) -> None:
        """Release connections, processes and memory. Safe to call twice."""
        ...
