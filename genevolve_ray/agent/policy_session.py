"""The policy's side of an episode: an engine over tokens, or a chat endpoint over texts.

The episode is the same for both: it sets the token limits, reads a turn as text, and answers with an observation. Only
an engine leaves tokens and log-probs in the ledger. Turns of a chat endpoint can be rendered and judged, but not
trained on.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from genevolve_ray.agent.chat import ChatFormat, parts_of
from genevolve_ray.engines.protocol import (
    ChatPolicy,
    Engine,
    FinishReason,
    Generation,
    PromptImage,
    PromptTooLong,
    SamplingParams,
    StreamingEngine,
)
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import MediaSpan, SpanKind, TokenLedger
from genevolve_ray.records.usage import POLICY_SERVICE, Usage, record_usage

ReadPicture = Callable[[ImageRef], bytes]
"""Returns the file of a picture."""
OnText = Callable[[str], None]
"""Hears pieces of a turn's text as they are sampled."""
_CHARS_PER_TOKEN = 4
"""Used to estimate tokens where an endpoint does not report them."""
_PIXELS_PER_TOKEN = 28 * 28
"""The same for pictures: patches of 14 pixels, two by two, as in Qwen2.5-VL."""


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """Hold one turn as the parser reads it; `cut` when the token limit ended it."""

    text: str
    tokens: int
    cut: bool


class TextPieces:
    """Turn the tokens of a turn into pieces of its text, each as soon as its characters are complete."""

    def __init__(self, chat: ChatFormat, on_text: OnText) -> None:
        """Begin a turn."""
        self._chat, self._on_text = chat, on_text
        self._tokens: list[int] = []
        self._start = self._read = 0
        if chat.thinking_prefix:
            on_text(chat.thinking_prefix)

    def __call__(self, tokens: Sequence[int]) -> None:
        """Take the next tokens; the end of the turn is no text."""
        self._tokens += (token for token in tokens if token != self._chat.end_of_turn_id)
        # Tokens before the new ones are decoded as well: some tokenizers drop the space before the first of a text.
        text = self._chat.decode(self._tokens[self._start :])
        if text.endswith("\ufffd"):  # The first bytes of a character.
            return
        known = self._chat.decode(self._tokens[self._start : self._read])
        self._start, self._read = self._read, len(self._tokens)
        if len(text) > len(known):
            self._on_text(text[len(known) :])


class PolicySession(Protocol):
    """Define the policy in one conversation; each episode has its own session."""

    name: str
    ledger: TokenLedger

    @property
    def used(self) -> int:
        """Tokens after the prompt, observations included."""
        ...

    def begin(self, messages: Sequence[dict[str, str]], max_tokens: int) -> None:
        """Accept the messages before the first turn. Raises PromptTooLong for more than `max_tokens`."""
        ...

    async def sample_turn(
        self, *, max_tokens: int, seed: int, request_id: str, on_text: OnText | None = None
    ) -> SampledTurn:
        """Return the next turn. Raises PromptTooLong, and InfraFailure when an endpoint gave up.

        `on_text` hears the text piece by piece, where the policy streams; it may hear nothing.
        """
        ...

    def hear(self, messages: Sequence[str], room: int, pictures: Sequence[ImageRef] = ()) -> bool:
        """Accept the user messages before the next turn, unless they have `room` tokens or more.

        `pictures` stand at the places `<image>` of the messages, in order. Returns whether they were accepted. Raises
        InfraFailure when the file of a picture cannot be read.
        """
        ...


class TokenSession:
    """Sample the policy with an engine: every token, and its log-prob, is in the ledger."""

    def __init__(
        self, engine: Engine, chat: ChatFormat, sampling: SamplingParams, read: ReadPicture | None = None
    ) -> None:
        """Sample from `engine`; token limit, seed and stop tokens of `sampling` are set per turn.

        `read` returns the files of pictures that the policy sees.
        """
        self.name, self.ledger = engine.name, TokenLedger()
        self._engine, self._chat, self._sampling, self._read = engine, chat, sampling, read
        self._pictures: list[PromptImage] = []
        self._prompt_tokens = 0

    @property
    def used(self) -> int:
        """Tokens after the prompt."""
        return len(self.ledger) - self._prompt_tokens

    def begin(self, messages: Sequence[dict[str, str]], max_tokens: int) -> None:
        """Append the template's tokens of the messages to the ledger. Raises PromptTooLong."""
        prompt = self._chat.prompt_ids(messages)
        if len(prompt) > max_tokens:
            raise PromptTooLong(f"prompt has {len(prompt)} tokens, limit {max_tokens}")
        self.ledger.append_context(prompt, SpanKind.PROMPT)
        self._prompt_tokens = len(prompt)

    async def sample_turn(
        self, *, max_tokens: int, seed: int, request_id: str, on_text: OnText | None = None
    ) -> SampledTurn:
        """Sample a turn and record it. Raises PromptTooLong."""
        stops = dict.fromkeys((*self._sampling.stop_token_ids, self._chat.end_of_turn_id))
        sampling = self._sampling.model_copy(
            update={"max_tokens": max_tokens, "seed": seed, "stop_token_ids": tuple(stops)}
        )
        read, started = len(self.ledger), perf_counter()
        prompt = self.ledger.tokens, sampling, request_id, self._pictures
        if on_text is not None and isinstance(self._engine, StreamingEngine):
            generation = await self._engine.generate(*prompt, on_tokens=TextPieces(self._chat, on_text))
        else:
            generation = await self._engine.generate(*prompt)
        usage = Usage(
            calls=1,
            prompt_tokens=read,
            completion_tokens=len(generation.tokens),
            seconds=perf_counter() - started,
        )
        record_usage(POLICY_SERVICE, usage)
        self._record(generation)
        text = self._chat.turn_text(generation.tokens)
        return SampledTurn(text, len(generation.tokens), generation.finish is FinishReason.LENGTH)

    def hear(self, messages: Sequence[str], room: int, pictures: Sequence[ImageRef] = ()) -> bool:
        """Append the template's tokens of the user messages before the next turn, if there is room for them."""
        grids = [self._chat.grid(picture.width, picture.height) for picture in pictures]
        ended = self._chat.ended(self.ledger.tokens)
        tokens, places = self._chat.observation(*messages, ended=ended, grids=grids)
        if len(tokens) >= room:
            return False
        files = [_file(self._read, picture) for picture in pictures]
        spans = [
            MediaSpan(start=start, end=end, sha256=picture.sha256, grid=grid)
            for (start, end), picture, grid in zip(places, pictures, grids, strict=True)
        ]
        before = len(self.ledger)
        self.ledger.append_context(tokens, SpanKind.OBSERVATION, spans)
        self._pictures += (
            PromptImage(span=span.moved(before), data=data) for span, data in zip(spans, files, strict=True)
        )
        return True

    def _record(self, generation: Generation) -> None:
        start = 0
        for kind, tokens in self._chat.split_turn(generation.tokens):
            part = slice(start, start + len(tokens))
            self.ledger.append_policy(tokens, generation.logprobs[part], generation.versions[part], kind)
            start += len(tokens)


class ChatSession:
    """Call a policy behind a chat endpoint: messages in, text out; the ledger remains empty.

    Token limits use the numbers that the endpoint reports, so a prompt that is too long is detected with the first
    answer. Where it reports none they are estimated from the length of the text.
    """

    def __init__(self, policy: ChatPolicy, sampling: SamplingParams, read: ReadPicture | None = None) -> None:
        """Call `policy`; token limit and seed of `sampling` are set per turn, `read` as in `TokenSession`."""
        self.name, self.ledger = policy.name, TokenLedger()
        self._policy, self._sampling, self._read = policy, sampling, read
        self._messages: list[dict[str, Any]] = []
        self._max_prompt = 0
        self._prompt_tokens: int | None = None
        self._used = 0

    @property
    def used(self) -> int:
        """Tokens after the prompt, as far as they are known."""
        return self._used

    def begin(self, messages: Sequence[dict[str, str]], max_tokens: int) -> None:
        """Keep the messages; their number of tokens is known when the endpoint has counted them."""
        self._messages = [dict(message) for message in messages]
        self._max_prompt = max_tokens

    async def sample_turn(
        self, *, max_tokens: int, seed: int, request_id: str, on_text: OnText | None = None
    ) -> SampledTurn:
        """Request a turn, which is not streamed. Raises PromptTooLong, and InfraFailure when the endpoint gave up."""
        sampling = self._sampling.model_copy(update={"max_tokens": max_tokens, "seed": seed})
        reply = await self._policy.reply(self._messages, sampling)
        said = _estimate(reply.text) if reply.completion_tokens is None else reply.completion_tokens
        if self._prompt_tokens is None:
            opening = sum(_estimate(message["content"]) for message in self._messages)
            self._prompt_tokens = opening if reply.prompt_tokens is None else reply.prompt_tokens
            if self._prompt_tokens > self._max_prompt:
                raise PromptTooLong(f"prompt has {self._prompt_tokens} tokens, limit {self._max_prompt}")
        if reply.prompt_tokens is not None:
            self._used = max(0, reply.prompt_tokens - self._prompt_tokens)
        self._used += said
        text = reply.text.strip()  # White space around a turn is the server's.
        self._messages.append({"role": "assistant", "content": text})
        return SampledTurn(text, said, reply.finish is FinishReason.LENGTH)

    def hear(self, messages: Sequence[str], room: int, pictures: Sequence[ImageRef] = ()) -> bool:
        """Append user messages, if there is room for them by the estimate."""
        pixels = sum(picture.width * picture.height for picture in pictures)
        size = sum(map(_estimate, messages)) + pixels // _PIXELS_PER_TOKEN
        if size >= room:
            return False
        images = iter([_image_part(picture, _file(self._read, picture)) for picture in pictures])
        contents = [_content(text, images) if pictures else text for text in messages]
        self._used += size
        self._messages += ({"role": "user", "content": content} for content in contents)
        return True


def _content(text: str, images: Iterator[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the content of a message; its pictures are the next of `images`."""
    parts = parts_of(text)
    if all(part["type"] == "text" for part in parts):
        return text
    return [part if part["type"] == "text" else next(images) for part in parts]


def _image_part(picture: ImageRef, data: bytes) -> dict[str, Any]:
    url = f"data:{picture.media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _file(read: ReadPicture | None, picture: ImageRef) -> bytes:
    """Return the file of a picture. Raises InfraFailure when it cannot be read."""
    assert read is not None, "a session whose policy sees needs the files of its pictures"
    try:
        return read(picture)
    except OSError as error:
        raise InfraFailure(f"a picture that the policy should see cannot be read: {error}") from error


def _estimate(text: object) -> int:
    return len(text) // _CHARS_PER_TOKEN + 1 if isinstance(text, str) else 0
