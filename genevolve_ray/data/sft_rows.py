"""SFT rows as training examples: the chat template's own tokens, and a mask of the assistant's tokens.

The tokens equal those of the token ledger of an episode with the same conversation. The template renders the prompt.
Every assistant turn is encoded by itself and closed by the end-of-turn token. Each observation adds the tokens that the
template puts between two turns.

Some templates strip earlier thinking. Here it stays, because the policy reads its own earlier thinking at run time (see
`agent.chat`). Training uses that context, and one pass over the conversation trains every turn. For templates that keep
thinking, the tokens equal the template's rendering.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genevolve_ray.agent.chat import ChatFormat, ChatTokenizer
from genevolve_ray.agent.parser import THINK_OPEN
from genevolve_ray.engines.ban import ENVIRONMENT_TAGS, PROTOCOL_TAGS
from genevolve_ray.records.published.rejections import Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.trajectories import SftRow
from genevolve_ray.records.seeds import derive_seed

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftExample

ImageMode = Literal["text", "vision"]


@dataclass(frozen=True)
class TokenizedRow:
    """Hold a conversation as tokens, four bytes each; `spans` are the assistant's tokens as [start, end).

    A data set stays in memory in this form; `example` makes the lists that a training step takes.
    """

    id: str
    tokens: array[int]
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Return T."""
        return len(self.tokens)

    @property
    def target_tokens(self) -> int:
        """Number of tokens that contribute to the loss."""
        return sum(end - start for start, end in self.spans)

    def example(self) -> SftExample:
        """Return tokens and mask as `learning.sft` takes them."""
        from genevolve_ray.learning.sft import SftExample

        mask = [False] * len(self.tokens)
        for start, end in self.spans:
            mask[start:end] = [True] * (end - start)
        return SftExample(self.tokens.tolist(), mask)


class RowEncoder:
    """Encode SFT rows as tokens of one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer, cutoff: int = 32768, images: ImageMode = "text") -> None:
        """Read the template.

        Args:
            tokenizer: a Hugging Face tokenizer with a chat template.
            cutoff: most tokens of a row. Longer rows are rejected, since a cut conversation would have lost its answer.
            images: "text" keeps the `<image>` placeholders as text; "vision" would replace them by the tokens of the
                images.

        Raises:
            ValueError: for "vision", or a template whose turns have no end.
        """
        if images == "vision":
            raise ValueError(
                "images=vision needs a vision processor in the learner, which this version does not have: "
                "images=text trains on the placeholders as text"
            )
        # Observations of a data set rarely repeat.
        self._chat = ChatFormat(tokenizer, remembered=16)
        self.cutoff = cutoff
        frame = {
            *self._chat.prompt_ids([{"role": "user", "content": "x"}]),
            *self._chat.observation_ids("x", ended=False),
        }
        # Some tokenizers do not mark the tokens that frame a turn special, yet read them as such in any text.
        control = {*tokenizer.all_special_ids, *(frame & tokenizer.added_tokens_decoder.keys())}
        special = {self._chat.decode([token]) for token in control}
        self._control = sorted(text for text in special - {*PROTOCOL_TAGS, *ENVIRONMENT_TAGS} if text.strip())

    @property
    def date(self) -> str | None:
        """The day that the template prints, None where it prints none."""
        return self._chat.date if self._chat.dated else None

    def encode(self, row: SftRow) -> TokenizedRow:
        """Return a row's tokens. Raises RowFault for one that cannot be trained on."""
        for place, message in enumerate(row.messages):
            if control := next((text for text in self._control if text in message.content), None):
                raise RowFault(RejectionReason.CONTROL_TEXT, f"message {place} holds {control}")
        first = next(place for place, message in enumerate(row.messages) if message.role == "assistant")
        prompt = [message.model_dump() for message in row.messages[:first]]
        tokens, spans, said = array("i", self._context(self._chat.prompt_ids, prompt)), [], list[str]()
        for place, message in enumerate(row.messages[first:], first):
            if message.role != "assistant":
                said.append(message.content)
                continue
            if said:
                tokens.extend(self._context(self._chat.observation_ids, *said, ended=True))
                said.clear()
            start = len(tokens)
            tokens.extend(self._turn(message.content, place))
            spans.append((start, len(tokens)))
        if len(tokens) > self.cutoff:
            raise RowFault(RejectionReason.TOO_MANY_TOKENS, f"{len(tokens)} tokens, cutoff {self.cutoff}")
        return TokenizedRow(row.id, tokens, tuple(spans))

    def _context(self, rendered: Callable[..., list[int]], *said: Any, **how: bool) -> list[int]:
        """Return the tokens of messages. Raises RowFault where the template forbids their order."""
        try:
            return rendered(*said, **how)
        except ValueError as error:
            raise RowFault(RejectionReason.ROLE_ORDER, error) from error

    def _turn(self, text: str, place: int) -> list[int]:
        """Return a turn as the policy would have sampled it: without the template's opening, with its end token."""
        prefix = self._chat.thinking_prefix
        if prefix:
            body = text.lstrip()
            if not body.startswith(THINK_OPEN):
                raise RowFault(RejectionReason.NO_THINKING, f"message {place}")
            body = body.removeprefix(THINK_OPEN)
            text = body.lstrip() if prefix[-1:].isspace() else body
        return [*self._chat.tokenizer.encode(text, add_special_tokens=False), self._chat.end_of_turn_id]

    def encode_all(self, rows: Iterable[SftRow], report: RejectionReport) -> Iterator[TokenizedRow]:
        """Yield the tokens of rows; the report counts those that cannot be trained on."""
        for row in rows:
            try:
                yield self.encode(row)
            except RowFault as fault:
                report.reject(Rejection(str(row.source), row.number, fault.reason, fault.detail))


def epochs_of(rows: Sequence[TokenizedRow], *, epochs: int, batch: int, seed: int) -> Iterator[list[TokenizedRow]]:
    """Yield batches over `epochs` passes, each in an order of its own that follows from the seed.

    A batch may reach from one pass into the next; only the very last one may be smaller.
    """
    pending: list[TokenizedRow] = []
    for epoch in range(epochs):
        rng = np.random.default_rng(derive_seed(seed, "sft-order", epoch))
        for place in rng.permutation(len(rows)):
            pending.append(rows[int(place)])
            if len(pending) == batch:
                yield pending
                pending = []
    if pending:
        yield pending
