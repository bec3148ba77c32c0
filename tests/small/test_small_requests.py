"""Requests of the world `small`: parts without common entities, rows that a run reads, truths that show the scene."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_world import SIZES

from genevolve_ray.data.requests import PublishedRequests, PublishedRequestsConfig
from genevolve_ray.judges.wanted_texts import wanted_texts
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType
from genevolve_ray.small.alike import ALIKE, flag_distances
from genevolve_ray.small.countries import country_names
from genevolve_ray.small.data_build import right_reference
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.requests import Posed, divide_world, pose_requests, split_entities, write_requests
from genevolve_ray.small.scene import SmallScene
from genevolve_ray.small.training.shots import shot_of

Parts = dict[str, list[Posed]]


@pytest.fixture(scope="module")
def parts(library: PictureLibrary, countries: list[Country]) -> Parts:
    return pose_requests(library, countries)


def test_there_are_about_two_thousand_different_requests(parts: Parts) -> None:
    prompts = [each.prompt for posed in parts.values() for each in posed]
    assert {part: len(posed) for part, posed in parts.items()} == {"train": 1400, "validation": 200, "test": 400}
    assert len(set(prompts)) == len(prompts)


def test_countries_and_rare_subjects_do_not_cross_parts(parts: Parts) -> None:
    entities = [{each.entity for each in posed} for posed in parts.values()]
    assert entities[0].isdisjoint(entities[1] | entities[2]) and entities[1].isdisjoint(entities[2])
    rare = [{each.wish.subject for each in posed if each.wish.rare} for posed in parts.values()]
    assert rare[0].isdisjoint(rare[1] | rare[2]) and rare[1].isdisjoint(rare[2])


def test_flags_of_different_parts_do_not_look_alike(library: PictureLibrary, parts: Parts) -> None:
    of = {each.entity: part for part, posed in parts.items() for each in posed if each.scene.flag}
    codes = tuple(sorted(of))
    apart = flag_distances(library.folder, codes)
    assert sum(apart[i, :i].tolist().count(0.0) for i in range(len(codes))) == 2  # Indonesia, Monaco; Romania, Chad
    near = [(codes[i], codes[j]) for i in range(len(codes)) for j in range(i) if apart[i, j] < ALIKE]
    assert len(near) > 15 and all(of[one] == of[other] for one, other in near)


@pytest.mark.parametrize(
    ("background", "shown", "right"),
    [
        ("ID", "flag ID", True),
        ("ID", "flag MC", True),
        ("ID", "flag FR", False),
        ("red", "1F408", True),
        ("red", "1F415", False),
    ],
)
def test_a_flag_that_looks_like_the_right_one_is_the_right_reference(
    library: PictureLibrary, background: str, shown: str, right: bool
) -> None:
    id = library.flags[shown.removeprefix("flag ")].id if shown.startswith("flag ") else shown
    row: Any = SimpleNamespace(references=(SimpleNamespace(url=f"file:///pictures/{id}.png"),))
    assert right_reference(row, SmallScene(subject="1F408", background=background), library) == right
    assert not right_reference(SimpleNamespace(references=()), SmallScene(subject="1F408"), library)  # type: ignore[arg-type]


def test_what_is_left_out_moves_no_country_to_another_part(library: PictureLibrary, countries: list[Country]) -> None:
    sovereign = [country.iso for country in countries if country.sovereign and country.iso in library.flags]
    before = split_entities(sovereign, 1, "countries")
    divided = divide_world(library, countries, 1)
    for part, names in before.items():
        kept = [country.iso for country in divided[part].countries]
        assert set(kept) <= set(names) and len(kept) >= 0.8 * len(names)
    assert len(divided["train"].countries) >= len(before["train"]) - 1


def test_the_truth_in_words_is_what_the_image_text_model_learns(parts: Parts) -> None:
    for each in (each for posed in parts.values() for each in posed):
        assert each.truth_caption == shot_of(each.scene, random.Random(0), plain=True).text
        if each.scene.flag:
            assert f"flag of {country_names()[each.scene.flag]}" in each.truth_caption


def test_an_entity_keeps_its_part_when_others_are_added() -> None:
    names = [f"n{number}" for number in range(100)]
    parts = split_entities(names, 1, "test")
    assert {part: len(found) for part, found in parts.items()} == {"train": 70, "validation": 10, "test": 20}
    assert split_entities(names[::-1], 1, "test") == parts


def test_every_request_has_one_reference_to_find(parts: Parts) -> None:
    for each in parts["train"]:
        assert (each.scene.flag is not None) != each.wish.rare
        assert bool(each.wish.color) == (each.scene.flag is None)


def test_a_request_does_not_tell_what_must_be_found(parts: Parts, countries: list[Country]) -> None:
    names = {country.iso: country.name for country in countries}
    for each in parts["test"]:
        if each.wish.clue is not None:
            assert names[each.entity].lower() not in each.prompt.lower()
        if each.wish.fact:
            assert f'"{each.scene.caption}"' not in each.prompt


def test_facts_in_captions_are_those_of_the_country(parts: Parts, countries: list[Country]) -> None:
    by_code = {country.iso: country for country in countries}
    asked = [each for posed in parts.values() for each in posed if each.wish.fact]
    assert asked
    for each in asked:
        country = by_code[each.entity]
        wanted = country.internet_code if each.wish.fact == "internet" else country.currency_code
        assert each.scene.caption == wanted


def test_a_run_reads_the_rows_with_their_truths(
    library: PictureLibrary, countries: list[Country], tmp_path: Path
) -> None:
    digest = write_requests(library, countries, tmp_path, sizes=SIZES)
    config = PublishedRequestsConfig(
        paths=(tmp_path / "train.jsonl",),
        validation_paths=(tmp_path / "validation.jsonl",),
        heldout_paths=(tmp_path / "test.jsonl",),
    )
    requests = PublishedRequests(config, MemoryImages())
    assert (len(requests), len(requests.validation(99)), len(requests.heldout(99))) == (60, 12, 24)
    assert requests.report.rejected == {}
    held = requests.heldout(99)
    assert {each.truth_image.width for each in held if each.truth_image} == {64}
    assert {each.eval_type for each in held} == set(EvalType)
    captioned = [each for each in held if "caption" in each.meta]
    assert captioned and all(wanted_texts(each, "meta.caption") == [each.meta["caption"]] for each in captioned)
    assert all(each.meta["truth_caption"] for each in held)
    assert write_requests(library, countries, tmp_path, sizes=SIZES) == digest


def test_an_unknown_part_is_refused(library: PictureLibrary, countries: list[Country]) -> None:
    with pytest.raises(ValueError, match="sizes: dev; parts are train, validation, test"):
        pose_requests(library, countries, sizes={"dev": 1})
