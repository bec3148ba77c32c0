"""Bundles as the page shows them: best beside worst, the taught card, the retrievals, and the moved tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genevolve_ray.records.experience import Experience
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import Trajectory, TurnKind
from genevolve_ray.viewer.data import scored
from genevolve_ray.viewer.experience import Bundle, Decode, Moved, Redrawn, RunExperience
from genevolve_ray.viewer.gallery import THUMB_SIDE, Pictures, attempt, clip

USES = 8
"""Retrievals listed of one bundle, those of other requests first; the rest are counted."""
CONTEXT_TOKENS = 8
"""Tokens shown on either side of a moved token."""
BEFORE_CHARACTERS, AFTER_CHARACTERS = 32, 18
"""Most characters of that context, so that a token fits on one line."""
MAX_ARGUMENT = 160
"""Characters of a tool call's arguments."""


def lesson_cards(run: RunExperience, pictures: Pictures) -> list[dict[str, Any]]:
    """Return the values that the template needs to show the chosen bundles of a run."""
    return [_card(bundle, run, pictures) for bundle in run.bundles]


def redraw_cards(redrawn: Sequence[Redrawn], pictures: Pictures) -> list[dict[str, Any]]:
    """Return the values that the template needs to show re-draws beside the rewards of their groups."""
    return [
        {
            "step": one.step,
            "request_id": one.group.request_id,
            "prompt": one.group.trajectories[0].prompt if one.group.trajectories else "",
            "own": one.group.scores(),
            "guided": one.redraws.scores(),
            "slots": guidance(one.lesson.experience) if one.lesson is not None else [],
            "bundle": one.lesson.bundle if one.lesson is not None else None,
            "kind": one.lesson.kind.value if one.lesson is not None else "",
            "attempts": [attempt(t, pictures) for t in one.redraws.trajectories],
        }
        for one in redrawn
    ]


def guidance(bundle: Experience) -> list[tuple[str, tuple[str, ...]]]:
    """Return (title of a slot, its bullets) of a bundle."""
    return [(bundle.layout.slots[name], bullets) for name, bullets in bundle.guidance.items()]


def _card(bundle: Bundle, run: RunExperience, pictures: Pictures) -> dict[str, Any]:
    best, worst, lesson = bundle.best, bundle.worst, bundle.experience
    uses = sorted(bundle.uses, key=lambda u: (u.own, u.step))
    prompt = next((t.prompt for t in (best, worst) if t is not None), "")
    strongest = max((abs(m.token.gap) for m in bundle.moved), default=1.0)
    return {
        "bundle": bundle,
        "prompt": prompt,
        "slots": guidance(lesson),
        "sides": [
            {"name": name, "side": _side(one, other, pictures), "whole": attempt(one, pictures) if one else None}
            for name, one, other in (("best", best, worst), ("worst", worst, best))
        ],
        "uses": sorted(uses[:USES], key=lambda u: (u.step, u.request_id)),
        "more_uses": len(uses[USES:]),
        "tokens": [_token(m, run.trajectories.get(m.token.trajectory), run.decode, strongest) for m in bundle.moved],
    }


def _side(one: Trajectory | None, other: Trajectory | None, pictures: Pictures) -> dict[str, Any] | None:
    """Return an attempt in a few lines: its decisions in order, with marks on those that the other did not take."""
    if one is None:
        return None
    elsewhere = set(decisions(other)) if other is not None else None
    chosen = one.program.reference_images if one.program else ()
    hits = {r.img_id: one.images.get(r.img_id) for r in chosen}
    return {
        "picture": pictures.get(one.rendered),
        "score": one.score if scored(one) else None,
        "reward": one.reward,
        "prompt": clip(one.program.gen_prompt) if one.program else "",
        "reason": one.reason,
        "references": [
            {
                "id": img_id,
                "title": hit.title if hit else "",
                "picture": pictures.get(hit.image, THUMB_SIDE) if hit else None,
            }
            for img_id, hit in hits.items()
        ],
        "decisions": [(*d, elsewhere is not None and d not in elsewhere) for d in decisions(one)],
    }


def decisions(trajectory: Trajectory) -> list[tuple[str, str]]:
    """Return (tool, request) of every call in order; a turn that broke the protocol is listed with its error."""
    found = []
    for turn in trajectory.turns:
        if turn.kind is TurnKind.TOOL_CALL:
            found.append((turn.tool, call_in_words(turn.arguments)))
        elif turn.kind is not TurnKind.ANSWER:
            found.append((turn.kind.value.replace("_", " "), clip(turn.error, MAX_ARGUMENT)))
    return found


def call_in_words(arguments: Mapping[str, Any], limit: int = MAX_ARGUMENT) -> str:
    """Return a call's arguments without their names where every value is plain text, cut at `limit` characters."""
    texts: list[str] = []
    for value in arguments.values():
        listed = value if isinstance(value, list) else [value]
        texts.extend(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for v in listed)
    return clip(" · ".join(texts), limit)


def _token(moved: Moved, trajectory: Trajectory | None, decode: Decode | None, strongest: float) -> dict[str, Any]:
    token = moved.token
    step, *_, sample, _ = token.trajectory.split("/") if token.trajectory.count("/") >= 3 else ["?"] * 4
    ledger = trajectory.ledger if trajectory is not None else None
    inside = ledger is not None and 0 <= token.position < len(ledger)
    return {
        "gap": token.gap,
        "share": abs(token.gap) / (strongest or 1.0),
        "position": token.position,
        "where": f"step {step} · sample {sample}",
        "alike": moved.alike,
        "kind": _kind(ledger, token.position) if ledger is not None and inside else "",
        "text": _in_context(ledger, token.position, decode) if ledger is not None and inside and decode else None,
    }


def _kind(ledger: TokenLedger, position: int) -> str:
    kinds = (span.kind.value for span in ledger.spans if span.start <= position < span.end)
    return next(kinds, "").replace("_", " ")


def _in_context(ledger: TokenLedger, position: int, decode: Decode) -> tuple[str, str, str]:
    """Return the text before a token, of it, and after it.

    Decoders treat the first token of a text differently (they drop its space). The pieces are therefore cut out of
    longer and longer texts. Where these do not continue each other, as inside a character of several tokens, each piece
    is decoded alone.
    """
    start, end = max(0, position - CONTEXT_TOKENS), position + 1 + CONTEXT_TOKENS
    ids = ledger.tokens[start:end]
    at = position - start
    before, upto, whole = decode(ids[:at]), decode(ids[: at + 1]), decode(ids)
    if upto.startswith(before) and whole.startswith(upto):
        pieces = before, upto[len(before) :], whole[len(upto) :]
    else:
        pieces = before, decode(ids[at : at + 1]), decode(ids[at + 1 :])
    before, token, after = map(visible, pieces)
    # A word's leading space is part of its token; a mark there would look like a mistake.
    bare = token.lstrip(" ") or token or "∅"
    before += token[: len(token) - len(bare)] if token.endswith(bare) else ""
    opening = "…" if start or len(before) > BEFORE_CHARACTERS else ""
    closing = "…" if end < len(ledger) or len(after) > AFTER_CHARACTERS else ""
    return opening + before[-BEFORE_CHARACTERS:], clip(bare, MAX_ARGUMENT), after[:AFTER_CHARACTERS] + closing


def visible(text: str) -> str:
    """Return text on one line: line ends and tabs as visible characters."""
    return text.replace("\n", "⏎").replace("\t", "⇥")
