"""The parser of policy turns: optional thinking, then exactly one tool call or answer.

No text, however malformed, raises an error here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from genevolve_ray.errors import PolicyFault
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.program import (
    IMAGE_ID,
    Program,
    ProgramError,
    ProgramFault,
    ReferenceImage,
    check_program,
)

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_TAGS = {SpanKind.TOOL_CALL: ("<tool_call>", "</tool_call>"), SpanKind.ANSWER: ("<answer>", "</answer>")}
_ALL_TAGS = tuple(tag for pair in _TAGS.values() for tag in pair)
MAX_DEPTH = 16
"""Deepest nesting of JSON that a turn may contain; every legal action needs at most four levels."""
_DETAIL_CHARS = 160


class TurnFault(StrEnum):
    """Name the reason why a turn contains no action that can be executed."""

    EMPTY = "the turn is empty"
    UNCLOSED_THINK = "<think> is never closed"
    NO_ACTION = "no complete <tool_call> or <answer>"
    MANY_ACTIONS = "more than one action"
    STRAY_TEXT = "text outside the thinking and the action"
    BAD_JSON = "the action is not valid JSON"
    DUPLICATE_KEY = "the action names a JSON key twice"
    NOT_AN_OBJECT = "the action is not a JSON object"
    BAD_CALL = "a tool call needs exactly a name (text) and arguments (object)"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Represent a well-formed call; whether the tool exists and accepts these arguments is not known yet."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """Represent a well-formed answer; `parse_program` decides whether it is a legal program."""

    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TurnError:
    """Represent a turn without a usable action.

    `final` marks a complete <answer> whose content is broken: an answer is final.
    """

    fault: TurnFault
    detail: str = ""
    final: bool = False

    def __str__(self) -> str:
        """Return the fault with its detail."""
        return f"{self.fault.value}{': ' + self.detail if self.detail else ''}"


ParsedTurn = ToolCall | FinalAnswer | TurnError


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Mark the parts of a turn: thinking is text[:think_end], the rest is of `kind` (TEXT when malformed)."""

    think_end: int
    kind: SpanKind
    body: str = ""
    error: TurnError | None = None


class _BadObject(PolicyFault):
    def __init__(self, fault: TurnFault, detail: str = "") -> None:
        super().__init__(detail)
        self.fault, self.detail = fault, detail[:_DETAIL_CHARS]


def dissect(text: str) -> Anatomy:
    """Find thinking and action in a turn by their tags alone (the JSON inside is not read)."""
    if not text.strip():
        return Anatomy(0, SpanKind.TEXT, error=TurnError(TurnFault.EMPTY))
    think_end = 0
    if text.lstrip().startswith(THINK_OPEN):
        close = text.find(THINK_CLOSE)
        if close < 0:
            return Anatomy(0, SpanKind.TEXT, error=TurnError(TurnFault.UNCLOSED_THINK))
        think_end = close + len(THINK_CLOSE)
    rest = text[think_end:].strip()
    for kind, (opening, closing) in _TAGS.items():
        if rest.startswith(opening) and rest.endswith(closing) and len(rest) >= len(opening) + len(closing):
            body = rest[len(opening) : -len(closing)]
            if any(tag in body for tag in _ALL_TAGS):
                break
            return Anatomy(think_end, kind, body)
    return Anatomy(think_end, SpanKind.TEXT, error=TurnError(_missing_action(rest)))


def _missing_action(rest: str) -> TurnFault:
    complete = sum(min(rest.count(opening), rest.count(closing)) for opening, closing in _TAGS.values())
    if complete > 1:
        return TurnFault.MANY_ACTIONS
    return TurnFault.STRAY_TEXT if complete else TurnFault.NO_ACTION


def parse_first_action(text: str, *, retry_answers: bool) -> ParsedTurn:
    """Return the first answer in a turn, else its first tool call, whatever stands around them. Never raises.

    Of several keys of one name the last counts, and further keys of a call are ignored.

    Args:
        text: the turn.
        retry_answers: whether a broken answer is passed over, so that it can be repeated; otherwise it is final.
    """
    for kind in (SpanKind.ANSWER, SpanKind.TOOL_CALL):
        if (body := _first_object(text, *_TAGS[kind])) is None:
            continue
        try:
            value = _checked_object(body)
        except _BadObject as bad:
            if kind is SpanKind.ANSWER and retry_answers:
                continue
            return TurnError(bad.fault, bad.detail, final=kind is SpanKind.ANSWER)
        if kind is SpanKind.ANSWER:
            return FinalAnswer(value)
        name, arguments = value.get("name") or "", value.get("arguments") or {}
        if isinstance(name, str) and isinstance(arguments, dict):
            return ToolCall(name.strip(), arguments)
        return TurnError(TurnFault.BAD_CALL, f"got keys {sorted(value)}"[:_DETAIL_CHARS])
    return TurnError(TurnFault.NO_ACTION if text.strip() else TurnFault.EMPTY)


def _first_object(text: str, opening: str, closing: str) -> str | None:
    """Return the first text from a brace after an opening tag to a brace before a closing one."""
    start = re.compile(rf"{opening}\s*+\{{").search(text)
    # No later opening can succeed where the first one finds no end.
    end = re.compile(rf"\}}\s*+{closing}").search(text, start.end()) if start else None
    return text[start.end() - 1 : end.start() + 1] if start and end else None


def parse_turn(text: str) -> ParsedTurn:
    """Return the action of a turn, or the reason why it has none. Never raises."""
    anatomy = dissect(text)
    if anatomy.error is not None:
        return anatomy.error
    final = anatomy.kind is SpanKind.ANSWER
    try:
        value = _load_object(anatomy.body)
    except _BadObject as bad:
        return TurnError(bad.fault, bad.detail, final=final)
    if final:
        return FinalAnswer(value)
    name, arguments = value.get("name"), value.get("arguments")
    if value.keys() != {"name", "arguments"} or not isinstance(name, str) or not isinstance(arguments, dict):
        return TurnError(TurnFault.BAD_CALL, f"got keys {sorted(value)}"[:_DETAIL_CHARS])
    return ToolCall(name, arguments)


def _load_object(body: str) -> dict[str, Any]:
    """Read one JSON object that can be written back as UTF-8 JSON. Raises _BadObject."""
    # strict=False: a literal line break inside a string is unambiguous, and policies write them.
    return _checked_object(body, strict=False, object_pairs_hook=_unique_keys)


def _checked_object(body: str, **reading: Any) -> dict[str, Any]:
    """Read one JSON object with these options of `json.loads`. Raises _BadObject."""
    try:
        value = json.loads(body, parse_constant=_no_constant, **reading)
        if not isinstance(value, dict):
            raise _BadObject(TurnFault.NOT_AN_OBJECT, f"got {type(value).__name__}")
        if _too_deep(value):
            raise _BadObject(TurnFault.BAD_JSON, f"nested more than {MAX_DEPTH} levels deep")
        # Lone surrogates and overflowing numbers pass json.loads but can be neither tokenized nor stored.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise _BadObject(TurnFault.BAD_JSON, "nested too deeply") from error
    except _BadObject:
        raise
    except UnicodeEncodeError as error:
        raise _BadObject(TurnFault.BAD_JSON, "a string holds half of a surrogate pair") from error
    except ValueError as error:
        raise _BadObject(TurnFault.BAD_JSON, str(error)) from error
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _BadObject(TurnFault.DUPLICATE_KEY, twice.encode(errors="replace").decode())
    return value


def _no_constant(name: str) -> float:
    raise _BadObject(TurnFault.BAD_JSON, f"{name} is not a JSON number")


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def parse_program(obj: object, known_ids: Set[str], max_references: int = 2) -> Program:
    """Turn the object inside an <answer> into a checked program.

    Args:
        obj: the decoded JSON value.
        known_ids: image ids that image_search returned in this trajectory.
        max_references: most references allowed; at least one is required.

    Raises:
        ProgramError: with the typed fault and the invalid value.
    """
    if not isinstance(obj, dict):
        raise ProgramError(ProgramFault.NOT_JSON, f"got {type(obj).__name__}")
    if obj.keys() != {"gen_prompt", "reference_images"}:
        raise ProgramError(ProgramFault.FIELDS, f"got {sorted(map(str, obj))}"[:_DETAIL_CHARS])
    prompt, references = obj["gen_prompt"], obj["reference_images"]
    if not isinstance(prompt, str) or not isinstance(references, list):
        raise ProgramError(ProgramFault.FIELDS, f"got {type(prompt).__name__} and {type(references).__name__}")
    program = Program(gen_prompt=prompt, reference_images=tuple(_reference(item) for item in references))
    check_program(program, known_ids=set(known_ids), max_references=max_references)
    return program


def _reference(item: object) -> ReferenceImage:
    if isinstance(item, dict) and isinstance(img_id := item.get("img_id"), str) and not IMAGE_ID.fullmatch(img_id):
        raise ProgramError(ProgramFault.UNKNOWN_REFERENCE, img_id[:_DETAIL_CHARS])
    try:
        return ReferenceImage.model_validate(item, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "reference"
        raise ProgramError(ProgramFault.FIELDS, f"{where}: {first['msg']}"[:_DETAIL_CHARS]) from error
