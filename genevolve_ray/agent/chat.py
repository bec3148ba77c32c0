"""The chat template's own tokens: the learner trains on exactly the tokens that the engine consumed.

Policy turns are never re-tokenized. The prompt is rendered once, and each observation appends the tokens that the
template puts between one assistant turn and the next. A template that strips earlier thinking would render a different
history than the one on which the engine was conditioned. Keeping the tokens unchanged is right for training: behavior
log-probs and the learner's log-probs are then computed on the same context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from genevolve_ray.agent.parser import THINK_OPEN, dissect
from genevolve_ray.models.image_tokens import Grid, ImageTokens
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.texts import IMAGE_MARK

Content = str | list[dict[str, str]]
"""Content of a message: a text, or texts and pictures in order."""
_SENTINEL = "genevolve-sentinel"
_REMEMBERED = 2048
"""Observations whose tokens are cached by default: the rollouts of a group read the same skills and often the same
hits."""


class ChatTokenizer(Protocol):
    """Define the part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    """The template's text, or texts by name."""

    @property
    def all_special_ids(self) -> list[int]:
        """Return the ids of the special tokens."""
        ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Return the added tokens by id, marked special or not."""
        ...

    def __len__(self) -> int:
        """Return the number of token ids, added tokens included."""
        ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages as text or token ids."""
        ...

    def encode(self, text: Any, **kwargs: Any) -> Any:
        """Return token ids."""
        ...

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """Return text."""
        ...


def load_tokenizer(model_dir: str | Path) -> Any:
    """Load the tokenizer of a model folder, with the template of its processor where it has none of its own.

    Errors are those of transformers and tokenizers, which raise any kind.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    file = Path(model_dir) / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    return tokenizer


def parts_of(text: str) -> list[dict[str, str]]:
    """Return a message's content as parts, in the form that templates of models with vision read."""
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(text.split(IMAGE_MARK)):
        if place:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _joined(system: Content, content: Content) -> Content:
    if isinstance(content, str):
        return f"{system}\n{content}"
    return [{"type": "text", "text": f"{system}\n"}, *content]


class ChatFormat:
    """Provide one tokenizer's chat template as token sequences.

    A template without a place for a system message gets it at the start of the user message that follows. A template
    that prints today's date prints the same date for the lifetime of this object.

    Attributes:
        end_of_turn_id: the token that closes an assistant turn; the tokenizer may mark it special or not.
        thinking_prefix: the part of the policy's thinking that the generation prompt opens (a <think> tag, or nothing).
        dated: whether the template asks for today's date.
        date: the date that it prints, as YYYY-MM-DD.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        remembered: int = _REMEMBERED,
        date: str = "",
        image_tokens: ImageTokens | None = None,
    ) -> None:
        """Derive the turn structure from the template; the tokens of `remembered` observations are cached.

        `date` is the day that the template prints; by default the current day. `image_tokens` are those of the model,
        which observations with pictures need.

        Raises:
            ValueError: when there is no template, when it fails, and when it does not close an assistant turn with a
                token of its own.
        """
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template")
        self.dated = "strftime_now" in str(tokenizer.chat_template)
        self.date = date or datetime.now(UTC).date().isoformat()
        self._folds = not self._takes_system()
        self.image_tokens = image_tokens
        self._observation_ids = lru_cache(maxsize=remembered)(lambda texts: self.text_ids(self._suffix(*texts)))
        self._seen_ids = lru_cache(maxsize=remembered)(lambda texts: self.text_ids(self._suffix(*map(parts_of, texts))))
        suffix = self._suffix("x")
        ids = self.text_ids(suffix)
        if not ids or ids[0] not in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
            raise ValueError(
                f"chat template must end an assistant turn with a special or added token, not {suffix[:40]!r}"
            )
        self.end_of_turn_id: int = ids[0]
        at = suffix.rfind(THINK_OPEN)
        self.thinking_prefix = suffix[at:] if at >= 0 and not suffix[at + len(THINK_OPEN) :].strip() else ""

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the template's tokens of the messages and the generation prompt."""
        return self.text_ids(self._render(messages))

    def system_ids(self, start: str) -> list[int]:
        """Return the template's tokens up to and with `start`, the first part of a system message."""
        conversation = [{"role": "system", "content": start + _SENTINEL}, {"role": "user", "content": "x"}]
        return self.text_ids(self._render(conversation).partition(_SENTINEL)[0])

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text by itself, without special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def observation_ids(self, *texts: str, ended: bool) -> list[int]:
        """Return the tokens between a policy turn and the next: user messages and the generation prompt.

        Args:
            texts: contents of the user messages.
            ended: whether the policy emitted the end-of-turn token itself; if not, it leads the result.

        Raises:
            ValueError: for several messages, when the template forbids user messages in a row.
        """
        ids = self._observation_ids(texts)
        return ids[1:] if ended else ids[:]

    def observation(
        self, *texts: str, ended: bool, grids: Sequence[Grid] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of `observation_ids`, and the places of its pictures among them.

        Args:
            texts: contents of the user messages; each `<image>` is a picture.
            ended: as in `observation_ids`.
            grids: patches of the pictures, in the order of their places. Without any, `<image>` is ordinary text.

        Raises:
            ValueError: when the model does not see, or its template does not show one image token for each picture.
        """
        if not grids:
            return self.observation_ids(*texts, ended=ended), []
        ids = self._seen_ids(texts)
        return self._images().expand(ids[1:] if ended else ids, grids)

    def prompt(
        self, messages: Sequence[dict[str, str]], grids: Sequence[Grid] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of `prompt_ids`, and the places of the pictures in its user messages, as `observation`."""
        if not grids:
            return self.prompt_ids(messages), []
        shown: list[dict[str, Content]] = [
            {**m, "content": parts_of(m["content"]) if m["role"] == "user" else m["content"]} for m in messages
        ]
        return self._images().expand(self.text_ids(self._render(shown)), grids)

    def grid(self, width: int, height: int) -> Grid:
        """Return the patches of a picture of so many pixels. Raises ValueError when the model does not see."""
        return self._images().grid(width, height)

    def _images(self) -> ImageTokens:
        if self.image_tokens is None:
            raise ValueError("the model does not see: its config.json names no image token")
        return self.image_tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the exact text of tokens: special tokens kept, spaces unchanged."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def turn_text(self, tokens: Sequence[int]) -> str:
        """Return a turn as the parser reads it: without its end-of-turn token, with the thinking prefix."""
        body = tokens[:-1] if self.ended(tokens) else tokens
        return self.thinking_prefix + self.decode(body)

    def ended(self, tokens: Sequence[int]) -> bool:
        """Return whether a policy turn has its end-of-turn token."""
        return bool(tokens) and tokens[-1] == self.end_of_turn_id

    def split_turn(self, tokens: Sequence[int]) -> list[tuple[SpanKind, list[int]]]:
        """Cut a policy turn into thinking and action (or TEXT when malformed) at token boundaries.

        The parts concatenate to `tokens` and none is empty; white space and the end-of-turn token belong to the part
        before the next tag's token.
        """
        tokens = list(tokens)
        if not tokens:
            return []
        anatomy = dissect(self.turn_text(tokens))
        cut = self._token_index(tokens, anatomy.think_end - len(self.thinking_prefix))
        parts = [(SpanKind.THINK, tokens[:cut]), (anatomy.kind, tokens[cut:])]
        return [(kind, part) for kind, part in parts if part]

    def length_through(self, tokens: Sequence[int], text: str) -> int | None:
        """Return the number of leading tokens that end exactly where `text` first ends.

        None where the text does not occur or a token extends beyond its end.
        """
        tokens, whole = list(tokens), self.decode(tokens)
        at = whole.find(text)
        if not text or at < 0:
            return None
        end = at + len(text)
        count = self._token_index(tokens, end)
        return count if self.decode(tokens[:count]) == whole[:end] else None

    def _token_index(self, tokens: list[int], chars: int) -> int:
        """Return the fewest tokens whose text holds `chars` characters, by bisection over prefixes."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self.decode(tokens[:middle])) < chars:
                low = middle + 1
            else:
                high = middle
        return low

    def check_user_turns(self) -> None:
        """Check that the template shows two user messages in a row, apart or merged.

        Raises:
            ValueError: when it forbids them, or leaves one out.
        """
        try:
            shown = self._suffix("genevolve-one", "genevolve-two")
        except ValueError as error:
            raise ValueError(f"the chat template forbids two user messages in a row: {error}") from error
        if not 0 <= shown.find("genevolve-one") < shown.find("genevolve-two"):
            raise ValueError("the chat template leaves out one of two user messages in a row")

    def _suffix(self, *texts: Content) -> str:
        conversation: list[dict[str, Content]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": _SENTINEL},
            *({"role": "user", "content": text} for text in texts),
        ]
        # White space before the end belongs to the template's layout: the policy emits the token itself.
        return self._render(conversation).partition(_SENTINEL)[2].lstrip()

    def _takes_system(self) -> bool:
        """Return whether the template shows a system message. Some raise an error for one, others leave it out."""
        self._folds = False
        try:
            return _SENTINEL in self._render(
                [{"role": "system", "content": _SENTINEL}, {"role": "user", "content": "x"}]
            )
        except ValueError:
            return False

    def _render(self, messages: Sequence[Mapping[str, Content]]) -> str:
        """Return the template's text of the messages and the generation prompt. Raises ValueError when it fails."""
        from jinja2 import TemplateError

        conversation = [dict(message) for message in messages]
        if self._folds and len(conversation) > 1 and conversation[0]["role"] == "system":
            system, first = conversation[0]["content"], conversation[1]
            conversation[:2] = [first | {"content": _joined(system, first["content"])}]
        clock = {"strftime_now": self._strftime} if self.dated else {}
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **clock
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the chat template fails: {type(error).__name__}: {error}") from error
        return str(rendered)

    def _strftime(self, form: str) -> str:
        return date.fromisoformat(self.date).strftime(form)
