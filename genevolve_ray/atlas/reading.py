"""Understanding of a prompt by a generator of the atlas: structure counts, not magic words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from genevolve_ray.atlas import lexicon as lx
from genevolve_ray.atlas.scene import COMPANIONS, KINDS, SHAPES
from genevolve_ray.records.base import Record

CAPACITY = 48
"""Words of a prompt that a generator takes in; the rest is lost."""
MAX_CHARACTERS = 1500
"""Characters beyond this number are not read; the capacity is used up long before."""


class NameKind(StrEnum):
    """Distinguish the kinds of name at the head of a part."""

    PROPER = "proper"
    """A capitalized word that is in no dictionary: a named subject of the atlas."""
    KIND = "kind"
    """One of KINDS: its look is a fact of the atlas too."""
    COMPANION = "companion"
    """One of COMPANIONS, which every generator knows."""
    SHAPE = "shape"
    """A bare geometric shape."""


class PartReading(Record):
    """Hold one kind of object that the prompt requests, and the structure that the prompt gives it."""

    name: str
    kind: NameKind
    count: int = 1
    colour: str | None = None
    pattern: str | None = None
    shape: str | None = None
    reference: int | None = None
    """Ordinal of its reference picture, from 1."""
    material: str | None = None
    lit: bool = False
    """The prompt states the effect of light on the material: an edge, a highlight, a reflection."""
    legs: int = 0
    joined: bool = False
    """The prompt joins the legs to the body."""
    side: str | None = None
    placed: bool = False
    """The side is a full phrase of place, not a single word."""
    arranged: bool = False
    """The objects are given an arrangement: a row, a line, side by side."""
    shares_clause: bool = False
    """Another part is described in the same clause."""


class Reading(Record):
    """Hold a prompt as understood: `extra` is the surplus, `unknown` the words without meaning for the generator."""

    parts: tuple[PartReading, ...] = ()
    text: str | None = None
    quoted: bool = False
    text_place: bool = False
    mood: str | None = None
    lit: bool = False
    medium: str | None = None
    applied: bool = False
    words: int = 0
    """Length of the whole prompt, also where a capacity ended the reading early."""
    extra: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass
class _Span:
    """Hold the stretch of a clause that belongs to one head."""

    name: str
    kind: NameKind
    count: str | None
    body: list[str]
    shares: bool


@dataclass
class _State:
    """Hold the intermediate state of reading."""

    names: list[str] = field(default_factory=list)
    quotes: list[str] = field(default_factory=list)
    parts: list[_Span] = field(default_factory=list)
    texts: list[tuple[str, bool, bool]] = field(default_factory=list)
    moods: list[str] = field(default_factory=list)
    media: list[tuple[str, bool]] = field(default_factory=list)
    lit: bool = False
    unknown: list[str] = field(default_factory=list)


_QUOTE = re.compile(r"[\"“”„«»]([^\"“”„«»]*+)[\"“”„«»]|(?<!\w)['‘]\s{0,20}([^'‘’]{1,40}?)\s{0,20}['’](?!\w)")
_MARKED_QUOTE = re.compile("\ue000(\\d+)\ue001")
_TOKEN = re.compile("\ue000\\d+\ue001|\\w+(?:['’-]\\w+)*")
_BREAK = " | "
_PLACE_BEFORE = re.compile(rf"(?:at|on|in|along|across) (?:the )?{lx.PLACE_NOUN}(?: of (?:the )?\w+)? (?:\w+ ){{0,2}}$")


def read_prompt(prompt: str, capacity: int | None = None) -> Reading:
    """Return the reading of a prompt by a generator; any string has a reading.

    With a `capacity`, clauses that end after that number of words are dropped (the first one is always read).
    """
    state = _State()

    def keep(match: re.Match[str]) -> str:
        state.quotes.append((match.group(1) if match.group(1) is not None else match.group(2)).strip())
        return f" \ue000{len(state.quotes) - 1}\ue001 "

    plain = re.sub("[\ue000\ue001]", " ", prompt[:MAX_CHARACTERS])
    shouting = not any(c.islower() for c in plain)
    words = 0
    for clause in re.split(r"[;.\n]+", _QUOTE.sub(keep, plain)):
        tokens = _TOKEN.findall(clause)
        words += len(tokens)
        if tokens and not (capacity is not None and words > capacity and words > len(tokens)):
            _read_clause(_normalise(tokens, state, shouting), state)
    return _finish(state, words)


def _known(word: str) -> bool:
    stems = (word, word.removesuffix("s"), word.removesuffix("ed"), word.removesuffix("ing"), word.removesuffix("d"))
    return word.isdigit() or any(s in lx.KNOWN for s in stems)


def _normalise(tokens: list[str], state: _State, shouting: bool) -> str:
    """Return a clause as lower-case words, with `@i` for names and `#i` for quoted texts."""
    words = []
    for token in tokens:
        if marked := _MARKED_QUOTE.fullmatch(token):
            words.append(f"#{marked.group(1)}")
            continue
        bare = re.sub(r"['’]s$", "", token)
        low = bare.lower()
        capital = bare[0].isupper() and not shouting
        loud = capital and len(bare) > 1 and bare.isupper() and bool(words) and words[-1] in lx.TEXT_WORDS
        if loud or (capital and not all(_known(piece) for piece in low.split("-"))):
            state.names.append(bare)
            words.append(f"@{len(state.names) - 1}")
        else:
            words += low.replace("-", " ").split()
    return " ".join(words)


def _cut(clause: str, *matches: re.Match[str] | None) -> str:
    """Return the clause with the matched stretches replaced by a break."""
    for match in sorted((m for m in matches if m), key=lambda m: -m.start()):
        clause = clause[: match.start()] + _BREAK + clause[match.end() :]
    return clause


def _read_clause(clause: str, state: _State) -> None:
    clause = _read_text(clause, state)
    applied = lx.APPLIED.search(clause)
    for medium in list(lx.MEDIUM.finditer(clause)):
        state.media.append((lx.MEDIUM_WORDS[medium["medium"]], applied is not None))
    if lx.MEDIUM.search(clause):
        clause = lx.APPLIED.sub(_BREAK, lx.MEDIUM.sub(_BREAK, clause))
    moods = [lx.MOOD_WORDS[m["mood"]] for m in lx.MOOD.finditer(clause)]
    light = lx.SCENE_LIGHT.search(clause)
    if light:
        clause = _cut(clause, light)
        state.lit = True
    state.moods += moods
    clause = lx.MOOD.sub(_BREAK, clause)
    _read_parts(clause, state)


def _read_text(clause: str, state: _State) -> str:
    """Take texts out of a clause: quoted texts, else the word after "text", "saying" and similar words."""
    for _ in range(8):
        match = lx.TEXT.search(clause)
        while match and not _body_of(match):
            match = lx.TEXT.search(clause, match.end("body") if match["body"] else match.end())
        quote = lx.QUOTED.search(clause)
        if match is None or (quote and quote.start() < match.start()):
            match = quote
        if match is None:
            return clause
        body = match.group(0) if match.re is lx.QUOTED else match["body"]
        before, after = clause[: match.start()], clause[match.end() :]
        place_after, place_before = lx.TEXT_PLACE.match(after), _PLACE_BEFORE.search(before)
        quoted = body.startswith("#")
        text = state.quotes[int(body[1:])] if quoted else state.names[int(body[1:])] if body[0] == "@" else body
        state.texts.append((" ".join(text.split()).upper(), quoted, bool(place_after or place_before)))
        if place_after:
            after = after[place_after.end() :]
        elif place_before:
            before = before[: place_before.start()]
        clause = before + _BREAK + after
    return clause


def _body_of(match: re.Match[str]) -> bool:
    body = match["body"]
    return bool(body) and (body[0] in "#@" or not _known(body))


def _read_parts(clause: str, state: _State) -> None:
    """Split a clause at its heads.

    Words before the first head belong to it. A clause without a head belongs to the last part.
    """
    arranged = [m.span() for m in lx.ARRANGED.finditer(clause)]
    heads = [
        h for h in lx.HEAD.finditer(clause) if not any(a < h.end("name") and h.start("name") < b for a, b in arranged)
    ]
    if not heads and lx.REFERENCE.search(clause):
        stray = next((w for w in clause.split() if w.isalpha() and not _known(w)), None)
        if stray:
            state.names.append(stray)
            _read_parts(re.sub(rf"\b{stray}\b", f"@{len(state.names) - 1}", clause, count=1), state)
            return
    state.unknown += [w for w in clause.split() if w.isalpha() and not _known(w)]
    heads = [h for i, h in enumerate(heads) if i == 0 or not _describes(h)]
    if not heads:
        if state.parts and clause.strip(" |"):
            state.parts[-1].body.append(clause)
        return
    for i, head in enumerate(heads):
        start, end = (0 if i == 0 else head.start()), (heads[i + 1].start() if i + 1 < len(heads) else len(clause))
        raw = head["name"]
        if raw.startswith("@"):
            name, kind = " ".join(state.names[int(n[1:])] for n in raw.split()), NameKind.PROPER
            name = " ".join(word[:1].upper() + word[1:].lower() for word in name.split())
        else:
            name = lx.NOUNS[raw]
            kind = NameKind.KIND if name in KINDS else NameKind.COMPANION if name in COMPANIONS else NameKind.SHAPE
        rest = clause[start : head.start("name")] + _BREAK + clause[head.end("name") : end]
        state.parts.append(_Span(name, kind, head["count"], [rest], len(heads) > 1))


def _describes(head: re.Match[str]) -> bool:
    """Return whether a later head of a clause describes the shape of the object before it and adds no new object."""
    is_shape = lx.NOUNS.get(head["name"]) in SHAPES
    return (
        is_shape
        and head["count"] is None
        and not re.match(r"(?:and|with|plus|beside|near|next|while)\b", head.group(0))
    )


def _finish(state: _State, words: int) -> Reading:
    text, quoted, text_place = state.texts[0] if state.texts else (None, False, False)
    medium, applied = state.media[0] if state.media else (None, False)
    applied = applied or any(m == medium and a for m, a in state.media)
    mood = state.moods[0] if state.moods else None
    extra = [t for t, _, _ in state.texts if t != text] + [m for m in state.moods if m != mood]
    extra += [m for m, _ in state.media if m != medium]
    return Reading(
        parts=tuple(_part(span) for span in state.parts),
        text=text,
        quoted=quoted,
        text_place=text_place,
        mood=mood,
        lit=mood is not None and state.lit,
        medium=medium,
        applied=applied,
        words=words,
        extra=tuple(extra),
        unknown=tuple(dict.fromkeys(state.unknown)),
    )


def _part(span: _Span) -> PartReading:
    body = _BREAK.join(span.body)
    reference = lx.REFERENCE.search(body)
    body = _cut(body, reference)
    joined = lx.JOINED.search(body)
    legs = lx.LEGS.search(body)
    plain = _cut(body, legs)
    placed = lx.PLACED.search(body)
    side = placed or lx.BARE_SIDE.search(body)
    ordinal = (
        (lx.ORDINAL_WORDS[reference["word"]] if reference["word"] else int(reference["digit"])) if reference else None
    )
    count = _count(span.count)
    return PartReading(
        name=span.name,
        kind=span.kind,
        count=1 if count is None else count,
        colour=_first(lx.COLOUR_WORDS, lx.COLOUR, plain),
        pattern=_first(lx.PATTERN_WORDS, lx.PATTERN, plain),
        shape=span.name
        if span.kind is NameKind.SHAPE
        else _first(lx.NOUNS, "|".join(SHAPES), lx.ARRANGED.sub(_BREAK, plain)),
        reference=ordinal,
        material=_first(lx.MATERIAL_WORDS, lx.MATERIAL, plain),
        lit=lx.MATERIAL_LIGHT.search(plain) is not None,
        legs=(_count(legs["count"] or legs["legged"]) or 0) if legs else 0,
        joined=joined is not None,
        side=(placed["side"] or placed["half"]) if placed else side["side"] if side else None,
        placed=placed is not None,
        arranged=lx.ARRANGED.search(body) is not None,
        shares_clause=span.shares,
    )


def _first(table: Mapping[str, str], words: str, body: str) -> str | None:
    match = re.search(rf"\b(?:{words})\b", body)
    return table[match.group(0)] if match else None


def _count(word: str | None) -> int | None:
    if word is None:
        return None
    digits = word.strip("x ")
    return int(digits) if digits.isdigit() else lx.COUNTS.get(word, 1)
