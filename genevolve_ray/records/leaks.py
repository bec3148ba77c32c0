"""Components of a request's answer, their masking, and the check that a bundle reveals none of them.

A bundle carries behavior, not answers (PAPER section 4): no proper names, counts, quoted texts, image ids or links.
Names are detected by their capital letter, so in scripts without capitals only the other kinds are found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.program import IMAGE_ID
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_TEENS = "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(_UNITS + _TEENS)},
    **{word: str(10 * value) for value, word in enumerate(_TENS, start=2)},
    **{"dozen": "12", "hundred": "100", "thousand": "1000"},
}
_SINGULAR = "1"
"""The number one ("one", "1") is rarely an answer and often an article: one clause for each thing."""

ORDINARY = frozenset(
    "a an and any are as at be because before after both but by can do does each either every few for from has have if in "
    "into is it its keep less many may more most much must near never no not nothing now of off on once only or other our "
    "out over own per same several should so some such than that the their them then there these this those to under up use "
    "very was we what when where which while who whose why will with without you your i my me they he she his her "
    "add apply arrange ask attribute attributes avoid bind black body bottom call calls carry center check choose clause "
    "clauses colour colours compare compose composition confirm copy count counts create current depict describe design "
    "detail details draw drawing edge fact facts fan final find fit follow format generate give group guide guidance "
    "illustrate image images include instruction instructions item items knowledge layout left light list look looks make "
    "name names number numbers official old open order ordinal outdated paint part parts pattern phrase photo picture "
    "pictures place plan please position positions prefer produce prompt put query queries quote quoted quotes read "
    "reference references render repeat request result results right row scene search select separate sentence show side "
    "skill skills skip slot source sources spell standard start state step stop structure style subject subjects take text "
    "texts thing things title titles tool tools top turn turns unknown verify view white word words write first second "
    "third fourth fifth last next quantity spatial aesthetic creative anatomy physical material consistency binding "
    "counting coherence rendering anchored quality json url link id".split()
)
"""Words of guidance and of grammar: capitalized (at the start of a line, in a title) they are still not names."""

_QUOTED = re.compile(r"[\"“”„«»]([^\"“”„«»\n]{1,200})[\"“”„«»]|(?<!\w)['‘]([^'‘’\n]{1,120})['’](?!\w)")
_MARKS = re.compile(r"[\"“”„«»‘]|(?<!\w)['’]|['’](?!\w)")
_LINK = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://\S+|\bwww\.\S+", re.IGNORECASE)
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENDS_SENTENCE = re.compile(r"(?:^|[.!?:\n•*]|^\s*-)[\s\"“„«'‘(\[]*$")


class LeakKind(StrEnum):
    """Name the kind of answer that a bundle reveals."""

    NAME = "name"
    NUMBER = "number"
    TEXT = "quoted text"
    IMAGE_ID = "image id"
    LINK = "link"
    REQUEST_ID = "request id"


@dataclass(frozen=True)
class Leak:
    """Represent one value that a text must not contain."""

    kind: LeakKind
    value: str


class LeakError(GenevolveError, ValueError):
    """Report a bundle that reveals part of an answer.

    `leak` holds the value and its kind, `field` and `text` its position.
    """

    def __init__(self, leak: Leak, field: str, text: str) -> None:
        """Keep the leak and its position."""
        super().__init__(f"{field} holds the {leak.kind.value} {leak.value!r}: {text!r}")
        self.leak, self.field, self.text = leak, field, text


@dataclass(frozen=True)
class _Word:
    """Hold a word or number of a text; `initial` where its capital may be that of a sentence."""

    text: str
    start: int
    initial: bool

    @property
    def number(self) -> str:
        """The value as digits, "" where the word is no number."""
        return self.text if self.text[0].isdigit() else _NUMBER_WORDS.get(self.text.lower(), "")

    @property
    def capital(self) -> bool:
        """True for a word that is written like a name."""
        return self.text[0].isupper()


def _words(text: str) -> Iterator[_Word]:
    for match in _WORD.finditer(text):
        yield _Word(
            match.group(), match.start(), bool(_ENDS_SENTENCE.search(text[max(0, match.start() - 8) : match.start()]))
        )


def _quoted(text: str) -> list[str]:
    return [(m.group(1) if m.group(1) is not None else m.group(2)).strip() for m in _QUOTED.finditer(text)]


def mask(text: str) -> str:
    """Return a request without its identifying parts: names, numbers, quoted texts, ids and links.

    A capitalized word is a name unless it opens a sentence and is an ordinary word; adjacent names become one. A masked
    text stays as it is when it is masked again.
    """
    text = _LINK.sub(" link ", text)
    text = IMAGE_ID.sub(" image ", text)
    text = _MARKS.sub(" ", _QUOTED.sub(" quote ", text))
    pieces, end = [], 0
    for word in _words(text):
        replacement = word.text
        if word.number and word.number != _SINGULAR:
            replacement = "number"
        elif word.capital and not (word.initial and word.text.lower() in ORDINARY):
            replacement = "name"
        stop = word.start + len(word.text)
        if replacement != word.text:  # Apart from letters and digits that touch it, with which it would be a new word.
            replacement = f"{_gap(text[word.start - 1 : word.start])}{replacement}{_gap(text[stop : stop + 1])}"
        pieces += [text[end : word.start], replacement]
        end = stop
    masked = " ".join("".join([*pieces, text[end:]]).split())
    return _lowered(re.sub(r"\bname(?:[-\s]+name\b)+", "name", masked))


def _gap(neighbor: str) -> str:
    return " " if neighbor.isalnum() else ""


def _lowered(masked: str) -> str:
    """Return a masked text whose only capitals open a sentence: a line break before a word is gone by now."""
    pieces, end = [], 0
    for word in _words(masked):
        if word.capital and not word.initial:
            pieces += [masked[end : word.start], word.text.lower()]
            end = word.start + len(word.text)
    return "".join([*pieces, masked[end:]])


@dataclass(frozen=True)
class Secrets:
    """Hold the values that bundles about a request must not contain.

    `names` are searched for in any case. `capitalised` comes from external titles and snippets, where any word may have
    a capital: its words are searched for only inside a sentence and with the same case.
    """

    request_id: str
    names: frozenset[str]
    capitalised: frozenset[str]
    numbers: frozenset[str]
    texts: frozenset[str]
    source: str


def secrets_of(request: Request, trajectories: Sequence[Trajectory] = ()) -> Secrets:
    """Collect the answers from the request, and from the queries, observations and texts of the attempts.

    A word that the request also uses as an ordinary one (it survives `mask`) is no secret.
    """
    said = [request.prompt, *(text for t in trajectories for text in _written(t))]
    seen = [text for t in trajectories for text in _seen(t)]
    common = mask(request.prompt)

    def secret(values: Iterable[str]) -> frozenset[str]:
        return frozenset(v for v in values if len(v) > 1 and not _stands_in(v, common))

    words = [word for text in said for word in _words(text)]
    plain = {word.text for word in words if not word.capital}
    names = {w.text for w in words if w.capital and (not w.initial or _surely_a_name(w.text, plain))}
    return Secrets(
        request_id="" if _stands_in(request.id, common) else request.id,
        names=secret(names),
        capitalised=secret(w.text for text in seen for w in _words(text) if w.capital),
        numbers=frozenset(n for w in words if (n := w.number) and n != _SINGULAR),
        texts=secret(quote for text in said for quote in _quoted(text)),
        source="\n".join([*said, *seen]).casefold(),
    )


def _surely_a_name(word: str, plain: set[str]) -> bool:
    """Return whether a word that opens a sentence is a name: it is not ordinary, and never written without capital."""
    return word.lower() not in ORDINARY and word.lower() not in plain


def _written(trajectory: Trajectory) -> Iterator[str]:
    """Yield the queries and texts of an attempt, and the text of its judge."""
    for turn in trajectory.turns:
        if turn.tool != "query_knowledge":
            yield from _strings(turn.arguments)
    if trajectory.program is not None:
        yield trajectory.program.gen_prompt
        yield from (reference.note for reference in trajectory.program.reference_images)
    if trajectory.verdict is not None:  # A judge sees the truth, and a summarizer reads the judge's text.
        yield from (trajectory.verdict.rationale, trajectory.verdict.text_rationale)
    for verdict in trajectory.verdicts.values():
        yield verdict.rationale
        for component in verdict.components.values():
            yield from (component.rationale, *(mark.label for mark in component.artefacts))


def _seen(trajectory: Trajectory) -> Iterator[str]:
    """Yield what an attempt was shown: external titles and snippets, not the project's own skills."""
    yield from (hit.title for hit in trajectory.images.values())
    yield from (turn.observation for turn in trajectory.turns if turn.tool != "query_knowledge")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)


def find_leak(text: str, secrets: Secrets) -> Leak | None:
    """Return the first part of an answer that a text reveals, None for a clean one.

    Ordinal phrases ("the first reference image"), "one", and ordinary words of guidance are clean.
    """
    if match := IMAGE_ID.search(text):
        return Leak(LeakKind.IMAGE_ID, match.group())
    if match := _LINK.search(text):
        return Leak(LeakKind.LINK, match.group())
    if _names_request(text, secrets.request_id):
        return Leak(LeakKind.REQUEST_ID, secrets.request_id)
    for quote in _quoted(text):
        if quote and quote.casefold() in secrets.source and not _is_ordinary(quote):
            return Leak(LeakKind.TEXT, quote)
    for quote in sorted(secrets.texts):
        if _quotes(quote, text):
            return Leak(LeakKind.TEXT, quote)
    return _leaked_word(text, secrets)


def _leaked_word(text: str, secrets: Secrets) -> Leak | None:
    folded = {name.casefold() for name in secrets.names if name.lower() not in ORDINARY}
    for word in _words(text):
        if word.number in secrets.numbers:
            return Leak(LeakKind.NUMBER, word.text)
        exact = word.capital and not word.initial and word.text.lower() not in ORDINARY
        if word.text.casefold() in folded or (exact and word.text in secrets.capitalised):
            return Leak(LeakKind.NAME, word.text)
    return None


def _names_request(text: str, request_id: str) -> bool:
    return len(request_id) > 2 and not _is_ordinary(request_id) and _stands_in(request_id, text)


def _stands_in(value: str, text: str) -> bool:
    """Return whether a text contains a value as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def _quotes(quote: str, text: str) -> bool:
    """Return whether a text contains a quoted one.

    A quoted text made of ordinary words counts only where it is in capitals or is a title.
    """
    if not _is_ordinary(quote):
        return _stands_in(quote, text)
    telling = quote.isupper() or (" " in quote and not quote.islower())
    return telling and re.search(rf"(?<!\w){re.escape(quote)}(?!\w)", text) is not None


def _is_ordinary(value: str) -> bool:
    """Return whether a value is made of ordinary words alone."""
    return all(word.lower() in ORDINARY for word in re.findall(r"[^\W_]+", value))


def check_experience(experience: Experience, request: Request, trajectories: Sequence[Trajectory] = ()) -> None:
    """Check that a bundle carries behavior alone, in its guidance and in its retrieval key.

    Raises:
        LeakError: naming the first value that it reveals.
    """
    secrets = secrets_of(request, trajectories)
    for field, text in _texts(experience):
        if leak := find_leak(text, secrets):
            raise LeakError(leak, field, text)


def without_leaks(experience: Experience, request: Request, trajectories: Sequence[Trajectory] = ()) -> Experience:
    """Return a bundle without the bullets that reveal an answer; such a trigger or summary is replaced."""
    secrets = secrets_of(request, trajectories)
    clean_slots = {
        slot: [b for b in bullets if find_leak(b, secrets) is None] for slot, bullets in experience.guidance.items()
    }
    changes: dict[str, str] = {}
    for field in ("trigger", "summary"):
        text = getattr(experience, field)
        clean = find_leak(text, secrets) is None
        changes[field] = text if clean else mask(request.prompt) if field == "summary" else ""
    return experience.guided(clean_slots).model_copy(update=changes)


def _texts(experience: Experience) -> Iterator[tuple[str, str]]:
    yield "trigger", experience.trigger
    yield "summary", experience.summary
    for slot, bullets in experience.guidance.items():
        yield from ((slot, bullet) for bullet in bullets)
