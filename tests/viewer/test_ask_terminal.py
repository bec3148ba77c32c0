"""A request as the terminal shows it, and as events: text from outside never controls either."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from genevolve_ray.agent.observer import WordBuffer
from genevolve_ray.agent.parser import ToolCall
from genevolve_ray.evolution.sources import RequestNotUnderstood
from genevolve_ray.records import secrets
from genevolve_ray.records.components import Component, OpenVerdict
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import (
    ImageHit,
    ImageSearchObservation,
    QueryResult,
    SearchObservation,
    TextHit,
    TextObservation,
)
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Trajectory, Turn, TurnKind
from genevolve_ray.viewer.ask_events import AskEvents
from genevolve_ray.viewer.ask_terminal import AskTerminal, Thoughts
from genevolve_ray.viewer.ask_view import Answered, AskedParts, AskView

IMAGES = MemoryImages()
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;a new title\x07",
    "\x1b]52;c;ZWNobyBoaQ==\x07",
    "\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b_Ga=T,f=100;AAAA\x1b\\",
    "\x1bP+q544e\x1b\\",
    "\x1b[2J\x1b[H\x1b[?1049h",
    "\x9b31m\x9d0;title\x9c",
    "a\rb\x08\x08c\x07\x00\x7f",
    "\u202eright to left\u202c\u2066",
    "\x1b",
)


def terminal(**options: Any) -> tuple[AskTerminal, io.StringIO]:
    """Return a view on a terminal of 60 cells without color, and what it prints."""
    settings = {"force_terminal": True, "no_color": True, "width": 60, "_environ": {}} | options
    console = Console(file=io.StringIO(), highlight=False, **settings)
    assert isinstance(console.file, io.StringIO)
    return AskTerminal(console, IMAGES.get), console.file


def plain(text: str) -> str:
    """Return a text without rich's own sequences, which set styles alone."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def play(view: AskView, text: str, *, streamed: bool = False) -> Answered:
    """Show a whole request in which every text from outside is `text`."""
    picture = IMAGES.put(b"no picture", width=4, height=4)
    hit = ImageHit(title=text, url=text, image=picture)
    program = Program(gen_prompt=text, reference_images=(ReferenceImage(img_id="IMG_001", note=text),))
    trajectory = Trajectory(
        SampleKey(step=0, request_id="r", sample=0),
        text,
        TokenLedger(),
        Provenance(profile="p", engine="e", renderer=text),
    )
    trajectory.images, trajectory.program, trajectory.rendered = {"IMG_001": hit}, program, picture
    trajectory.outcome, trajectory.reason = Outcome.INFRA_FAILURE, text
    component = Component(value=0.5, rationale=text)
    trajectory.verdicts = {"other": OpenVerdict(components={"score": component}, judge="j")}
    request = Request(id="r", prompt=text, eval_type=EvalType.KNOWLEDGE)
    view.opened(AskedParts(text, "e", [text], text, {"judge": text}, 1.0))
    view.asked(request, 1)
    view.turn_began(0)
    thought = f"<think>{text}</think>\n<tool_call>{{}}</tool_call>"
    for letter in thought if streamed else "":
        view.text_sampled(letter)
    view.turn_sampled(thought)
    found = SearchObservation(results=(QueryResult(query=text, hits=(TextHit(title=text, url=text, snippet=text),)),))
    view.tool_answered(ToolCall(text, {"queries": [text]}), found, [])
    view.tool_answered(ToolCall("t", {}), TextObservation(text=text, error=text), [])
    view.tool_answered(
        ToolCall("i", {}), ImageSearchObservation(query=text, hits=(hit,), error=text), [("IMG_001", hit)]
    )
    view.turn_ended(Turn(kind=TurnKind.TOOL_CALL, text=text, tool=text, error=text))
    view.turn_ended(Turn(kind=TurnKind.FORMAT_ERROR, text=text, error=text))
    view.turn_ended(Turn(kind=TurnKind.TOOL_CALL, text=text, tool="query_knowledge", observation=text))
    view.programmed(trajectory)
    view.drawn(trajectory, text.encode(errors="replace"))
    answer = Answered(request, trajectory, {"judge": text}, seconds=1.0)
    view.judged(answer)
    view.ended(answer)
    view.misunderstood(RequestNotUnderstood(text, {"subjects": [text]}, [text]))
    view.noted(text)
    view.failed(text, 2)
    return answer


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_from_outside_controls_the_terminal(text: str, streamed: bool) -> None:
    view, out = terminal()
    play(view, f"before {text} after", streamed=streamed)
    said = plain(out.getvalue())
    assert said.count("before") > 20
    assert all(c.isprintable() or c == "\n" for c in said), sorted({c for c in said if not c.isprintable()})


@pytest.mark.parametrize("text", HOSTILE)
def test_events_are_ascii_and_hold_the_text_as_it_was(text: str) -> None:
    out = io.StringIO()
    play(AskEvents(out), text, streamed=True)
    assert all(32 <= ord(c) < 127 or c == "\n" for c in out.getvalue())
    events = {event["event"]: event for event in map(json.loads, out.getvalue().splitlines())}
    assert events["request"]["request"] == text and events["program"]["gen_prompt"] == text
    assert events["answer"]["exit_code"] == 75 and events["error"] == {
        "event": "error",
        "message": text,
        "exit_code": 2,
    }


@pytest.mark.parametrize("as_events", [False, True])
@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("", "ghp_" + "a1B2" * 8),
        ("Authorization: Bearer ", "opaque-token-of-no-known-form"),
        ("Basic ", "dXNlcjpwYXNzd29yZA=="),
        ("-----BEGIN RSA PRIVATE KEY-----\n", "MIIEowIBAAKCAQEA\nq7BFUpkGp3+LQmlQ"),
        ("", "correct horse battery"),
    ],
)
def test_a_secret_is_masked_also_where_it_streams_letter_by_letter(
    before: str, secret: str, as_events: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_known", {"correct horse battery"})
    view, out = terminal()
    events = io.StringIO()
    play(AskEvents(events) if as_events else view, f"key {before}{secret} end", streamed=True)
    said = events.getvalue() if as_events else plain(out.getvalue())
    assert not any(word in said for word in secret.split()) and "***" in said


def test_a_pipe_gets_whole_lines_without_styles() -> None:
    view, out = terminal(force_terminal=False, no_color=None)
    long = " ".join(["word"] * 60)
    play(view, long, streamed=True)
    assert "\x1b" not in out.getvalue()
    assert f"1  {long} \n" in out.getvalue() and f"   {long}\n" in out.getvalue()


def test_a_terminal_wraps_with_the_indent_of_the_line() -> None:
    view, out = terminal(width=40)
    view.turn_began(0)
    for word in ["thinking"] * 12:
        view.text_sampled(f"{word} ")
    view.turn_sampled("thinking " * 12)
    lines = plain(out.getvalue()).splitlines()[1:]
    assert len(lines) == 3 and all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("1  thinking") and lines[1].startswith("   thinking")


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>Plan: draw.</think>\n<tool_call>{}</tool_call>", "Plan: draw.\n"),
        ('no tags <answer>{"a": 1}</answer>', "no tags "),
        ("<think>a < b and <b>c</b></think>", "a < b and <b>c</b>"),
        ("<think>never closed", "never closed"),
    ],
)
def test_thoughts_are_found_however_the_text_is_cut(text: str, thought: str) -> None:
    for size in (1, 2, 3, 7, len(text)):
        thoughts = Thoughts()
        assert "".join(thoughts.feed(text[at : at + size]) for at in range(0, len(text), size)) == thought


def test_words_are_held_until_they_are_whole() -> None:
    buffer = WordBuffer()
    assert [buffer.feed(piece) for piece in ("se", "cret wo", "rd", " ", "\n")] == ["", "secret ", "", "word ", "\n"]
    pieces = ("an antibearer ", "of ", "news. Basic ", "-----BEGIN ", "CERTIFICATE-----\n")
    assert [buffer.feed(piece) for piece in pieces] == [
        "an ",
        "antibearer of ",
        "news. ",
        "Basic ",
        "-----BEGIN CERTIFICATE-----\n",
    ]
    assert (buffer.feed("Bearer tok"), buffer.rest(), buffer.rest()) == ("", "Bearer tok", "")
