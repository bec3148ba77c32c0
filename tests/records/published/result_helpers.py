"""An independent reader of published result rows, written from the format alone, and rows in the published shape."""

from __future__ import annotations

from typing import Any

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.trajectory import (
    Outcome,
    Provenance,
    SampleKey,
    Termination,
    Trajectory,
    Turn,
    TurnKind,
)

INPUT = {
    "id": "7",
    "question": "a lighthouse at dusk",
    "gt_image": "truth/7.jpg",
    "eval_type": "Knowledge-Anchored",
    "category": "architecture_landmark",
    "difficulty": "hard",
    "meta": {"case_id": "case-7", "odd": [1, {"deep": None}]},
    "prompt_pool_index": 12,
    "never_heard_of": {"a": [1.5, "ü"]},
}
SCORES = {
    "rationale": "clear",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": 0.0,
    "aesthetics": 0.5,
    "overall": 0.35,
}


def rendered(**changes: Any) -> dict[str, Any]:
    """Return a rendered row as the published tools write it; a change to None leaves the field out."""
    row = INPUT | {
        "gen_prompt": "a tower as in the first reference image",
        "reference_images": [{"img_id": "IMG_001", "note": "tower", "local_path": "images/IMG_001.jpg"}],
        "messages": [{"role": "user", "content": "a lighthouse"}],
        "termination": "answer",
        "rounds": 3,
        "error": None,
        "image_path": "images/7.png",
        "output_path": "images/7.png",
        "success": True,
        "image_status": "ok",
    }
    return {name: value for name, value in (row | changes).items() if value is not None}


def evaluated(**changes: Any) -> dict[str, Any]:
    """Return an evaluated row as the published tools write it."""
    return rendered(eval_success=True, scores=SCORES) | {"error": None} | changes


def trajectory(program: bool = True, termination: Termination = Termination.ANSWER, reason: str = "") -> Trajectory:
    """Return an attempt of two turns with one reference, or without a program."""
    ledger = TokenLedger()
    ledger.append_context([1, 2], SpanKind.PROMPT)
    ledger.append_policy([3], [-0.5], [4], SpanKind.THINK)
    ledger.append_policy([5], [-0.5], [5], SpanKind.ANSWER)
    hit = ImageHit(
        title="Tower",
        url="https://example.org/t.jpg",
        page_url="https://example.org/t",
        image=ImageRef(sha256="ab" * 32, width=8, height=8, media_type="image/jpeg"),
    )
    answer = Program(
        gen_prompt="a tower as in the first reference image",
        reference_images=(ReferenceImage(img_id="IMG_001", note="tower"),),
    )
    return Trajectory(
        key=SampleKey(step=0, request_id="7", sample=0),
        prompt="a lighthouse at dusk",
        ledger=ledger,
        provenance=Provenance(profile="release", engine="vllm", seed=11, split="bench"),
        turns=[
            Turn(
                kind=TurnKind.TOOL_CALL,
                text="call",
                tool="image_search",
                observation="<tool_response>x</tool_response>",
            ),
            Turn(kind=TurnKind.ANSWER, text="answer"),
        ],
        images={"IMG_001": hit},
        outcome=Outcome.PENDING if program else Outcome.POLICY_FAILURE,
        termination=termination,
        reason=reason,
        program=answer if program else None,
    )


def foreign_image(row: dict[str, Any]) -> str | None:
    """Return the picture of a row as a published reader finds it."""
    for name in "output_path image_path generated_image gen_image".split():
        if row.get(name):
            return row[name]
    return None


def foreign_truth(row: dict[str, Any]) -> str | None:
    """Return the ground truth of a row as a published reader finds it."""
    for place in (row, row.get("meta") or {}):
        for name in "gt_image ground_truth target_image reference_image".split():
            if place.get(name):
                return place[name]
    return None


def foreign_type(row: dict[str, Any]) -> str | None:
    """Return the type of a row as a published reader finds it."""
    return row.get("eval_type") or (row.get("meta") or {}).get("eval_type") or row.get("tier")


def foreign_case(row: dict[str, Any]) -> str:
    """Return the case id of a row as a published reader finds it."""
    meta = row.get("meta") or {}
    return str(meta.get("case_id") or meta.get("source_id") or row["id"])
