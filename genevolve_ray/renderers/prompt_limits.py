"""Prompts that a generator's text encoders cut: each encoder reads a fixed number of tokens and drops the rest.

Pipelines format and truncate a prompt in ways of their own (77 tokens for CLIP, 512 for Z-Image with its chat template).
So nothing is calculated again here: the calls of the pipeline's own tokenizers are observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CUT_PROMPTS = "renderer.prompt_cut"
"""The name on the meter: its `images` are pictures of prompts of which the generator read only the beginning."""


@dataclass
class _Seen:
    """Hold the tokens that one tokenizer made of each prompt, and those that it kept."""

    tokens: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


class PromptWatch:
    """Observe how many tokens of the prompts of a call reach the text encoders of a pipeline."""

    def __init__(self, pipeline: Any, limit: int | None = None) -> None:
        """Observe the tokenizers of a pipeline; `limit` is the call's `max_sequence_length`.

        Some pipelines cut the embeddings to it, and not the tokens.
        """
        self._limit, self._skipped = limit, int(getattr(pipeline, "prompt_template_encode_start_idx", 0) or 0)
        self._prompts: tuple[str, ...] = ()
        self._seen: list[_Seen] = []
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            if callable(tokenizer := getattr(pipeline, name, None)):
                self._seen.append(seen := _Seen())
                self._observe(tokenizer, seen)

    def _observe(self, tokenizer: Any, seen: _Seen) -> None:
        kind = type(tokenizer)

        def called(this: Any, text: Any = None, *args: Any, **options: Any) -> Any:
            if self._prompts:
                self._count(kind, this, seen, text, options)
            return kind.__call__(this, text, *args, **options)

        # A subclass: the pipeline and its helpers see the same type.
        tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": called})

    def _count(self, kind: Any, tokenizer: Any, seen: _Seen, text: Any, options: dict[str, Any]) -> None:
        for one in text if isinstance(text, list | tuple) else [text]:
            for prompt in self._prompts:
                if not (isinstance(one, str) and prompt.strip() in one):
                    continue
                special = {"add_special_tokens": options.get("add_special_tokens", True)}
                tokens = len(kind.__call__(tokenizer, one, verbose=False, **special)["input_ids"])
                cut = options.get("truncation") in (True, "longest_first", "only_first")
                room = int(options.get("max_length") or tokenizer.model_max_length) if cut else tokens
                if self._limit is not None and "CLIP" not in kind.__name__:
                    room = min(room, self._limit + self._skipped)
                seen.tokens[prompt] = tokens
                seen.kept[prompt] = min(tokens, room, seen.kept.get(prompt, room))

    @contextmanager
    def of(self, prompts: Sequence[str]) -> Iterator[None]:
        """Observe the call for some prompts."""
        for seen in self._seen:
            seen.tokens.clear()
            seen.kept.clear()
        self._prompts = tuple(dict.fromkeys(filter(None, prompts)))
        try:
            yield
        finally:
            self._prompts = ()

    def cut(self, prompt: str) -> str:
        """Return how a prompt of the last call was cut, in words; "" where an encoder read all of it."""
        read = [(seen.kept[prompt], seen.tokens[prompt]) for seen in self._seen if prompt in seen.tokens]
        if not read or any(kept >= tokens for kept, tokens in read):
            return ""
        kept, tokens = max(read)
        return f"the prompt has {tokens} tokens, of which the text encoder reads {kept}"
