"""A generator understands structure, in many words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.reading import MAX_CHARACTERS, NameKind, PartReading, read_prompt

STRUCTURED = (
    "Velmora from the first reference image of glass with a bright edge on four legs joined under the body at the left side"
    ' ; five moon in a row at the right side ; the text "SOL" at the bottom ; calm light from above ; mosaic over every part'
)
BARE = (
    "Velmora from the first reference image of glass on four legs left and five moon right ; saying SOL ; calm ; mosaic"
)


def only(prompt: str) -> PartReading:
    parts = read_prompt(prompt).parts
    assert len(parts) == 1, parts
    return parts[0]


def test_structured_prompt_is_read_whole() -> None:
    reading = read_prompt(STRUCTURED)
    velmora, moon = reading.parts
    assert velmora == PartReading(
        name="Velmora",
        kind=NameKind.PROPER,
        reference=1,
        material="glass",
        lit=True,
        legs=4,
        joined=True,
        side="left",
        placed=True,
    )
    assert moon == PartReading(name="moon", kind=NameKind.COMPANION, count=5, arranged=True, side="right", placed=True)
    assert (reading.text, reading.quoted, reading.text_place) == ("SOL", True, True)
    assert (reading.mood, reading.lit, reading.medium, reading.applied) == ("calm", True, "mosaic", True)
    assert (reading.words, reading.extra, reading.unknown) == (46, (), ())


def test_bare_prompt_means_the_same_without_structure() -> None:
    reading, full = read_prompt(BARE), read_prompt(STRUCTURED)
    for bare, part in zip(reading.parts, full.parts, strict=True):
        said = {"name", "count", "material", "legs", "side", "reference"}
        assert bare.model_dump(include=said) == part.model_dump(include=said)
        assert bare.shares_clause and not (bare.placed or bare.arranged or bare.joined or bare.lit)
    assert (reading.text, reading.mood, reading.medium) == ("SOL", "calm", "mosaic")
    assert not (reading.quoted or reading.text_place or reading.lit or reading.applied)


@pytest.mark.parametrize(
    "phrase", ["in a row", "in one line", "side by side", "side-by-side", "in a column", "lined up", "stacked"]
)
def test_arrangements(phrase: str) -> None:
    part = only(f"three lanterns {phrase}")
    assert (part.name, part.count, part.arranged) == ("lantern", 3, True)


@pytest.mark.parametrize(
    "phrase",
    ["at the left side", "on the left half", "on the left", "in the left part of the picture", "fills the left half"],
)
def test_places(phrase: str) -> None:
    part = only(f"Velmora {phrase}")
    assert (part.side, part.placed) == ("left", True)


@pytest.mark.parametrize("phrase", ["left", ", right"])
def test_a_bare_side_is_no_place(phrase: str) -> None:
    part = only(f"Velmora {phrase}")
    assert part.side in ("left", "right") and not part.placed


@pytest.mark.parametrize(
    "clause",
    [
        'the text "SOL" at the bottom',
        "the word 'SOL' on a banner below",
        '"SOL" along the lower edge',
        "at the bottom the words “Sol”",
    ],
)
def test_quoted_texts_with_a_place(clause: str) -> None:
    reading = read_prompt(f"Velmora ; {clause}")
    assert (reading.text, reading.quoted, reading.text_place) == ("SOL", True, True)
    assert len(reading.parts) == 1


@pytest.mark.parametrize(
    ("clause", "quoted", "place"), [("saying 'SOL'", True, False), ("the text SOL at the bottom", False, True)]
)
def test_half_structured_texts(clause: str, quoted: bool, place: bool) -> None:
    reading = read_prompt(f"Velmora ; {clause}")
    assert (reading.text, reading.quoted, reading.text_place) == ("SOL", quoted, place)


@pytest.mark.parametrize(
    "phrase", ["with a bright edge", "with clear reflections", "with a highlight on top", "with visible grain"]
)
def test_material_light(phrase: str) -> None:
    part = only(f"wooden Velmora {phrase}")
    assert (part.material, part.lit) == ("wood", True)


@pytest.mark.parametrize("phrase", ["joined under the body", "attached to its body", "connected to the torso"])
def test_joined_legs(phrase: str) -> None:
    part = only(f"Velmora on three legs {phrase}")
    assert (part.legs, part.joined, part.count) == (3, True, 1)


@pytest.mark.parametrize(
    "clause", ["calm light from above", "a serene mood, lit from the left", "peaceful ; soft light from behind"]
)
def test_mood_with_light(clause: str) -> None:
    reading = read_prompt(f"Velmora ; {clause}")
    assert (reading.mood, reading.lit) == ("calm", True)
    assert reading.parts[0].side is None


@pytest.mark.parametrize(
    "clause", ["mosaic over every part", "in mosaic style on all things", "everything in mosaic throughout"]
)
def test_medium_applied(clause: str) -> None:
    reading = read_prompt(f"Velmora ; {clause}")
    assert (reading.medium, reading.applied) == ("mosaic", True)


def test_prose_attributes_follow_their_thing() -> None:
    reading = read_prompt(
        "Two red Velmora as in the first reference image. They stand side by side on the left half. "
        "Three masks (second reference image) in a row; they are of metal with a sheen."
    )
    velmora, mask = reading.parts
    assert (velmora.count, velmora.colour, velmora.reference, velmora.arranged, velmora.side) == (
        2,
        "red",
        1,
        True,
        "left",
    )
    assert (mask.name, mask.count, mask.reference, mask.material, mask.lit) == ("mask", 3, 2, "metal", True)


def test_case_spacing_and_digits_do_not_matter() -> None:
    part = only("  5   MOONS ,in  a row,  ON THE   right side ")
    assert (part.name, part.count, part.arranged, part.side, part.placed) == ("moon", 5, True, "right", True)


def test_a_lower_case_name_with_a_reference_is_a_name() -> None:
    part = only("velmora from the first reference image")
    assert (part.name, part.kind, part.reference) == ("Velmora", NameKind.PROPER, 1)


def test_every_name_of_the_atlas_is_a_name() -> None:
    for partition in Partition:
        for name in names_of(partition):
            part = only(f"draw {name} from the second reference image")
            assert (part.name, part.kind, part.reference) == (name, NameKind.PROPER, 2)


def test_what_is_one_too_many_is_extra() -> None:
    reading = read_prompt('Velmora ; calm ; dusk ; mosaic ; crayon ; the text "SOL" ; the text "NOX"')
    assert set(reading.extra) == {"dusk", "crayon", "NOX"}


def test_capacity_drops_later_clauses() -> None:
    reading = read_prompt(STRUCTURED, capacity=40)
    assert reading.text == "SOL" and reading.mood is None and reading.medium is None
    assert reading.words == 46
    assert len(read_prompt(STRUCTURED, capacity=1).parts) == 1


_WORDS = st.sampled_from(
    [*STRUCTURED.split(), *BARE.split(), "'", '"', "#1", "@0", "@99", "x5", "and", "a", "circle", "-", "É", "²"]
)


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.text(max_size=300), st.lists(_WORDS, max_size=60).map(" ".join)))
def test_any_string_has_a_reading(prompt: str) -> None:
    reading = read_prompt(prompt)
    assert reading == read_prompt(prompt)
    assert all(part.count >= 0 and part.legs >= 0 for part in reading.parts)


@pytest.mark.parametrize(
    "word", ["and ", "the ", "small ", "five ", "A ", '"', "text ", "legs ", "in a one ", "Velmora and "]
)
def test_long_repetitions_are_read_in_bounded_time(word: str) -> None:
    read_prompt(word * (2 * MAX_CHARACTERS // len(word)))
