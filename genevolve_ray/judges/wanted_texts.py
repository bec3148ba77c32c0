"""The texts that a picture should show: the quoted parts of a request, or a list of its source."""

from __future__ import annotations

import re
from collections.abc import Mapping

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.request import Request

QUOTED = "quoted"
_MAX_CHARS = 300
"""Longest quoted text: a quotation mark without a partner must not swallow the rest of a request."""
_LETTER = "0-9A-Za-z\u00aa-\u1fff"
"""Letters of scripts that write spaces between words. A mark after one is an apostrophe or a sign of inches."""
_PAIRS = tuple(zip("“„„””«»‹›「『﹁﹃〝〝＂", "”“”“”»«›‹」』﹂﹄〞〟＂", strict=True))
"""Opening and closing marks that are no apostrophes."""
_SINGLE = tuple(zip("'‘‚‚＇", "'’‘’＇", strict=True))
"""Pairs whose closing mark is also written as an apostrophe."""
_CONTRACTED = r"(?!\d0s\b|n\b)"
"""What may follow an apostrophe at the beginning of a word: the '90s, rock 'n' roll."""


def _pattern() -> re.Pattern[str]:
    held = rf"(?P<{{name}}>\S(?:[^\n]{{{{0,{_MAX_CHARS - 2}}}}}?\S)??)"
    forms = [rf"(?<![{_LETTER}])\"{held.format(name='straight')}\""]
    # French sets spaces inside its marks.
    forms += [
        rf"{one}[^\S\n]{{0,2}}{held.format(name=f'pair{i}')}[^\S\n]{{0,2}}{other}"
        for i, (one, other) in enumerate(_PAIRS)
    ]
    forms += [
        rf"(?<![{_LETTER}]){one}{_CONTRACTED}{held.format(name=f'single{i}')}{other}(?![{_LETTER}])"
        for i, (one, other) in enumerate(_SINGLE)
    ]
    return re.compile("|".join(forms))


_QUOTATION = _pattern()


def quoted_texts(text: str) -> list[str]:
    """Return the texts between quotation marks, each once, in order; of a quotation inside another, the outer one.

    Marks are straight or typographic, of any language that writes them in pairs. An apostrophe is none, and text over
    several lines is no quotation.
    """
    found = (next(filter(None, match.groups())) for match in _QUOTATION.finditer(text))
    return list(dict.fromkeys(found))


def meta_value(request: Request, path: str) -> object:
    """Return what a request's `meta` holds at a path, `meta.KEY` or `meta.KEY.KEY`; None where it holds nothing."""
    value: object = request.meta
    for key in path.split(".")[1:]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def wanted_texts(request: Request, source: str) -> list[str]:
    """Return the texts that a picture of a request should show; none where the request asks for none.

    Args:
        request: what was asked.
        source: `quoted` for the quoted parts of the prompt, or `meta.KEY` for a text or a list of texts of the source.

    Raises:
        InfraFailure: naming request and key, when the value is neither: one bad row of a source must not end a run.
    """
    if source == QUOTED:
        return quoted_texts(request.prompt)
    value = meta_value(request, source)
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InfraFailure(f"{source} of request {request.id} must be a text or a list of texts, got {value!r:.200}")
    return [text for text in texts if text.strip()]
