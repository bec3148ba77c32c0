"""What counts as an answer, how it is masked, and that bundles are checked for it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import trajectories

from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.leaks import (
    LeakError,
    LeakKind,
    check_experience,
    find_leak,
    mask,
    secrets_of,
    without_leaks,
)
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory, Turn, TurnKind

PROMPT = "Show three Velmora lanterns on the left, and the text 'SOL RIM', as in https://example.org/a."


def request(prompt: str = PROMPT, id: str = "train-1-00007") -> Request:
    return Request(id=id, prompt=prompt, eval_type=EvalType.KNOWLEDGE)


def attempt() -> Trajectory:
    """An attempt that found a namesake and an architect, counted to 5 and wrote a motto."""
    image = ImageRef(sha256="0" * 64, width=1, height=1, media_type="image/png")
    turns = [
        Turn(
            kind=TurnKind.TOOL_CALL,
            text="",
            tool="search",
            arguments={"queries": ["moons of Karbria", "who built it"]},
            observation="1. snippet: built by Zaha Hadid.",
        ),
        Turn(kind=TurnKind.TOOL_CALL, text="", tool="query_knowledge", observation="Put Objects in a Row."),
    ]
    return Trajectory(
        SampleKey(step=1, request_id="train-1-00007", sample=0),
        PROMPT,
        TokenLedger(),
        Provenance(profile="release", engine="fake"),
        turns=turns,
        images={"IMG_001": ImageHit(title="Official Photo of the Tower", url="u", image=image)},
        program=Program(
            gen_prompt="draw five moons; the text 'NOX' at the bottom",
            reference_images=(ReferenceImage(img_id="IMG_001", note="look"),),
        ),
    )


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (PROMPT, "Show number name lanterns on the left, and the text quote , as in link"),
        ("Draw the Eiffel Tower at night", "Draw the name at night"),
        ("Velmora on 3 legs", "name on number legs"),
        ("Two flags and one gem", "number flags and one gem"),
        ("a dog's hat with 12,000 stars", "a dog's hat with number stars"),
        ("", ""),
    ],
)
def test_masking_keeps_what_is_to_be_done(text: str, masked: str) -> None:
    assert mask(text) == masked


@given(st.text(max_size=60) | st.text("aB1'\" .,-é漢", max_size=40))
def test_masking_twice_is_masking_once_and_hides_every_answer(text: str) -> None:
    masked = mask(text)
    assert find_leak(masked, secrets_of(request(text))) is None
    assert mask(masked) == masked


@pytest.mark.parametrize(
    ("bullet", "kind", "value"),
    [
        ("Search for Velmora before you draw", LeakKind.NAME, "Velmora"),
        ("look velmora up", LeakKind.NAME, "velmora"),
        ("ask for Karbria too", LeakKind.NAME, "Karbria"),
        ("Credit the work of Zaha in the caption", LeakKind.NAME, "Zaha"),
        ("Draw exactly three of them", LeakKind.NUMBER, "three"),
        ("Draw exactly 3 of them", LeakKind.NUMBER, "3"),
        ("Put five moons in a row", LeakKind.NUMBER, "five"),
        ("Write sol rim at the bottom", LeakKind.TEXT, "SOL RIM"),
        ("Put NOX below", LeakKind.TEXT, "NOX"),
        ("Take IMG_001 as the reference", LeakKind.IMAGE_ID, "IMG_001"),
        ("See https://example.org first", LeakKind.LINK, "https://example.org"),
        ("as in train-1-00007 do", LeakKind.REQUEST_ID, "train-1-00007"),
        ("Write 'built by' somewhere", LeakKind.TEXT, "built by"),
    ],
)
def test_an_answer_in_a_bullet_is_named(bullet: str, kind: LeakKind, value: str) -> None:
    leak = find_leak(bullet, secrets_of(request(), [attempt()]))
    assert leak is not None
    assert (leak.kind, leak.value) == (kind, value)
    for name, layout in BUNDLE_FORMATS.items():
        for slot in layout.slots:
            with pytest.raises(LeakError, match=slot) as caught:
                check_experience(Experience(format=name, guidance={slot: (bullet,)}), request(), [attempt()])
            assert caught.value.leak == leak


GUIDANCE = (
    "Bind the first reference image to its subject and the second reference image to the other.",
    "Search for the facts that the request leaves open before choosing references.",
    "Use one clause for each thing, and quote the text with its place.",
    "Read the skill quantity_counting before writing; arrange counted things in a row.",
    "Prefer official pictures over old or fan pictures.",
    "Standard: Look the subject up once, then draw.",
    "take official",
    "write now",
    "Put the Text at the bottom, in quotes, and name its place.",
    "Avoid format errors: write exactly one tool call in each turn.",
)


@pytest.mark.parametrize("bullet", GUIDANCE)
@pytest.mark.parametrize(
    "prompt", [PROMPT, "Read Now: a poster with 'read' and 'Take it' on it", "Official Guide To Search"]
)
def test_ordinary_guidance_is_no_leak(bullet: str, prompt: str) -> None:
    assert find_leak(bullet, secrets_of(request(prompt), [attempt()])) is None


def test_names_in_lower_case_titles_and_skill_texts_are_no_secrets() -> None:
    """Titles and the project's own skills write ordinary words with capitals."""
    secrets = secrets_of(request(), [attempt()])
    assert find_leak("Prefer a photo of the whole tower with objects in a row", secrets) is None
    assert find_leak("Show the Tower", secrets) is not None


@given(
    name=st.from_regex(r"[A-Z][a-z]{4,8}x", fullmatch=True),
    text=st.from_regex(r"[A-Z]{4,7}Q", fullmatch=True),
    number=st.integers(2, 10**6),
    before=st.sampled_from(GUIDANCE),
    slot=st.sampled_from([(name, slot) for name, layout in BUNDLE_FORMATS.items() for slot in layout.slots]),
    which=st.integers(0, 2),
)
def test_what_a_request_asks_for_never_passes(
    name: str, text: str, number: int, before: str, slot: tuple[BundleFormatName, str], which: int
) -> None:
    kind, place = slot
    asked = request(f"draw {number} times {name} with the text '{text}'")
    value = (name, text, str(number))[which]
    bundle = Experience(format=kind, guidance={place: (before, f"{before} {value}", "keep this")})
    with pytest.raises(LeakError) as caught:
        check_experience(bundle, asked)
    assert caught.value.leak.value == value
    assert without_leaks(bundle, asked).guidance[place] == (before, "keep this")


@given(played=trajectories, prompt=st.text(max_size=30))
def test_a_masked_request_is_clean_whatever_the_attempts_said(played: Trajectory, prompt: str) -> None:
    """The summary and the fixed phrases of the atlas can be asserted in a running training."""
    asked = request(prompt)
    bundle = Experience(
        trigger="Knowledge-Anchored, spatial_layout", summary=mask(prompt), search_strategy=("search facts", "take fan")
    )
    check_experience(bundle, asked, [played])


@pytest.mark.parametrize("quote", ["read nothing", "Number", "name", "write now", "Calm Mood", "lanterns on"])
def test_quotes_that_use_the_words_of_the_guidance_are_no_secrets(quote: str) -> None:
    prompt = "Show Velmora with three lanterns on the left, calm mood."
    played = dataclasses.replace(
        attempt(), program=Program(gen_prompt=f"draw; the text '{quote}' below", reference_images=())
    )
    bundle = Experience(summary=mask(prompt), search_strategy=("read nothing", "write now", "take old"))
    check_experience(bundle, request(prompt), [played])


def test_a_key_that_gives_something_away_is_replaced() -> None:
    bundle = Experience(trigger="about Velmora", summary="Velmora again")
    clean = without_leaks(bundle, request())
    assert (clean.trigger, clean.summary) == ("", mask(PROMPT))


@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from([*"I0aB1 \n-.\"'“_é²", "The", "Draw", "IMG_001", "one", "http://"])).map("".join)
)
def test_a_masked_text_stays_as_it_is(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("I0", "I number"),
        ("a 3D view", "a number name view"),
        ("two dogs\nDraw them", "number dogs draw them"),
        ("x2", "x number"),
    ],
)
def test_masks_touch_no_other_word(text: str, masked: str) -> None:
    assert mask(text) == masked == mask(masked)
