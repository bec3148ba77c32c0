"""Clues to countries: facts of the factbook to which exactly one country answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from genevolve_ray.records.base import Record
from genevolve_ray.small.countries import country_names
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
_KINDS = frozenset(
    "mount mont monte mt peak pic pico hill cerro nevado volcan jabal jebel bukit saint la de of on".split()
)
"""Words in the names of mountains that do not tell one from another, as `_words` returns them."""


def find_clues(countries: Sequence[Country]) -> list[Clue]:
    """Return the clues to sovereign countries, in the order of the countries.

    A value is a clue where no other section of its kind states it, those of territories included, and where it shares no
    word with a name of its country. Words count, in any order: "Mont Nimba" is stated by "Monts Nimba". Two neighbors
    whose highest points are equally high share a mountain, whatever they call it.
    """
    texts = {section: _texts(countries, section) for section in (*(fact[2] for fact in _FACTS), _BORDERS)}
    shared = _shared_peaks(countries)
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
                and sum(states(text, value) for text in texts[section]) == 1
                and not (kind == "highest_point" and country.iso in shared)
            ):
                clues.append(_clue(kind, country, section, words, query, value))
        if 1 <= len(country.borders) <= 2 and sum(_only_borders(text, country) for text in texts[_BORDERS]) == 1:
            clues += _border_clue(country)
    return clues


def _clue(kind: str, country: Country, section: str, words: str, query: str, value: str) -> Clue:
    return Clue(
        kind=kind,
        iso=country.iso,
        value=value,
        # A mountain has no article, all other symbols have one.
        words=words.format(value).replace("the Mount ", "Mount "),
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


def states(text: str, value: str) -> bool:
    """Return whether a text, in lower case, holds all words of a value, or its letters as other words.

    A plural counts as its singular, and words such as Mount and Peak do not count.
    """
    wanted = _words(value) - _KINDS or _words(value)
    letters = r"\W*".join(re.findall(r"\w", value.lower()))  # Georgetown and George Town
    return wanted <= _words(text) or re.search(rf"\b{letters}\b", text) is not None


def _words(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower())}


def _shared_peaks(countries: Sequence[Country]) -> set[str]:
    """Return the codes of the countries whose highest point is as high as that of a neighbor."""
    heights = {
        country.name: found[1]
        for country in countries
        if (found := re.search(r"(\d[\d,]{0,9}) m\b", dict(country.sections).get("Highest point", "")))
    }
    by_border = {country.name: country.borders for country in countries}
    shared: set[str] = set()
    for country in countries:
        near = {*country.borders} | {name for name, borders in by_border.items() if country.name in borders}
        if country.name in heights and heights[country.name] in {heights.get(name) for name in near}:
            shared.add(country.iso)
    return shared


def _only_borders(text: str, country: Country) -> bool:
    """Return whether a text of borders, in lower case, names the neighbors of a country, and no more."""
    return len(re.findall(r"\d km", text)) == len(country.borders) and all(
        re.search(rf"\b{re.escape(name.lower())}\b", text) for name in country.borders
    )


def _gives_away(value: str, country: Country) -> bool:
    """Return whether a value holds the beginning of a word of a country's name, by the factbook or by ISO's table."""
    names = f"{country.name} {country_names().get(country.iso, '')}"
    stems = {word[:_STEM].lower() for word in re.findall(r"\w+", names) if len(word) >= _STEM}
    return any(stem in value.lower() for stem in stems)
