"""Requests that people type to the atlas: played where its world understands them, else answered by near ones."""

from __future__ import annotations

import pytest

from genevolve_ray.atlas.sources import AtlasRequests, WorldConfig
from genevolve_ray.evolution.plugins import RequestsSpec
from genevolve_ray.evolution.sources import RequestNotUnderstood, RequestReader
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType

IMAGES = MemoryImages()
SOURCE = AtlasRequests(WorldConfig(), IMAGES)
NAME = SOURCE.train(2).prompt.split()[1]
"""A named subject of the world: "Show NAME with its moon."."""
SPEC = RequestsSpec(type="genevolve_ray.atlas.sources:AtlasRequests")


def test_a_typed_request_carries_the_truth_and_its_picture() -> None:
    made, typed = SOURCE.train(2), SOURCE.read_request(SOURCE.train(2).prompt)
    assert typed.id.startswith("ask-")
    assert typed.model_copy(update={"id": made.id}) == made
    assert IMAGES.get(typed.truth_image).startswith(b"\x89PNG") if typed.truth_image else False
    assert SOURCE.read_request(made.prompt) == typed


def test_a_request_about_a_kind_is_one_of_quality() -> None:
    assert SOURCE.read_request("two red lanterns of glass").eval_type is EvalType.QUALITY


def test_what_is_not_understood_is_answered_by_reasons_words_and_requests() -> None:
    with pytest.raises(RequestNotUnderstood) as caught:
        SOURCE.read_request("a cat on a skateboard")
    fault = caught.value
    assert fault.reason == "it names nothing that the atlas knows"
    assert "lantern" in fault.knows["other subjects"] and "red" in fault.knows["colors"]
    assert len(fault.suggestions) == 3 and str(fault).endswith(f"Try: {' | '.join(fault.suggestions)}")
    for prompt in fault.suggestions:
        assert SOURCE.read_request(prompt).truth_image is not None


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        (f"Show {NAME[:-2]}{NAME[-1]} with its moons", f"Show {NAME} with its moons"),
        ("two latern of glass", "two lantern of glass"),
    ],
)
def test_a_misspelled_subject_is_mended_first(typed: str, first: str) -> None:
    assert SOURCE.suggest_requests(3, near=typed)[0] == first


def test_near_requests_share_what_is_known() -> None:
    assert all("tower" in prompt for prompt in SOURCE.suggest_requests(3, near="Show seven towers"))


def test_every_suggestion_can_be_played_and_later_ones_are_others() -> None:
    first, second = SOURCE.suggest_requests(6), SOURCE.suggest_requests(6, after=6)
    assert not set(first) & set(second)
    for prompt in first + second:
        SOURCE.read_request(prompt)


class Rows:
    """A source of rows, which cannot read what people type."""

    Config = WorldConfig

    def __init__(self, config: WorldConfig, images: MemoryImages) -> None:
        self.images = images

    def train(self, index: int) -> object:
        return SOURCE.train(index)

    validation = heldout = train


def test_a_source_of_rows_suggests_them_and_leaves_typed_requests_without_a_truth() -> None:
    rows = RequestReader(RequestsSpec(type="test_typed:Rows"), IMAGES)
    assert rows.suggest(2, after=1) == [SOURCE.train(1).prompt, SOURCE.train(2).prompt]
    typed = rows.read("a heron at dawn")
    assert (typed.prompt, typed.truth_image, typed.meta) == ("a heron at dawn", None, {})


def test_a_reader_of_the_atlas_reads_and_suggests_near_requests() -> None:
    reader = RequestReader(SPEC, IMAGES)
    assert reader.read(SOURCE.train(2).prompt).truth_image is not None
    assert all("tower" in prompt for prompt in reader.suggest(2, near="nine towers"))
