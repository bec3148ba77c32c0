"""Clues to countries, checked one by one against all texts: one country answers, and its name is not given away."""

from __future__ import annotations

import re

import pytest

from genevolve_ray.small.clues import Clue, find_clues, states
from genevolve_ray.small.countries import country_names
from genevolve_ray.small.factbook import Country


@pytest.fixture(scope="module")
def clues(countries: list[Country]) -> list[Clue]:
    return find_clues(countries)


def _section(country: Country, title: str) -> str:
    return dict(country.sections).get(title, "").lower()


def _singular(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower())}


def test_all_words_of_a_fact_are_in_the_texts_of_one_country(clues: list[Clue], countries: list[Country]) -> None:
    checked = [clue for clue in clues if clue.kind != "neighbors"]
    assert len(checked) > 400
    for clue in checked:
        stating = [one.iso for one in countries if _singular(clue.value) <= _singular(_section(one, clue.section))]
        assert stating == [clue.iso], clue.words


def test_no_other_country_has_the_neighbors_of_a_clue(clues: list[Clue], countries: list[Country]) -> None:
    by_code = {country.iso: country for country in countries}
    for clue in (clue for clue in clues if clue.kind == "neighbors"):
        names = by_code[clue.iso].borders
        texts = {one.iso: _section(one, clue.section) for one in countries}
        named = [iso for iso, text in texts.items() if all(name.lower() in text for name in names)]
        assert [iso for iso in named if len(re.findall(r"\d km", texts[iso])) == len(names)] == [clue.iso], clue.words


def test_neighbors_with_equally_high_peaks_have_no_clue_of_them(clues: list[Clue], countries: list[Country]) -> None:
    with_peak = {clue.iso for clue in clues if clue.kind == "highest_point"}
    heights = {one.iso: re.findall(r"[\d,]+ m\b", _section(one, "Highest point"))[:1] for one in countries}
    shared = [
        (one.iso, other.iso)
        for one in countries
        for other in countries
        if other.name in one.borders and heights[one.iso] and heights[one.iso] == heights[other.iso]
    ]
    assert ("GN", "CI") in shared and ("UG", "CD") in shared
    assert not with_peak & {iso for pair in shared for iso in pair}


def test_no_clue_names_its_country(clues: list[Clue], countries: list[Country]) -> None:
    names = {country.iso: {country.name.lower(), country_names()[country.iso].lower()} for country in countries}
    assert not [clue.words for clue in clues if any(name in clue.words.lower() for name in names[clue.iso])]


def test_a_name_is_found_in_other_spellings() -> None:
    assert states("george town (on grand cayman)", "Georgetown")
    assert states("monts nimba 1,752 m", "Mont Nimba")
    assert states("mount saint catherine 840 m", "Mount Catherine")
    assert not states("vientiane (viangchan)", "Vienna")
    assert not states("mount apo 2,954 m", "Mount Fuji")


def test_a_mountain_has_no_article(clues: list[Clue]) -> None:
    symbols = {clue.iso: clue.words for clue in clues if clue.kind == "symbol"}
    assert symbols["SI"] == "whose national symbol is Mount Triglav"
    assert symbols["IS"] == "whose national symbol is the gyrfalcon"
