"""The chat template's own tokens: the learner trains on exactly the tokens that the engine consumed.

Policy turns are never re-tokenized. The prompt is rendered once, and each observation appends the tokens that the
template puts between one assistant turn and the next. A template that strips earlier thinking would render a different
history than the one on which the engine was conditioned. Keeping the tokens unchanged is right for training: behavior
log-probs and the learner's log-probs are then computed on the same context.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from genevolve_ray.agent.parser import THINK_OPEN, dissect
from genevolve_ray.records.ledger import SpanKind

_SENTINEL = "genevolve-sentinel"
_REMEMBERED = 2048
"""Observations whose tokens are cached by default: the rollouts of a group read the same skills and often the same
hits."""


class ChatTokenizer(Protocol):
    """Define the part of a Hugging Face tokenizer that is used here."""

    @property
    def all_special_ids(self) -> list[int]:
        """Return the ids of the special tokens."""
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


class ChatFormat:
    """Provide one tokenizer's chat template as token sequences.

    Attributes:
        end_of_turn_id: the special token that closes an assistant turn.
        thinking_prefix: the part of the policy's thinking that the generation prompt opens (a <think> tag, or nothing).
    """

    def __init__(self, tokenizer: ChatTokenizer, remembered: int = _REMEMBERED) -> None:
        """Derive the turn structure from the template; the tokens of `remembered` observations are cached.

        Raises:
            ValueError: when the template does not close an assistant turn with a special token.
        """
        self.tokenizer = tokenizer
        self._observation_ids = lru_cache(maxsize=remembered)(lambda text: self.text_ids(self._suffix(text)))
        suffix = self._suffix("x")
        first = self.text_ids(suffix)[0] if suffix else None
        if first is None or first not in tokenizer.all_special_ids:
            raise ValueError(f"chat template must end an assistant turn with a special token, not {suffix[:40]!r}")
        self.end_of_turn_id: int = first
        at = suffix.rfind(THINK_OPEN)
        self.thinking_prefix = suffix[at:] if at >= 0 and not suffix[at + len(THINK_OPEN) :].strip() else ""

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the template's tokens of the messages and the generation prompt."""
        rendered = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.text_ids(rendered)

    def system_ids(self, start: str) -> list[int]:
        """Return the template's tokens up to and with `start`, the first part of a system message."""
        conversation = [{"role": "system", "content": start + _SENTINEL}, {"role": "user", "content": "x"}]
        rendered = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return self.text_ids(str(rendered).partition(_SENTINEL)[0])

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text by itself, without special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def observation_ids(self, text: str, ended: bool) -> list[int]:
        """Return the tokens between a policy turn and the next: a user message and the generation prompt.

        Args:
            text: content of the user message.
            ended: whether the policy emitted the end-of-turn token itself; if not, it leads the result.
        """
        ids = self._observation_ids(text)
        return ids[1:] if ended else ids[:]

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

    def _suffix(self, text: str) -> str:
        conversation = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": _SENTINEL},
            {"role": "user", "content": text},
        ]
        rendered = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return str(rendered).partition(_SENTINEL)[2]
