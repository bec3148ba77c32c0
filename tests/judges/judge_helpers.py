"""Attempts at one request, and their pairs, for the tests of the summarisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Pair, Provenance, SampleKey, Trajectory, Turn, TurnKind
from genevolve_ray.records.verdict import Reward

REQUEST = Request(
    id="case-0042",
    prompt="Paint three Velmora lanterns beside Karbria, with the text 'SOL RIM' on a sign.",
    eval_type=EvalType.KNOWLEDGE,
    category="quantity_scene",
)
TITLES = {
    "IMG_001": "official photo of Velmora",
    "IMG_002": "fan drawing of Velmora",
    "IMG_003": "fan photo of Karbria",
}


def call(tool: str, **arguments: Any) -> Turn:
    return Turn(kind=TurnKind.TOOL_CALL, text=f"<tool_call>{tool}</tool_call>", tool=tool, arguments=arguments)


def broken() -> Turn:
    return Turn(kind=TurnKind.FORMAT_ERROR, text="eh", error="no action")


def attempt(score: float, turns: Sequence[Turn], prompt: str, chosen: Sequence[str] = ("IMG_001",)) -> Trajectory:
    images = {
        img_id: ImageHit(
            title=title, url=img_id, image=ImageRef(sha256=img_id, width=1, height=1, media_type="image/png")
        )
        for img_id, title in TITLES.items()
    }
    return Trajectory(
        SampleKey(step=3, request_id=REQUEST.id, sample=round(10 * score)),
        REQUEST.prompt,
        TokenLedger(),
        Provenance(profile="release", engine="fake"),
        turns=list(turns),
        images=images,
        outcome=Outcome.SCORED,
        program=Program(gen_prompt=prompt, reference_images=tuple(ReferenceImage(img_id=i) for i in chosen)),
        reward=Reward(total=score, image=score, text=score),
    )


def good(score: float = 0.9) -> Trajectory:
    """Searches, reads a skill, takes the official picture, writes a structured prompt."""
    turns = [
        call("search", queries=["look of Velmora", "who is Karbria"]),
        call("image_search", query="Velmora"),
        call("query_knowledge", skill_name="quantity_counting"),
    ]
    prompt = "three lanterns in a row from the first reference image; a sign at the left; the text 'SOL RIM' on it"
    return attempt(score, turns, prompt)


def poor(score: float = 0.2) -> Trajectory:
    """Guesses, reads something needless, takes the fans' picture, writes one loose sentence."""
    turns = [
        broken(),
        call("image_search", query="Velmora"),
        call("image_search", query="velmora"),
        call("query_knowledge", skill_name="anatomy_body_coherence"),
    ]
    return attempt(score, turns, "nice lanterns with a sign", ["IMG_002"])


def pair_of(best: Trajectory, worst: Trajectory) -> Pair:
    return Pair(REQUEST.id, 3, best, worst, best.score - worst.score)
