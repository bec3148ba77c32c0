"""WISE as rows: prompts become requests, images are graded, grades become WISE's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.bench.jobs.job import RowEnd
from genevolve_ray.bench.jobs.pictures import take_picture
from genevolve_ray.bench.jobs.stages import bounded
from genevolve_ray.bench.wise import SCORES, Edition, WisePrompt, WiseScore
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.ports import GradePort
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.rejections import RowFault
from genevolve_ray.records.published.results import RenderedRow

_FIELD = "wise"


def prompt_row(prompt: WisePrompt) -> ResultRow:
    """Return a prompt as a row; its explanation is for the judge, in a field that no policy reads."""
    return ResultRow.read(
        {
            "id": str(prompt.prompt_id),
            "prompt": prompt.prompt,
            "category": prompt.category,
            "meta": {_FIELD: prompt.model_dump()},
        }
    )


class WiseStage:
    """Grade each image by WISE's rubric. An image that cannot be graded has no score, which is not 0."""

    name, kind, results = "judge", ResultRow, "results_eval.json"

    def __init__(
        self, judge: GradePort, images: ImageStore, edition: Edition, *, roots: Sequence[Path], tries: int
    ) -> None:
        """Grade through the image store; images are read from below `roots`."""
        self._judge, self._images, self._roots, self._tries = judge, images, tuple(roots), tries
        self._edition = edition

    async def do(self, row: ResultRow) -> tuple[dict[str, Any], RowEnd]:
        """Return the row with its grades."""
        rendered = RenderedRow.read(row.values)
        if not rendered.success:
            return self._result(row, rendered.status), RowEnd.MISSED
        try:
            prompt = WisePrompt.model_validate(row.values["meta"][_FIELD])
            image = await take_picture(rendered.picture_file(self._roots), self._images)
            score = await bounded(lambda: self._judge.grade(prompt, image), self._tries)
        except (InfraFailure, RowFault, ImageRefused) as error:
            return self._result(row, str(error)), RowEnd.FAILED
        return self._result(row, "", score), RowEnd.DONE

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the row has grades."""
        return kept.get("eval_success") is True

    def _result(self, row: ResultRow, error: str, score: WiseScore | None = None) -> dict[str, Any]:
        ours = {**row.provenance, "judge": self._judge.identity, "edition": self._edition.value}
        return {
            **row.values,
            "eval_success": score is not None,
            "error": error[:1000] or None,
            "scores": None if score is None else score.model_dump(),
            PROVENANCE: ours,
        }


def scores_of(rows: Sequence[ResultRow], edition: Edition) -> list[WiseScore]:
    """Return the grades of the rows that have them."""
    kind = SCORES[edition]
    return [kind.model_validate(row.values["scores"]) for row in rows if row.values.get("eval_success") is True]
