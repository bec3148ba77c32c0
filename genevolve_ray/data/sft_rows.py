"""SFT rows as training examples: the chat template's own tokens, and a mask of the assistant's tokens.

The tokens equal those of the token ledger of an episode with the same conversation. The template renders the prompt.
Every assistant turn is encoded by itself and closed by the end-of-turn token. Each observation adds the tokens that the
template puts between two turns.

Some templates strip earlier thinking. Here it stays, because the policy reads its own earlier thinking at run time (see
`agent.chat`). Training uses that context, and one pass over the conversation trains every turn. For templates that keep
thinking, the tokens equal the template's rendering.

With pictures (`images: vision`), each `<image>` of a user message becomes the image tokens of its picture, as in the
observations of an episode. Elsewhere it stays text: a policy sees pictures in user messages alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genevolve_ray.agent.chat import ChatFormat, ChatTokenizer
from genevolve_ray.agent.parser import THINK_OPEN
from genevolve_ray.data.sft_pictures import RowPicture, RowPictures
from genevolve_ray.engines.ban import ENVIRONMENT_TAGS, PROTOCOL_TAGS
from genevolve_ray.models.image_tokens import Grid
from genevolve_ray.records.published.rejections import Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.row_pictures import PicturePlace
from genevolve_ray.records.published.trajectories import SftRow
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.texts import IMAGE_MARK

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftExample

ImageMode = Literal["text", "vision"]


@dataclass(frozen=True)
class TokenizedRow:
    """Hold a conversation as tokens, four bytes each; `spans` are the assistant's tokens as [start, end).

    A data set stays in memory in this form; `example` makes the lists that a training step takes. `pictures` are those
    behind its image tokens, as places; `source` and `number` name the row, as in reports.
    """

    id: str
    tokens: array[int]
    spans: tuple[tuple[int, int], ...]
    pictures: tuple[RowPicture, ...] = ()
    source: str = ""
    number: int = 0

    def __len__(self) -> int:
        """Return T."""
        return len(self.tokens)

    @property
    def target_tokens(self) -> int:
        """Number of tokens that contribute to the loss."""
        return sum(end - start for start, end in self.spans)

    def example(self) -> SftExample:
        """Return tokens and mask as `learning.sft` takes them, without pictures."""
        from genevolve_ray.learning.sft import SftExample

        mask = [False] * len(self.tokens)
        for start, end in self.spans:
            mask[start:end] = [True] * (end - start)
        return SftExample(self.tokens.tolist(), mask)


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """Hold what became of a row: its tokens, or None and why it is left out; of a row that is kept, what is noted."""

    row: TokenizedRow | None
    remark: Rejection | None = None

    def reported(self, report: RejectionReport) -> list[TokenizedRow]:
        """Count the remark in a report, and return the row where it is kept."""
        if self.remark is not None:
            (report.reject if self.row is None else report.note)(self.remark)
        return [] if self.row is None else [self.row]


class RowEncoder:
    """Encode SFT rows as tokens of one tokenizer."""

    def __init__(
        self, tokenizer: ChatTokenizer, cutoff: int = 32768, pictures: RowPictures | None = None, date: str = ""
    ) -> None:
        """Read the template.

        Args:
            tokenizer: a Hugging Face tokenizer with a chat template.
            cutoff: most tokens of a row. Longer rows are rejected, since a cut conversation would have lost its answer.
            pictures: opens the pictures of rows; without it, the `<image>` placeholders stay text.
            date: the day that the template prints, as YYYY-MM-DD; by default the current day.

        Raises:
            ValueError: for a template whose turns have no end, or that does not show pictures where it should.
        """
        # Observations of a data set rarely repeat.
        self._chat = ChatFormat(tokenizer, remembered=16, date=date, image_tokens=pictures.tokens if pictures else None)
        self._pictures = pictures
        self.cutoff = cutoff
        frame = {
            *self._chat.prompt_ids([{"role": "user", "content": "x"}]),
            *self._chat.observation_ids("x", ended=False),
        }
        if pictures is not None:
            seen = {"grids": [pictures.tokens.grid(64, 64)]}
            frame |= {*self._chat.prompt([{"role": "user", "content": IMAGE_MARK}], **seen)[0]}
            frame |= {*self._chat.observation(IMAGE_MARK, ended=False, **seen)[0]}
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
            text = message.content
            if self._pictures is not None and message.role == "user":
                text = text.replace(IMAGE_MARK, "\n")
            if control := next((mark for mark in self._control if mark in text), None):
                raise RowFault(RejectionReason.CONTROL_TEXT, f"message {place} holds {control}")
        pictures = self._pictures.placed(shown_pictures(row)) if self._pictures is not None else []
        grids = iter([picture.grid for picture in pictures])
        first = next(place for place, message in enumerate(row.messages) if message.role == "assistant")
        prompt = [message.model_dump() for message in row.messages[:first]]
        asked = [message.content for message in row.messages[:first] if message.role == "user"]
        tokens = array("i", self._context(partial(self._chat.prompt, prompt), asked, grids))
        spans, said = list[tuple[int, int]](), list[str]()
        for place, message in enumerate(row.messages[first:], first):
            if message.role != "assistant":
                said.append(message.content)
                continue
            if said:
                tokens.extend(self._context(partial(self._chat.observation, *said, ended=True), said, grids))
                said.clear()
            start = len(tokens)
            tokens.extend(self._turn(message.content, place))
            spans.append((start, len(tokens)))
        if len(tokens) > self.cutoff:
            raise RowFault(RejectionReason.TOO_MANY_TOKENS, f"{len(tokens)} tokens, cutoff {self.cutoff}")
        return TokenizedRow(row.id, tokens, tuple(spans), tuple(pictures), str(row.source), row.number)

    def _context(self, rendered: Callable[..., Any], texts: Sequence[str], grids: Iterator[Grid]) -> list[int]:
        """Return the tokens of messages, with those of the pictures in `texts`, which are the next of `grids`.

        Raises RowFault where the template forbids their order.
        """
        pictures = list(islice(grids, sum(text.count(IMAGE_MARK) for text in texts)))
        try:
            tokens: list[int] = rendered(grids=pictures)[0]
        except ValueError as error:
            raise RowFault(RejectionReason.ROLE_ORDER, error) from error
        return tokens

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

    def outcome(self, row: SftRow) -> RowOutcome:
        """Return what becomes of a row."""
        try:
            encoded = self.encode(row)
        except RowFault as fault:
            return RowOutcome(None, Rejection(str(row.source), row.number, fault.reason, fault.detail))
        if self._pictures is not None and (hidden := len(row.images) - len(encoded.pictures)):
            detail = f"{hidden} of {len(row.images)} images"
            return RowOutcome(encoded, Rejection(str(row.source), row.number, RejectionReason.IMAGE_NOT_SHOWN, detail))
        return RowOutcome(encoded)

    def encode_all(self, rows: Iterable[SftRow], report: RejectionReport) -> Iterator[TokenizedRow]:
        """Yield the tokens of rows; the report counts those that cannot be trained on."""
        for row in rows:
            yield from self.outcome(row).reported(report)


def shown_pictures(row: SftRow) -> list[PicturePlace]:
    """Return the pictures of a row that stand in messages of the user, in order."""
    places, shown = iter(row.pictures), list[PicturePlace]()
    for message in row.messages:
        its = list(islice(places, message.content.count(IMAGE_MARK)))
        shown += its if message.role == "user" else ()
    return shown


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
