"""Rows of `results.json` in written form: the published fields by their names, added fields inside one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.published.aliases import TRUTH_NAMES
from genevolve_ray.records.published.cases import PROVENANCE, SHOWN, ResultRow, has_program, is_direct
from genevolve_ray.records.published.names import picture_path
from genevolve_ray.records.published.results import RAW_PROMPT, STATUS_OK, RenderedRow
from genevolve_ray.records.request import Request
from genevolve_ray.records.seen import shown_pictures
from genevolve_ray.records.trajectory import Termination, Trajectory
from genevolve_ray.records.verdict import NO_TEXT_VALUE, ROW_DIGITS, ImageScores, ScoreFormula, kscore

_ERROR_CHARS = 1000


def request_values(request: Request, truth: str = "") -> dict[str, Any]:
    """Return a request as the fields of a bench row; `truth` is the path of its ground-truth image."""
    fields: dict[str, Any] = {
        "id": request.id,
        "prompt": request.prompt,
        TRUTH_NAMES[0]: truth,
        "eval_type": request.eval_type.value,
        "category": request.category,
        "difficulty": request.difficulty,
        "meta": request.meta,
    }
    return {name: value for name, value in fields.items() if value not in ("", {})}


def agent_row(
    row: Mapping[str, Any],
    trajectory: Trajectory,
    *,
    opening: Sequence[Mapping[str, str]] = (),
    local_path: Callable[[str, ImageHit], str] = lambda img_id, hit: hit.image.file_name,
    shown_path: Callable[[ImageRef], str] = lambda ref: ref.file_name,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an input row with the agent's output.

    A trajectory without a program has an empty `gen_prompt`, no references, and the reason as `error`.

    Args:
        row: the input row, every field of which is kept.
        trajectory: the attempt.
        opening: the messages before the first turn (system prompt and request).
        local_path: returns the path of a reference's picture, given its id and hit.
        shown_path: returns the path of a file that the policy saw; they are listed in the order of their places in the
            messages.
        provenance: further values about the making of the row (seeds, cost, ...).
    """
    program = trajectory.program
    versions = sorted({v for v in trajectory.ledger.versions if v >= 0})
    made_by = trajectory.provenance
    ours: dict[str, Any] = {
        "profile": made_by.profile,
        "answers": made_by.answers,
        "engine": made_by.engine,
        "policy_versions": versions,
        "seed": made_by.seed,
        "outcome": trajectory.outcome.value,
        "tool_calls": trajectory.tool_calls,
    }
    if seen := shown_pictures(trajectory):
        ours[SHOWN] = [shown_path(ref) for ref in seen]
    references = []
    for reference in program.reference_images if program else ():
        hit = trajectory.images[reference.img_id]
        references.append(
            {
                "img_id": reference.img_id,
                "note": reference.note,
                "local_path": local_path(reference.img_id, hit),
                "url": hit.url,
                "title": hit.title,
                "page_url": hit.page_url,
            }
        )
    return {
        **row,
        "gen_prompt": program.gen_prompt if program else "",
        "reference_images": references,
        "messages": [dict(message) for message in opening] + _messages(trajectory),
        "termination": _ended(trajectory.termination),
        "rounds": len(trajectory.turns),
        "error": trajectory.reason[:_ERROR_CHARS] or None,
        PROVENANCE: _provenance(row, ours | dict(provenance or {})),
    }


def _ended(termination: Termination) -> str:
    """Return the published name of a termination; published files know a prompt that is too long as an error."""
    return (Termination.ERROR if termination is Termination.PROMPT_TOO_LONG else termination).value


def rendered_row(
    row: Mapping[str, Any],
    *,
    renderer: str,
    render_seed: int | None = None,
    error: str = "",
    references_ignored: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a row with the result of its rendering.

    A picture is stored as `images/{id}.png` next to `results.json`. A row in which the agent left no program is failed,
    even if a picture was drawn from its request. A row without an agent (a generator that is called directly) needs no
    program.

    Args:
        row: the agent's row, or a bench row for a generator that is called directly.
        renderer: identity of the generator and its settings.
        render_seed: its seed, where it has one.
        error: why there is no picture; "" when there is one.
        references_ignored: whether the generator used the prompt alone, because it cannot take references.
        provenance: further values to record (cost, ...).

    Raises:
        RowFault: for an id that cannot name a picture.
    """
    if not error and not is_direct(row) and not has_program(row):
        error = RAW_PROMPT.removeprefix("error: ")
    path = "" if error else picture_path(ResultRow.read(row).id)
    ours: dict[str, Any] = {"renderer": renderer, "render_seed": render_seed, "direct": is_direct(row)}
    if references_ignored:
        ours["references_ignored"] = True
    return {
        **row,
        "image_path": path,
        "output_path": path,
        "success": not error,
        "image_status": f"error: {error[:_ERROR_CHARS]}" if error else STATUS_OK,
        PROVENANCE: _provenance(row, ours | dict(provenance or {})),
    }


def evaluated_row(
    row: Mapping[str, Any],
    *,
    judge: str,
    formula: ScoreFormula,
    scores: ImageScores | None = None,
    rationale: str = "",
    off_grid: Sequence[str] = (),
    error: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a rendered row with its scores, or with the reason why there are none.

    Args:
        row: the rendered row.
        judge: identity of the judge and its settings.
        formula: how `overall` counts a row without required text.
        scores: the four dimensions; None when the judge gave up, or was not called because there is no picture.
        rationale: the judge's reasons.
        off_grid: dimensions whose score was none of 0, 0.5 and 1, or was clipped.
        error: why there are no scores; by default the status of the row's rendering.
        provenance: further values to record (cost, ...).

    Raises:
        ValueError: for scores of a row without a valid picture, or for scores together with an error.
    """
    rendered = RenderedRow.read(row)
    if scores is not None and (error or not rendered.success):
        raise ValueError(f"row {rendered.id} has scores, but also an error: {error or rendered.status}")
    ours: dict[str, Any] = {"judge": judge, "formula": formula.value}
    if off_grid:
        ours["off_grid"] = list(off_grid)
    if row.get("error") and "eval_success" not in row:
        ours["agent_error"] = row["error"]
    if scores is None:
        error = error or (rendered.status if not rendered.success else "not evaluated")
    return {
        **row,
        "eval_success": scores is not None,
        "error": error[:_ERROR_CHARS] or None,
        "scores": None if scores is None else published_scores(scores, formula, rationale),
        PROVENANCE: _provenance(row, ours | dict(provenance or {})),
    }


def published_scores(scores: ImageScores, formula: ScoreFormula, rationale: str = "") -> dict[str, Any]:
    """Return scores by their published names, with two decimals.

    A row without required text has `text_accuracy` 0.5 and is marked.
    """
    given = scores.model_dump()
    kept = ImageScores(**{name: None if value is None else round(value, ROW_DIGITS) for name, value in given.items()})
    no_text = kept.text_accuracy is None
    return {
        "rationale": rationale,
        "faithfulness": kept.faithfulness,
        "visual_correctness": kept.visual_correctness,
        "text_accuracy": NO_TEXT_VALUE if no_text else kept.text_accuracy,
        "aesthetics": kept.aesthetics,
        "overall": round(kscore(kept, formula), 6 if formula is ScoreFormula.PAPER else ROW_DIGITS),
    } | ({"text_accuracy_na": True} if no_text else {})


def _messages(trajectory: Trajectory) -> list[dict[str, str]]:
    said: list[dict[str, str]] = []
    for turn in trajectory.turns:
        said.append({"role": "assistant", "content": turn.text})
        said += ({"role": "user", "content": message} for message in turn.messages)
    return said


def _provenance(row: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of earlier stages, merged with that of this one."""
    before = row.get(PROVENANCE)
    return (dict(before) if isinstance(before, Mapping) else {}) | dict(ours)
