from __future__ import annotations

from typing import Any

import pytest
from bundle_helpers import make_bundle

from benchmarks.null_parts import picture
from genevolve_ray.records.experience import BundleFormatName, Experience, MovedToken
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import TurnKind
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.experience import Moved, RunExperience
from genevolve_ray.viewer.gallery import THUMB_SIDE, Pictures
from genevolve_ray.viewer.lessons import MAX_ARGUMENT, USES, decisions, lesson_cards

NO_PICTURES = Pictures(MemoryImages().get)


@pytest.fixture
def run(report_data: ReportData) -> RunExperience:
    assert report_data.experience is not None
    return report_data.experience


def test_decisions_that_the_other_attempt_did_not_take_are_marked(run: RunExperience) -> None:
    best, worst = (half["side"] for half in lesson_cards(run, NO_PICTURES)[0]["sides"])
    assert [(tool, only) for tool, _, only in best["decisions"]] == [
        ("query_knowledge", True),
        ("search", False),
        ("image_search", False),
    ]
    assert not any(only for _, _, only in worst["decisions"])


def test_arguments_are_shown_as_plain_text_and_cut(run: RunExperience) -> None:
    trajectory = run.bundles[0].best
    assert trajectory is not None
    calls: list[dict[str, object]] = [{"queries": ["a", "b"], "top_k": 3}, {"query": "x" * 900}]
    for i, arguments in enumerate(calls):
        trajectory.turns[i] = trajectory.turns[i].model_copy(update={"arguments": arguments})
    said = [text for _, text in decisions(trajectory)]
    assert said[0] == "a · b · 3"
    assert said[1].startswith("x" * MAX_ARGUMENT + "\n…") and len(said[1]) < MAX_ARGUMENT + 40


def test_a_turn_that_broke_the_protocol_stands_with_its_error(run: RunExperience) -> None:
    trajectory = run.bundles[0].worst
    assert trajectory is not None
    broken = {"kind": TurnKind.FORMAT_ERROR, "error": "no JSON"}
    trajectory.turns[-1] = trajectory.turns[-1].model_copy(update=broken)
    assert decisions(trajectory)[-1] == ("format error", "no JSON")


def test_retrievals_by_other_requests_come_first_and_the_rest_is_counted(run: RunExperience) -> None:
    card = lesson_cards(run, NO_PICTURES)[1]
    assert len(card["uses"]) == USES and card["more_uses"] == len(run.bundles[1].uses) - USES
    assert not any(use.own for use in card["uses"])


def test_references_are_told_by_id_title_and_picture(run: RunExperience) -> None:
    trajectory = run.bundles[0].best
    assert trajectory is not None
    hit = trajectory.images["IMG_001"]
    pictures = Pictures(lambda ref: picture())

    def told() -> dict[str, Any]:
        [found] = lesson_cards(run, pictures)[0]["sides"][0]["side"]["references"]
        return dict(found)

    found = told()
    assert (found["id"], found["title"], found["picture"].key) == (
        "IMG_001",
        hit.title,
        f"{hit.image.sha256[:16]}-{THUMB_SIDE}",
    )
    trajectory.images.clear()
    assert told() == {"id": "IMG_001", "title": "", "picture": None}


def test_a_bundle_whose_pair_is_gone_keeps_its_card() -> None:
    card = lesson_cards(RunExperience([make_bundle(4, 2, 0.3)]), NO_PICTURES)[0]
    assert [half["side"] for half in card["sides"]] == [None, None]
    assert card["slots"] == [("Search", ("search the facts first",)), ("Avoid", ("do not use the fan picture",))]


def test_the_labels_of_a_card_are_those_of_its_format() -> None:
    bundle = make_bundle(4, 2, 0.3)
    guidance = {"focus": ("settle the facts first",), "failure_guards": ("mind the fan picture",)}
    bundle.experience = Experience(format=BundleFormatName.DECISION_GUIDE, guidance=guidance)
    card = lesson_cards(RunExperience([bundle]), NO_PICTURES)[0]
    assert card["slots"] == [("Focus", ("settle the facts first",)), ("Avoid", ("mind the fan picture",))]


WORDS = {0: "so", 1: " the", 2: " cat", 3: "\n", 4: "?"}


def spaced(ids: list[int]) -> str:
    """Decode like a word-piece decoder: the first token of a text loses its space."""
    return "".join(WORDS[i] for i in ids).lstrip(" ")


def ledger(*ids: int) -> TokenLedger:
    made = TokenLedger()
    made.append_context(ids[:1], SpanKind.PROMPT)
    made.append_policy(ids[1:], [0.0] * (len(ids) - 1), [0] * (len(ids) - 1), SpanKind.TOOL_CALL)
    return made


@pytest.mark.parametrize(
    ("ids", "position", "shown"),
    [
        ((0, 1, 2, 4), 1, ("so ", "the", " cat?")),
        ((0, 1, 2, 4), 3, ("so the cat", "?", "")),
        ((0, 2, 3, 1), 2, ("so cat", "⏎", " the")),
        ((0,) * 30, 15, ("…" + "so" * 8, "so", "so" * 8 + "…")),
    ],
)
def test_a_token_stands_in_its_context(
    run: RunExperience, ids: tuple[int, ...], position: int, shown: tuple[str, str, str]
) -> None:
    bundle = run.bundles[0]
    assert bundle.worst is not None
    run.bundles = [bundle]
    bundle.worst.ledger = ledger(*ids)
    bundle.moved = [Moved(MovedToken(trajectory=str(bundle.worst.key), position=position, gap=2.0))]
    run.decode = lambda tokens: spaced(list(tokens))
    (token,) = lesson_cards(run, NO_PICTURES)[0]["tokens"]
    assert token["text"] == shown
    assert token["kind"] == "tool call"


def test_a_token_that_is_part_of_a_character_is_decoded_alone(run: RunExperience) -> None:
    bundle = run.bundles[0]
    assert bundle.worst is not None
    bundle.worst.ledger = ledger(0xE2, 0x82, 0xAC)
    bundle.moved = [Moved(MovedToken(trajectory=str(bundle.worst.key), position=1, gap=2.0))]
    run.decode = lambda tokens: bytes(tokens).decode(errors="replace")
    (token,) = lesson_cards(run, NO_PICTURES)[0]["tokens"]
    assert token["text"] == ("\ufffd", "\ufffd", "\ufffd")


def test_a_position_outside_the_ledger_has_no_text(run: RunExperience) -> None:
    bundle = run.bundles[0]
    assert bundle.worst is not None
    bundle.moved = [Moved(MovedToken(trajectory=str(bundle.worst.key), position=10**6, gap=2.0))]
    (token,) = lesson_cards(run, NO_PICTURES)[0]["tokens"]
    assert (token["text"], token["kind"]) == (None, "")
