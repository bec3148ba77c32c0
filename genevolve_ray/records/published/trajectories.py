"""SFT rows: a conversation with tools that ends in an answer, and the images that it contains."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.requests import request_key
from genevolve_ray.records.published.row_pictures import PicturePlace
from genevolve_ray.records.published.rows import (
    IMAGES,
    RawRow,
    ReadConfig,
    checked,
    identifier,
    raw_rows,
    relative_path,
    require_file,
    text_of,
    texts_of,
)
from genevolve_ray.records.texts import IMAGE_MARK

_OPENING = re.compile(r"<(tool_call|answer)>")
_THINKING = ("<think>", "</think>")


class Message(Record):
    """Hold one message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class SftRow(Record):
    """Hold a published trajectory; images are relative to `root`, in the order of their placeholders in the texts.

    Images that a Parquet file holds itself are `embedded`: `images` has what the file calls them, which may be nothing.
    `number` counts lines or rows from 1, `place` rows alone from 0.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    embedded: bool = False
    root: Path
    source: Path
    number: int
    place: int = 0

    @property
    def pictures(self) -> tuple[PicturePlace, ...]:
        """The place of each image."""
        file = self.source if self.embedded else None
        return tuple(PicturePlace(self.root, name, file, self.place, item) for item, name in enumerate(self.images))

    @property
    def request(self) -> str:
        """The user's request: the first user message."""
        return next(message.content for message in self.messages if message.role == "user")

    @property
    def key(self) -> str:
        """The hash of the normalized request.

        All trajectories of one request belong to the same part of a split.
        """
        return request_key(self.request)


class SftReadConfig(ReadConfig):
    """Configure how SFT rows are read.

    The protocol does not allow a turn with several actions (some published rows have them), without one, or with an
    answer too early. Training on such rows would teach turns to which this runtime replies with a format error.
    """

    broken_turns: Literal["reject", "keep"] = "reject"
    """Treatment of rows with a turn that the protocol does not allow; kept ones are counted as notes."""


def read_sft(paths: Iterable[Path], report: RejectionReport, config: SftReadConfig | None = None) -> Iterator[SftRow]:
    """Return the rows of SFT files, in order.

    A row has an optional system message, then user and assistant in turns; the last turn is the assistant's answer.
    Several user messages may follow each other (an observation, and the message of the last step). There are as many
    images as `<image>` placeholders. A row without an id is named by the hash of its conversation.

    Raises:
        DataError: for a file that is missing or broken.
    """
    settings = config or SftReadConfig()
    sources = [(path, raw_rows(path, report, settings.max_row_bytes)) for path in paths]
    seen: set[str] = set()

    def rows() -> Iterator[SftRow]:
        for path, raw in sources:
            for row in raw:
                try:
                    parsed, notes = _parse(row, settings.root or path.parent)
                    if notes and settings.broken_turns == "reject":
                        raise notes[0]
                    if parsed.id in seen:
                        raise RowFault(RejectionReason.DUPLICATE_ID, parsed.id)
                    for image in parsed.images if settings.check_images and not parsed.embedded else ():
                        require_file(parsed.root, image)
                except RowFault as fault:
                    report.reject(row.rejection(fault))
                    continue
                for note in notes:
                    report.note(row.rejection(note))
                seen.add(parsed.id)
                yield parsed

    return rows()


def _parse(row: RawRow, root: Path) -> tuple[SftRow, list[RowFault]]:
    messages = _messages(row.values.get("messages"))
    images, embedded = _images(row.values.get(IMAGES), row.columnar)
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if marks != len(images):
        raise RowFault(RejectionReason.IMAGE_COUNT, f"{len(images)} images, {marks} placeholders")
    own = identifier(row.values.get("id"), "id")
    parsed = SftRow(
        id=own or f"sft-{_digest(messages)}",
        messages=messages,
        images=images,
        embedded=embedded,
        root=root,
        source=row.source,
        number=row.number,
        place=row.place,
    )
    return parsed, _broken_turns([m.content for m in messages if m.role == "assistant"])


def _images(value: Any, columnar: bool) -> tuple[tuple[str, ...], bool]:
    """Return the images of a row, and whether the file holds them itself, as `{bytes, path}`."""
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not any(isinstance(item, Mapping) for item in items):
        return tuple(relative_path(image, IMAGES) for image in texts_of(value, IMAGES)), False
    names = []
    for place, item in enumerate(items):
        if not isinstance(item, Mapping) or set(item) != {"bytes", "path"}:
            raise RowFault(RejectionReason.BAD_FIELD, f"image {place} is no object of bytes and path")
        if item["bytes"] is not None:
            raise RowFault(RejectionReason.BAD_FIELD, f"image {place} has bytes, which only Parquet can hold")
        names.append(text_of(item["path"], f"image {place}.path"))
    return (tuple(names), True) if columnar else (tuple(relative_path(name, IMAGES) for name in names), False)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise RowFault(RejectionReason.NO_MESSAGES, f"messages is {type(value).__name__}")
    messages = tuple(_message(item, place) for place, item in enumerate(value))
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    repeated = any(pair == ("assistant", "assistant") for pair in pairwise(turns))
    if not turns or turns[0] != "user" or turns[-1] != "assistant" or repeated or "system" in turns:
        raise RowFault(RejectionReason.ROLE_ORDER, " ".join(roles))
    first = turns.index("user") + len(roles) - len(turns)
    for place, message in enumerate(messages):
        if not message.content.strip() and (message.role == "assistant" or place == first):
            raise RowFault(RejectionReason.EMPTY_TURN, f"message {place} ({message.role})")
    return messages


_ROLES: TypeAdapter[Any] = TypeAdapter(Literal["system", "user", "assistant"])


def _message(item: Any, place: int) -> Message:
    if not isinstance(item, dict):
        raise RowFault(RejectionReason.BAD_FIELD, f"message {place} is a {type(item).__name__}, not an object")
    role, content = item.get("role"), item.get("content")
    try:
        known = _ROLES.validate_python(role)
    except ValidationError as error:
        raise RowFault(RejectionReason.UNKNOWN_ROLE, f"message {place}: {str(role)[:40]!r}") from error
    if isinstance(content, list | tuple):
        content = _joined(content, place)
    if not isinstance(content, str):
        raise RowFault(
            RejectionReason.BAD_FIELD, f"content of message {place} is a {type(content).__name__}, not a text"
        )
    return Message(role=known, content=checked(content, f"content of message {place}"))


def _joined(parts: Sequence[Any], place: int) -> str:
    """Return the parts of a content, texts and images, as one text with placeholders."""
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            found.append(IMAGE_MARK)
        elif kind == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        else:
            raise RowFault(RejectionReason.BAD_FIELD, f"content of message {place} has a part that is no text or image")
    return "".join(found)


def _broken_turns(turns: list[str]) -> list[RowFault]:
    """Return the protocol violations of each turn. Raises RowFault when the last one does not answer."""
    faults = []
    for place, turn in enumerate(turns):
        actions = _actions(turn)
        last = place == len(turns) - 1
        if last and "answer" not in actions:
            raise RowFault(RejectionReason.NO_ANSWER, f"turn {place}, the last")
        if len(actions) > 1:
            faults.append(RowFault(RejectionReason.SEVERAL_ACTIONS, f"turn {place}: {', '.join(actions[:6])}"))
        elif not actions:
            faults.append(RowFault(RejectionReason.NO_ACTION, f"turn {place}"))
        elif not last and actions == ["answer"]:
            faults.append(RowFault(RejectionReason.EARLY_ANSWER, f"turn {place} of {len(turns)}"))
    return faults


def _actions(turn: str) -> list[str]:
    """Return the kinds of the complete actions after a turn's thinking, in order, in time linear in its length."""
    opening, closing = _THINKING
    thought = turn.find(closing) if turn.lstrip().startswith(opening) else -1
    place = thought + len(closing) if thought >= 0 else 0
    actions: list[str] = []
    unclosed: set[str] = set()
    while match := _OPENING.search(turn, place):
        kind, place = match.group(1), match.end()
        end = -1 if kind in unclosed else turn.find(f"</{kind}>", place)
        if end < 0:
            unclosed.add(kind)
        else:
            actions.append(kind)
            place = end
    return actions


def _digest(messages: tuple[Message, ...]) -> str:
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.role}\x1f{message.content}\x1e".encode())
    return digest.hexdigest()[:16]
