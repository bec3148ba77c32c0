"""The pages are plain American technical English: short sentences, common terms, no idioms and no private names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "examples" / "plugin_package" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if path.exists() and path.name != "log.md"  # The log is a dated record; its old entries stay.
]
MEAN_WORDS = 25

# Each entry: a regular expression without regard to case, and a plain replacement.
IDIOMS = {
    r"\b(?:goes|go|going|gone|went) on\b": "continues, resumes",
    r"\bat fault\b": "invalid, failed",
    r"\bwhat (?:may|can|must) (?:be|come|die|go wrong)\b": "failures, errors, requirements",
    r"\b(?:is|are|was|were|be|been) told\b": "receives, is configured",
    r"\b(?:tell|tells|told) (?:\w+ )?(?:apart|from)\b": "distinguishes",
    r"\bwhat (?:be)?c[ao]mes? of\b": "result",
    r"\bcomes? of it\b": "result",
    r"\bwhatever\b": "any",
    r"\bwh(?:o|om)ever\b": "anyone who",
    r"\b(?:some|no|any)body\b": "someone, no one, anyone; better the component",
    r"\bbeforehand\b": "before",
    r"\bunder way\b": "in progress",
    r"\bon (?:the|its|their) way (?:when|to be|down|up)\b": "in flight",
    r"\bin good order\b": "cleanly",
    r"\bin the (?:clear|midst)\b": "unencrypted, during",
    r"\b(?:is|are|was|were) (?:asked for|asked again)\b": "requested, retried",
    r"\bof (?:its|their|your|our) own accord\b": "automatically",
    r"\b(?:keeps?|kept) clear of\b": "avoids",
    r"\b(?:and|or) (?:its|their) kin\b": "and similar",
    r"\bvouch(?:es)? for\b": "guarantees",
    r"\bfor ever\b": "forever",
    r"\bmore often than not\b": "usually",
    r"\b(?:would|could) not bear\b": "rejects",
    r"\bstands? (?:in|on|at|beside|between|twice)\b": "is in",
    r"\blies? (?:in|on|at|beside|inside)\b": "is in",
}
PRIVATE = {
    r"\bdesks?\b": "lease table",
    r"\bshel(?:f|ves)\b": "version store",
    r"\blanes?\b": "pipeline",
    r"\bwirings?\b": "renderer generations, service handle",
    r"(?<!-)\bmail(?:box)?\b": "transfer queue",
    r"\boutbox\b": "published weights",
    r"\bthe pace\b": "sample limits",
    r"\bthe speaker\b": "policy session",
    r"\bsilence monitor\b": "null monitor",
}
BRITISH = {
    r"\b\w*(?:behaviour|colour|favour|honour|neighbour)\w*\b": "-or",
    r"\b\w*(?:normal|optim|serial|quant|summar|recogn|initial|token|random|organ|general|util|synchron|categor)is"
    r"(?:e|es|ed|er|ers|ing|ation|ations)\b": "-ize",
    r"\b(?:judgements?|artefacts?|grey|centre[sd]?|catalogue|licence|defence)\b": "judgment, artifact, gray, center",
    r"\b(?:cancell|labell|modell|travell)(?:ed|ing)\b": "-eled, -eling",
    r"\b(?:whilst|amongst|towards)\b": "while, among, toward",
}
BANNED = IDIOMS | PRIVATE | BRITISH

_LIST_ITEM = re.compile(r"(?:[-*+]|\d+\.)\s+")
# A new sentence begins with a capital letter, a digit, or an opening bracket or quote, after a full stop.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+(?=[\"'(\[*_A-Z0-9])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|approx|Fig|No)\.$")


def without_code(text: str) -> str:
    """Return a page without fenced and indented code blocks, comments and formulas; code spans become a word."""
    text = re.sub(r"(?ms)^[ \t]*(```|~~~).*?^[ \t]*\1[^\n]*$", "", text)
    text = re.sub(r"(?s)<!--.*?-->|\$\$.*?\$\$", "", text)
    text = re.sub(r"(?m)(?<=\n\n)(?: {4}[^\n]*\n)+", "\n", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "Code", text)


def paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs and list items of a page as single lines, without headings, tables and code."""
    lines: list[str] = []
    for line in (*without_code(text).splitlines(), ""):
        stripped = line.strip()
        item = _LIST_ITEM.match(stripped)
        if (not stripped or item or stripped.startswith(("|", "#"))) and lines:
            yield " ".join(lines)
            lines = []
        if stripped and not stripped.startswith(("|", "#")):
            lines.append(stripped[item.end() :] if item else stripped)


def sentences(text: str) -> list[str]:
    """Return the sentences of a page."""
    found: list[str] = []
    for paragraph in paragraphs(text):
        parts = iter(_SENTENCE_END.split(paragraph))
        for part in parts:
            while _ABBREVIATION.search(part) and (rest := next(parts, "")):
                part = f"{part} {rest}"
            found.append(part)
    return found


def words(sentence: str) -> int:
    """Return the number of words; signs alone are none."""
    return sum(1 for word in sentence.split() if re.search(r"[A-Za-z0-9]", word))


def mean_words(text: str) -> float:
    """Return the mean number of words per sentence, 0 for a page without sentences."""
    counts = [n for sentence in sentences(text) if (n := words(sentence))]
    return sum(counts) / len(counts) if counts else 0.0


def banned(text: str) -> list[str]:
    """Return each banned phrase of a text with its plain replacement, tables and headings included."""
    prose = re.sub(r"\s+", " ", without_code(text))
    return [
        f"{match[0]!r}: write {plain}"
        for pattern, plain in BANNED.items()
        for match in re.finditer(pattern, prose, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    longest = sorted(sentences(text), key=words)[-3:]
    assert mean_words(text) < MEAN_WORDS, f"shorten for instance {longest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_plain_words(page: Path) -> None:
    assert banned(page.read_text(encoding="utf-8")) == []


def test_the_readme_lists_the_rooms_of_the_import_contract_in_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    table = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("| package or module | contents |")[2]
        .partition("\n\n")[0]
    )
    rooms = [room.removesuffix("/").removesuffix(".py") for room in re.findall(r"(?m)^\| `([^`]+)` \|", table)]
    assert rooms == [room.strip() for layer in layers for room in layer.split("|")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One here. Two there.", ["One here.", "Two there."]),
        ("Version 0.1 of a file a.yaml is read, e.g. by `x`.", ["Version 0.1 of a file a.yaml is read, e.g. by Code."]),
        ("See e.g. Ray for this. Then stop!", ["See e.g. Ray for this.", "Then stop!"]),
        ("# Heading\n\n- First item\n  in two lines\n- Second", ["First item in two lines", "Second"]),
        ("| a | b |\n|---|---|\n| c. D | e |\n\nText.", ["Text."]),
        ("Before:\n\n```sh\nrun. This. Not.\n```\n\nAfter.", ["Before:", "After."]),
        ("Before:\n\n    run. This. Not.\n\nAfter.", ["Before:", "After."]),
        ("A [link. Here](x.md) is text. **Bold.** Next.", ["A link.", "Here is text.", "**Bold.", "Next."]),
    ],
)
def test_the_checker_finds_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The run goes on.",
        "A key at fault",
        "| what may die |",
        "The worker is told to stop.",
        "It lies in the folder.",
        "the gateway's desk",
        "Judgements differ",
        "normalised",
    ],
)
def test_the_checker_finds_what_is_banned(text: str) -> None:
    assert banned(text)


@pytest.mark.parametrize(
    "text",
    [
        "The run resumes on Ray.",
        "`learner.grpo.behaviour_cap`",
        "```\ncolour goes on\n```",
        "Policy versions differ from each other.",
        "The default lets them exercise promises and precise premises.",
        "It depends on the node, and a fault-tolerant actor restarts.",
    ],
)
def test_the_checker_passes_plain_text(text: str) -> None:
    assert banned(text) == []
