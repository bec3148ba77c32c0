"""WISE, both editions: a user's own prompt files, files of scores, and WiScore with missing scores distinguished.

The files of WISE have no license, so the package includes none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.intervals import Interval, stratified_interval
from genevolve_ray.records.published.files import encode, published_rows, write_bytes
from genevolve_ray.records.published.rejections import DataError, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import integer, text_of


class Edition(StrEnum):
    """Name the edition of WISE: scores of different editions cannot be compared."""

    LEGACY = "legacy"
    """Three grades from 0 to 2 and WiScore; the published GenEvolve figures are of this edition."""
    VERIFIED = "verified"
    """One grade, 0 or 1; the default of WISE since April 2026."""


CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
LAST_IDS: Mapping[Edition, tuple[int, ...]] = {
    Edition.LEGACY: (400, 567, 700, 800, 900, 1000),
    Edition.VERIFIED: (400, 520, 640, 760, 880, 1000),
}
"""The last prompt id of each category; ids begin at 1."""
WEIGHTS: Mapping[Edition, tuple[float, ...]] = {
    Edition.LEGACY: (0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    Edition.VERIFIED: (0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
}
"""Weight of each category in the overall score."""
TOTAL = 1000


class WisePrompt(Record):
    """Hold one prompt; its image is `{prompt_id}.png`."""

    prompt_id: int = Field(ge=1, le=TOTAL)
    prompt: str
    explanation: str
    category: str = ""
    subcategory: str = ""

    @property
    def picture(self) -> str:
        """File name of the image."""
        return f"{self.prompt_id}.png"


class LegacyScore(Record):
    """Hold the judge's three grades of one image."""

    prompt_id: int = Field(ge=1, le=TOTAL)
    subcategory: str = ""
    consistency: int = Field(ge=0, le=2)
    realism: int = Field(ge=0, le=2)
    aesthetic_quality: int = Field(ge=0, le=2)

    @property
    def value(self) -> float:
        """WiScore in [0, 1]: (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2."""
        return (7 * self.consistency + 2 * self.realism + self.aesthetic_quality) / 20


class VerifiedScore(Record):
    """Hold the judge's one grade of one image."""

    prompt_id: int = Field(ge=1, le=TOTAL)
    subcategory: str = ""
    score: int = Field(ge=0, le=1)

    @property
    def value(self) -> float:
        """The grade."""
        return float(self.score)


WiseScore = LegacyScore | VerifiedScore
GRADES = {
    Edition.LEGACY: {"consistency": "Consistency", "realism": "Realism", "aesthetic_quality": "Aesthetic Quality"},
    Edition.VERIFIED: {"score": "Score"},
}
"""The graded aspects: the field in files, and the name on the judge's line."""
SCORES: dict[Edition, type[LegacyScore] | type[VerifiedScore]] = {
    Edition.LEGACY: LegacyScore,
    Edition.VERIFIED: VerifiedScore,
}
BEST = {Edition.LEGACY: 2, Edition.VERIFIED: 1}
"""The best grade; the worst is 0."""


def category_ids(category: str, edition: Edition) -> range:
    """Return the ids of a category."""
    place = CATEGORIES.index(category)
    first = LAST_IDS[edition][place - 1] + 1 if place else 1
    return range(first, LAST_IDS[edition][place] + 1)


# --- the user's files ---------------------------------------------------------------------------------------------------


def read_prompts(paths: Iterable[Path], report: RejectionReport) -> list[WisePrompt]:
    """Return the prompts of a user's JSON arrays, by id; the report receives unusable entries.

    Raises:
        DataError: for a file that is missing or broken, or when no prompt is left.
    """
    named = [str(path) for path in paths]
    found: dict[int, WisePrompt] = {}
    for path in map(Path, named):
        for row in published_rows(path, report):
            try:
                prompt = _prompt(row.values)
                if prompt.prompt_id in found:
                    raise RowFault(RejectionReason.DUPLICATE_ID, prompt.prompt_id)
            except RowFault as fault:
                report.reject(row.rejection(fault))
                continue
            found[prompt.prompt_id] = prompt
    if not found:
        raise DataError(f"{', '.join(named) or 'no file'}: contains no WISE prompt")
    return [found[prompt_id] for prompt_id in sorted(found)]


def _prompt(values: Mapping[str, object]) -> WisePrompt:
    prompt = text_of(values.get("Prompt"), "Prompt").strip()
    if not prompt:
        raise RowFault(RejectionReason.MISSING_REQUEST, "Prompt")
    return WisePrompt(
        prompt_id=_prompt_id(values),
        prompt=prompt,
        explanation=text_of(values.get("Explanation"), "Explanation").strip(),
        category=text_of(values.get("Category"), "Category"),
        subcategory=text_of(values.get("Subcategory"), "Subcategory"),
    )


def _prompt_id(values: Mapping[str, object]) -> int:
    prompt_id = integer(values.get("prompt_id"), "prompt_id")
    if prompt_id is None:
        raise RowFault(RejectionReason.MISSING_ID, "prompt_id")
    if not 1 <= prompt_id <= TOTAL:
        raise RowFault(RejectionReason.BAD_FIELD, f"prompt_id is {prompt_id}, not in 1 to {TOTAL}")
    return prompt_id


def write_scores(path: Path, scores: Iterable[WiseScore]) -> Path:
    """Write scores as the published JSON lines, by id, atomically, and return the path."""
    lines = []
    for score in sorted(scores, key=lambda s: s.prompt_id):
        fields = score.model_dump()
        lines.append({"prompt_id": fields.pop("prompt_id"), "Subcategory": fields.pop("subcategory"), **fields})
    return write_bytes(path, b"".join(encode(line) + b"\n" for line in lines))


def read_scores(paths: Iterable[Path], edition: Edition, report: RejectionReport) -> list[WiseScore]:
    """Return the scores of JSON lines, by id. A grade out of its range rejects the line: such lines mark failures.

    Raises:
        DataError: for a file that is missing.
    """
    found: dict[int, WiseScore] = {}
    for path in paths:
        for row in published_rows(path, report):
            try:
                prompt_id = _prompt_id(row.values)
                if prompt_id in found:
                    raise RowFault(RejectionReason.DUPLICATE_ID, prompt_id)
                grades = {name: _grade(row.values.get(name), name, edition) for name in GRADES[edition]}
                subcategory = text_of(row.values.get("Subcategory"), "Subcategory")
            except RowFault as fault:
                report.reject(row.rejection(fault))
                continue
            found[prompt_id] = SCORES[edition].model_validate(
                {"prompt_id": prompt_id, "subcategory": subcategory, **grades}
            )
    return [found[prompt_id] for prompt_id in sorted(found)]


def _grade(value: object, name: str, edition: Edition) -> int:
    grade = integer(value, name)
    if grade is None or not 0 <= grade <= BEST[edition]:
        raise RowFault(RejectionReason.BAD_FIELD, f"{name} is {grade}, not in 0 to {BEST[edition]}")
    return grade


# --- the score ----------------------------------------------------------------------------------------------------------


class CategoryScore(Record):
    """Hold one category: the mean over ids with a score (None without any), and the mean with the others as 0."""

    mean: float | None
    mean_missing_zero: float
    count: int
    denominator: int


class WiseSummary(Record):
    """Summarize WISE as a whole.

    `overall` weights the category means. It is None when a category has no score at all, since a partial sum is not a
    WISE score. `overall_missing_zero` counts every missing id as 0. `interval` resamples ids within each category.
    """

    edition: Edition
    categories: dict[str, CategoryScore]
    subcategories: dict[str, CategoryScore]
    overall: float | None
    overall_missing_zero: float
    interval: Interval | None = None
    missing_ids: tuple[int, ...] = ()
    total: int = TOTAL


def summarise_wise(
    scores: Sequence[WiseScore],
    edition: Edition,
    prompts: Sequence[WisePrompt] = (),
    *,
    samples: int = 2000,
    seed: int = 0,
) -> WiseSummary:
    """Return the scores of an edition's 1,000 ids; only `overall_missing_zero` counts an id without a score as 0.

    Args:
        scores: one per id.
        edition: the edition whose id ranges and weights apply.
        prompts: the prompts, for the number of ids in each subcategory; without them it is the number of those with
            scores.
        samples: bootstrap samples of the 95% interval; 0 for none.
        seed: of the bootstrap.

    Raises:
        ValueError: when two scores have one id, or a score is of the other edition.
    """
    values: dict[int, float] = {}
    for score in scores:
        if not isinstance(score, SCORES[edition]) or score.prompt_id in values:
            wrong = "occurs twice" if score.prompt_id in values else f"is not part of the {edition.value} edition"
            raise ValueError(f"the score of prompt_id {score.prompt_id} {wrong}")
        values[score.prompt_id] = score.value
    categories = {name: _category(values, category_ids(name, edition)) for name in CATEGORIES}
    parts: dict[str, list[int]] = {}
    for row in prompts or scores:
        parts.setdefault(row.subcategory, []).append(row.prompt_id)
    weights = dict(zip(CATEGORIES, WEIGHTS[edition], strict=True))
    means = {name: category.mean for name, category in categories.items()}
    complete = {name: mean for name, mean in means.items() if mean is not None}
    overall = sum(weights[n] * mean for n, mean in complete.items()) if len(complete) == len(CATEGORIES) else None
    interval = None
    if overall is not None and samples:
        strata = [[values[i] for i in category_ids(name, edition) if i in values] for name in CATEGORIES]
        interval = stratified_interval(strata, WEIGHTS[edition], mean=overall, seed=seed, samples=samples)
    return WiseSummary(
        edition=edition,
        categories=categories,
        subcategories={name: _category(values, parts[name]) for name in sorted(parts) if name},
        overall=overall,
        overall_missing_zero=sum(weights[n] * c.mean_missing_zero for n, c in categories.items()),
        interval=interval,
        missing_ids=tuple(i for i in range(1, TOTAL + 1) if i not in values),
    )


def _category(values: Mapping[int, float], ids: Sequence[int]) -> CategoryScore:
    known = [values[i] for i in ids if i in values]
    total = sum(known)
    return CategoryScore(
        mean=total / len(known) if known else None,
        mean_missing_zero=total / len(ids),
        count=len(known),
        denominator=len(ids),
    )
