"""Strict reading of a judge model's answer: only scores that the model itself gave are accepted.

The request, the program and letters in the pictures are untrusted, and a model may quote them. So an answer is one JSON
object, and there is no choice among several readings. Two objects, a field given twice and reasoning that quotes the
format are faults, after which the model is called again. For the same reason no repairing parser such as `json_repair`
is used. It returns some reading of any text, and so possibly a score from a quoted text.

Every answer of a model that judges is read here. `read_fields` reads grades, `salvage_object` reads texts, and
`after_reasoning` returns the text after the reasoning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genevolve_ray.errors import GenevolveError

MAX_CHARS = 100_000
"""Longest answer that is read at all."""
_TRAILING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|,(?=\s*+[}\]])', re.DOTALL)
_BEFORE = re.compile(r"(?:\A|\n)[ \t]*+(?:```\w*+|~~~\w*+)?[ \t]*+\Z")
"""End of the text before an object on a line of its own; a fence may open on that line."""
_AFTER = re.compile(r"[ \t]*+(?:```|~~~)?[ \t]*+(?:\r?\n|\Z)")
_BARE = re.compile(r"\s*+(?:(?:```|~~~)\w*+)?\s*+")
_NUMBER = r"[-+]?\d{1,12}(?:\.\d{1,12})?"
_VALUE = rf"(\"{_NUMBER}\"|{_NUMBER}|\"?(?i:true|false|null|none|nan)\"?)"


class BadAnswer(GenevolveError, ValueError):
    """Signal an unusable answer. `faults` state the reasons in fixed words: nothing of the answer is repeated."""

    def __init__(self, *faults: str) -> None:
        """Keep the faults."""
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Fields:
    """Hold the fields of an answer; `salvaged`: it was not JSON, and only the wanted fields were read from it."""

    values: dict[str, Any]
    salvaged: bool = False


def read_fields(text: str, wanted: Iterable[str], nested: str = "") -> Fields:
    """Return the fields of the one JSON object in an answer.

    The object stands on lines of its own: one inside a sentence, or inside reasoning, is a quotation. Fences and text
    around it are removed, as are reasoning before it and trailing commas. Where the answer is nothing but an object, and
    that is broken (an unescaped quote in a text, a truncated end), the `wanted` fields are read one by one. They are
    read from an unbroken row of them right after the first or right before the last brace; they are numbers, true,
    false or null. An object that is cut off behind a quotation gives nothing.

    Args:
        text: the answer.
        wanted: the names of the scalar fields.
        nested: name of a field whose object may hold the wanted ones instead.

    Raises:
        BadAnswer: when there is no such object, or more than one reading of it.
    """
    names = tuple(wanted)
    if len(text) > MAX_CHARS:
        raise BadAnswer(f"the answer is longer than {MAX_CHARS} characters")
    found = None if _inside_reasoning(text) else _decoded(text, names)
    if found is None:
        text = _after_reasoning(text, names)
        found = _decoded(text, names)
    if found is not None:
        _check_own(text)
    else:
        if _several(text):
            raise BadAnswer("there is more than one JSON object in the answer")
        return Fields(_salvaged(text, names), salvaged=True)
    inner = found.get(nested)
    if isinstance(inner, dict) and not any(name in found for name in names):
        found = {**found, **inner}
    return Fields(found)


def after_reasoning(text: str) -> str:
    """Return the text after the last mark that ends reasoning, the whole text where there is none.

    Reasoning that has begun and has no end is no answer: the text is then empty.
    """
    rest = text.rpartition("</think>")[2]
    return "" if rest.lstrip().startswith("<think>") else rest


def is_quotation(text: str, shown: str) -> bool:
    """Return whether the object of an answer stands in the text that the model was shown, and the answer has more words.

    A model that only repeats a text that claims grades has given none.
    """
    text = text if _outside_reasoning(text) else after_reasoning(text)
    start, end = text.find("{"), text.rfind("}")
    before, after = _around(text)
    if start < 0 or end < start or (_BARE.fullmatch(before) and _BARE.fullmatch(after)):
        return False
    return "".join(text[start : end + 1].split()) in "".join(shown.split())


def salvage_object(text: str) -> dict[str, Any]:
    """Return the JSON object of an answer: the text from first to last brace, without trailing commas.

    For texts alone: a field that is given twice has its last value, as in plain JSON.

    Raises:
        ValueError: stating the fault, when there is no such object.
    """
    rest = text if _outside_reasoning(text) else after_reasoning(text)
    body = None if "<think>" in _around(rest)[0].rpartition("</think>")[2] else _body(rest)
    if body is None:
        raise BadAnswer("there is no {...} in the answer")
    found = _load(body, ())
    try:
        # Half a surrogate pair, which JSON can escape and no file can hold, is a ValueError here.
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BadAnswer("the answer is nested too deeply") from error
    return found


def _outside_reasoning(text: str) -> bool:
    """Return whether the outermost braces of an answer hold an object outside reasoning: its texts may name the marks."""
    try:
        return not _inside_reasoning(text) and _decoded(text, ()) is not None
    except BadAnswer:
        return False


def _body(text: str) -> str | None:
    """Return the text between the outermost braces, without trailing commas; None without braces."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    return _TRAILING.sub(lambda m: "" if m.group() == "," else m.group(), text[start : end + 1])


def _load(body: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON object. Raises BadAnswer for one of `names` with two values, ValueError for invalid JSON."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in names and name in seen and repr(seen[name]) != repr(value):
                raise BadAnswer(f"{name} is given twice")
            seen[name] = value
        return seen

    try:
        # Not strict: models write line breaks inside strings.
        loaded: dict[str, Any] = json.loads(body, strict=False, object_pairs_hook=once)
    except RecursionError as error:
        raise BadAnswer("the answer is nested too deeply") from error
    return loaded


def _decoded(text: str, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the object between the outermost braces, None for invalid JSON. Raises BadAnswer for a doubled field."""
    body = _body(text)
    try:
        return None if body is None else _load(body, names)
    except BadAnswer:
        raise
    except ValueError:
        return None


def _around(text: str) -> tuple[str, str]:
    """Return the texts before the first and after the last brace."""
    start, end = text.find("{"), text.rfind("}")
    return (text[:start] if start >= 0 else text), text[end + 1 :] if end >= 0 else ""


def _inside_reasoning(text: str) -> bool:
    """Return whether reasoning is open where the first object begins, or ends behind the last one."""
    before, after = _around(text)
    return before.rfind("<think>") > before.rfind("</think>") or "</think>" in after


def _check_own(text: str) -> None:
    """Check that an object is the answer and no quotation. Raises BadAnswer."""
    before, after = _around(text)
    if "{" in after:
        raise BadAnswer("there is more than one JSON object in the answer")
    before = before.rpartition("</think>")[2]
    if not (_BEFORE.search(before) and _AFTER.match(after)):
        raise BadAnswer("the JSON object must stand on lines of its own")


def _after_reasoning(text: str, names: tuple[str, ...]) -> str:
    """Return the text after the reasoning.

    Raises BadAnswer when reasoning has no end, or may be the answer itself.
    """
    opened = "<think>" in _around(text)[0]
    reasoning, closed, rest = text.partition("</think>")
    if not closed:
        if opened:
            raise BadAnswer("the reasoning has no end")
        return text
    # Only a tag that the model itself opened is surely reasoning; otherwise the mark may be in a text of the answer.
    if not opened and _field(names).search(reasoning):
        raise BadAnswer("fields stand before the end of the reasoning")
    if _inside_reasoning(rest):
        raise BadAnswer("the reasoning has no end")
    return rest


def _several(text: str) -> bool:
    """Return whether a whole JSON object is followed by the beginning of another."""
    start = text.find("{")
    if start < 0:
        raise BadAnswer("there is no JSON object in the answer")
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    except RecursionError as error:
        raise BadAnswer("the answer is nested too deeply") from error
    except ValueError:
        return False
    return "{" in text[end:]


def _field(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of a field with its value and the comma or brace after it."""
    return re.compile(rf"""["']?({"|".join(names)})["']?\s*+:\s*+{_VALUE}\s*+[,}}]\s*+""")


def _salvaged(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    before, after = _around(text)
    if not _BARE.fullmatch(before):
        raise BadAnswer("the answer is not JSON, and there is text before it")
    body = text[text.find("{") :]
    end = body.rfind("}") + 1
    body = body[:end] if end else body
    pattern = _field(names)
    matches = list(pattern.finditer(body))
    values: dict[str, Any] = {}
    for match in matches:
        name, value = match.group(1), _scalar(match.group(2))
        if name in values and repr(values[name]) != repr(value):
            raise BadAnswer(f"it is not JSON, and {name} is given twice")
        values[name] = value
    # A second brace may open a quotation that the answer was cut off behind.
    whole = body.count("{") == 1 and _BARE.fullmatch(after)
    trusted = {match.group(1) for match in _head(matches, body) + (_tail(matches, body) if whole else [])}
    if not trusted:
        raise BadAnswer("the answer is not JSON")
    return {name: value for name, value in values.items() if name in trusted}


def _head(matches: list[re.Match[str]], body: str) -> list[re.Match[str]]:
    """Return the fields in a row right after the opening brace."""
    row: list[re.Match[str]] = []
    at = len(body) - len(body[1:].lstrip())
    for match in matches:
        if match.start() != at:
            break
        row.append(match)
        at = match.end()
    return row


def _tail(matches: list[re.Match[str]], body: str) -> list[re.Match[str]]:
    """Return the fields in a row right before the closing brace, where a comma or brace precedes them."""
    row: list[re.Match[str]] = []
    at = len(body)
    for match in reversed(matches):
        if match.end() != at:
            break
        row.append(match)
        at = match.start()
    return row if body[:at].rstrip()[-1:] in (",", "{") and body.endswith("}") else []


def _scalar(text: str) -> Any:
    word = text.strip('"').lower()
    named = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan")}
    if word in named:
        return named[word]
    return word if text.startswith('"') else float(word)
