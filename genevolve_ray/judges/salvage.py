"""JSON out of a model's answer: fences, talk around it, trailing commas. Nothing is guessed."""

from __future__ import annotations

import json
import re
from typing import Any

_THINK = re.compile(r"\A.*</think>", re.DOTALL)
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)


def salvage_object(text: str) -> dict[str, Any]:
    """Return the JSON object of an answer: what stands between its outermost braces, without trailing commas.

    Raises:
        ValueError: saying what is wrong, when there is no such object.
    """
    text = _THINK.sub("", text)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("there is no {...} in the answer")
    body = _STRING_OR_COMMA.sub(lambda m: "" if m.group() == "," else m.group(), text[start : end + 1])
    try:
        # Not strict: models write line breaks inside strings.
        loaded = json.loads(body, strict=False)
        # Half a surrogate pair, which JSON can escape and no file can hold, is a ValueError here.
        json.dumps(loaded, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    if not isinstance(loaded, dict):
        raise ValueError("the answer is not a JSON object")
    return loaded
