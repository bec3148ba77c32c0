"""Clues to countries: facts of the factbook to which exactly one country answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from genevolve_ray.records.base import Record
from genevolve_ray.small.factbook import Country

_STEM = 4
"""Letters by which a word of a clue gives away a country's name: Kenyan, Mount Kenya."""
_LONGEST = 44
"""Characters of a clue's value: a longer one is tedious to read and to search for."""


class Clue(Record):
    """Describe a country by one fact.

    `value` is the fact, and `words` complete "the country ..." with it. `query` is what a good searcher asks, and `section`
    the title of the text with the answer.
    """

    kind: str
    iso: str
    value: str
    words: str
    query: str
    section: str


_FACTS: tuple[tuple[str, str, str, str, str], ...] = (
    ("capital", "capital", "Capital", "whose capital is {}", "capital {}"),
    ("highest_point", "highest_point", "Highest point", "whose highest point is {}", "highest point {}"),
    ("currency", "currency", "Currency", "whose currency is called {}", "currency {}"),
    ("former_name", "former", "Former name", "that was once called {}", "former name {}"),
    ("symbol", "symbol", "National symbol", "whose national symbol is the {}", "national symbol {}"),
)
"""Kind, field of a country, section, words and query of each clue that is one value."""
_BORDERS = "Border countries"


def find_clues(countries: Sequence[Country]) -> list[Clue]:
    """Return the clues to sovereign countries, in the order of the countries.

    A value is a clue where it occurs in the section of one country alone, territories included, and shares no word with
    that country's name.
    """
    texts = {section: _texts(countries, section) for _, _, section, _, _ in _FACTS}
    neighbors = Counter(frozenset(country.borders) for country in countries)
    clues: list[Clue] = []
    for country in countries:
        if not country.sovereign:
            continue
        for kind, field, section, words, query in _FACTS:
            value = getattr(country, field)
            if (
                value
                and len(value) <= _LONGEST
                and not _gives_away(value, country)
                and _occurs(value, texts[section]) == 1
            ):
                clues.append(_clue(kind, country, section, words, query, value))
        if 1 <= len(country.borders) <= 2 and neighbors[frozenset(country.borders)] == 1:
            clues += _border_clue(country)
    return clues


def _clue(kind: str, country: Country, section: str, words: str, query: str, value: str) -> Clue:
    return Clue(
        kind=kind,
        iso=country.iso,
        value=value,
        words=words.format(value),
        query=query.format(value),
        section=section,
    )


def _border_clue(country: Country) -> Iterator[Clue]:
    """Yield the clue that names all neighbors of a country, of which it has one or two."""
    text = dict(country.sections)[_BORDERS]
    # Where the factbook says more than names and lengths, there may be a neighbor that was not read.
    if len(re.findall(r"\d km", text)) != len(country.borders) or any(
        _gives_away(one, country) for one in country.borders
    ):
        return
    if any(" " in name and name.split()[0] == "US" for name in country.borders):  # A base within the country.
        return
    names = [_with_article(name) for name in country.borders]
    words = (
        f"whose only neighbor is {names[0]}" if len(names) == 1 else f"whose only neighbors are {' and '.join(names)}"
    )
    yield Clue(
        kind="neighbors",
        iso=country.iso,
        value=" ".join(country.borders),
        words=words,
        query=f"border countries {' '.join(country.borders)}",
        section=_BORDERS,
    )


def _with_article(name: str) -> str:
    bare = (
        "Democratic Republic",
        "Republic of",
        "Dominican Republic",
        "Central African",
        "US",
        "UK",
        "UAE",
        "Holy See",
    )
    return f"the {name}" if name.startswith(bare) else name


def _texts(countries: Sequence[Country], section: str) -> list[str]:
    return [text.lower() for country in countries for title, text in country.sections if title == section]


def _occurs(value: str, texts: Sequence[str]) -> int:
    """Return in how many texts a value occurs as whole words."""
    pattern = re.compile(rf"\b{re.escape(value.lower())}(?!\w)")
    return sum(bool(pattern.search(text)) for text in texts)


def _gives_away(value: str, country: Country) -> bool:
    """Return whether a value holds the beginning of a word of the country's name."""
    stems = {word[:_STEM].lower() for word in re.findall(r"\w+", country.name) if len(word) >= _STEM}
    return any(stem in value.lower() for stem in stems)
