"""Reasons for excluding a row, and the report of all excluded rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from genevolve_ray.errors import GenevolveError, UserFault

DETAIL_CHARS = 200
"""Longest detail that a report keeps of one row."""


class DataError(UserFault, ValueError):
    """Signal that a data set cannot be used at all.

    A file, which the message names, is missing or broken, or no row remains.
    """


class RejectionReason(StrEnum):
    """Name the reason why a row is excluded (or, as a note, an anomaly of a row that is kept)."""

    ROW_TOO_LONG = "row_too_long"
    """The row exceeds the limit in bytes; the rest of it was skipped unread."""
    NOT_UTF8 = "not_utf8"
    """The line is not UTF-8."""
    NOT_JSON = "not_json"
    """The line is not JSON."""
    NOT_AN_OBJECT = "not_an_object"
    """The line is JSON, but not an object."""
    UNREADABLE_VALUE = "unreadable_value"
    """A value of a Parquet row has no representation in Python (text that is not UTF-8, a date out of range)."""
    BAD_FIELD = "bad_field"
    """A field has the wrong kind of value."""
    BAD_TEXT = "bad_text"
    """A text holds half of a surrogate pair, which no tokenizer and no file can hold."""
    MISSING_ID = "missing_id"
    """A WISE entry without its prompt id."""
    UNSAFE_ID = "unsafe_id"
    """An id that cannot be the name of a picture: a separator, a reserved character or name, too long."""
    NAME_COLLISION = "name_collision"
    """The picture of this row would have the file name of an earlier one, on a disk that folds case or accents."""
    DUPLICATE_ID = "duplicate_id"
    """An earlier row has this id; for SFT rows: an earlier row has this very conversation."""
    MISSING_REQUEST = "missing_request"
    """Neither `prompt` nor `question` holds any text."""
    MISSING_TRUTH = "missing_truth"
    """No ground-truth image under any of its names."""
    MISSING_EVAL_TYPE = "missing_eval_type"
    """A note: neither the type of request nor a published category that implies it; it counts as Knowledge-Anchored."""
    UNSAFE_PATH = "unsafe_path"
    """An image path that is absolute, leaves the data set, or is not a path."""
    MISSING_IMAGE = "missing_image"
    """The image file does not exist."""
    UNREADABLE_IMAGE = "unreadable_image"
    """The image file cannot be decoded within the judge's limits: another format, truncated, too large, a pointer."""
    HELD_OUT_INDEX = "held_out_index"
    """The row has the `prompt_pool_index` of a held-out request."""
    HELD_OUT_REQUEST = "held_out_request"
    """The row has the text of a held-out request (equal up to case, width and white space)."""
    NO_MESSAGES = "no_messages"
    """`messages` is missing or empty."""
    UNKNOWN_ROLE = "unknown_role"
    """A message has a role other than system, user and assistant."""
    ROLE_ORDER = "role_order"
    """Roles are out of order. Valid: an optional system text, then users and single assistants in turns, the assistant
    last. Some chat templates forbid several user messages in a row."""
    EMPTY_TURN = "empty_turn"
    """The text of an assistant turn, or of the request, is empty."""
    NO_ANSWER = "no_answer"
    """The last turn holds no complete <answer>."""
    EARLY_ANSWER = "early_answer"
    """A turn before the last answers: an episode would have ended there."""
    SEVERAL_ACTIONS = "several_actions"
    """A turn holds several actions; the protocol allows one."""
    NO_ACTION = "no_action"
    """A turn holds no complete action."""
    IMAGE_COUNT = "image_count"
    """The number of images differs from the number of <image> placeholders."""
    IMAGE_NOT_SHOWN = "image_not_shown"
    """A note: an <image> of the system or the assistant stays text, since a policy sees pictures in user messages alone.
    """
    TOO_MANY_TOKENS = "too_many_tokens"
    """The conversation has more tokens than the cutoff; a truncated one would have lost its answer."""
    CONTROL_TEXT = "control_text"
    """A message spells a control token of the tokenizer, which would end or open a turn in the middle of a text."""
    NO_THINKING = "no_thinking"
    """The chat template opens the thinking of every turn, and a turn has none."""


@dataclass(frozen=True)
class Rejection:
    """Describe one excluded row: file, number (lines and rows count from 1), reason, and the invalid value."""

    source: str
    number: int
    reason: RejectionReason
    detail: str = ""

    def __str__(self) -> str:
        """Return the rejection as one line."""
        return f"{self.source}:{self.number}: {self.reason.value}{': ' + self.detail if self.detail else ''}"


class RowFault(GenevolveError):
    """Report an invalid row inside a reader; the reader turns it into a `Rejection` and continues."""

    def __init__(self, reason: RejectionReason, detail: object = "") -> None:
        """Keep the reason and the value, truncated and safe to print."""
        text = " ".join(str(detail).split()).encode(errors="replace").decode()
        super().__init__(f"{reason.value}: {text[:DETAIL_CHARS]}")
        self.reason, self.detail = reason, text[:DETAIL_CHARS]


class RejectionReport:
    """Count accepted and rejected rows, with a few examples of each reason.

    Every row is counted once as seen and at most once as rejected. So `kept` = seen - rejected holds throughout a chain
    of readers and filters. Notes are about rows that are kept.
    """

    def __init__(self, examples: int = 5) -> None:
        """Keep at most `examples` rows of each reason."""
        self.seen = 0
        self.rejected: Counter[RejectionReason] = Counter()
        self.noted: Counter[RejectionReason] = Counter()
        self._limit = examples
        self._examples: dict[RejectionReason, list[Rejection]] = {}

    @property
    def kept(self) -> int:
        """Rows that were not rejected."""
        return self.seen - self.rejected.total()

    def see(self) -> None:
        """Count one more row."""
        self.seen += 1

    def reject(self, rejection: Rejection) -> None:
        """Count a seen row as excluded."""
        self.rejected[rejection.reason] += 1
        self._remember(rejection)

    def note(self, rejection: Rejection) -> None:
        """Count an anomaly of a row that is kept."""
        self.noted[rejection.reason] += 1
        self._remember(rejection)

    def _remember(self, rejection: Rejection) -> None:
        kept = self._examples.setdefault(rejection.reason, [])
        if len(kept) < self._limit:
            kept.append(rejection)

    def examples(self, reason: RejectionReason) -> list[Rejection]:
        """Return the first rows with a given reason."""
        return list(self._examples.get(reason, ()))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "seen": self.seen,
            "kept": self.kept,
            "rejected": {reason.value: count for reason, count in self.rejected.most_common()},
            "noted": {reason.value: count for reason, count in self.noted.most_common()},
            "examples": {reason.value: [str(r) for r in rows] for reason, rows in self._examples.items()},
        }

    def text(self) -> str:
        """Return the report as a few lines: totals, then each reason with its first example."""
        lines = [f"{self.seen} rows, {self.kept} kept, {self.rejected.total()} rejected"]
        for title, counts in (("", self.rejected), ("kept, but ", self.noted)):
            for reason, count in counts.most_common():
                example = self._examples[reason][0] if self._examples.get(reason) else ""
                lines.append(f"  {title}{reason.value}: {count}{f' (first: {example})' if example else ''}")
        return "\n".join(lines)

    def line(self) -> str:
        """Return the report as one line: totals, then each reason with its first example."""
        counts = self.rejected.most_common()
        first = {reason: rows[0] for reason, rows in self._examples.items()}
        reasons = [
            f"{count} {reason.value} (first: {first[reason].source}:{first[reason].number}: {first[reason].detail})"
            for reason, count in counts
        ]
        head = f"{self.kept} of {self.seen} rows kept"
        return f"{head}, {self.rejected.total()} rejected: {'; '.join(reasons)}" if reasons else head

    def json_lines(self) -> bytes:
        """Return the excluded rows as JSON lines, as many of each reason as the report keeps."""
        rows = [row for reason in self.rejected for row in self._examples.get(reason, ())]
        values = (
            {"source": row.source, "row": row.number, "reason": row.reason.value, "detail": row.detail} for row in rows
        )
        return b"".join(json.dumps(row).encode() + b"\n" for row in values)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
