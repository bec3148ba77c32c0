"""Stage `audit`: a grader reads each trajectory and gives six grades; a second one reads a sample, to measure agreement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic import Field

from genevolve_ray.data.build.grading import ChatGrader, Grades, check_scales, weighted_kappa
from genevolve_ray.data.build.stage import PictureUnusable, RowInterrupted
from genevolve_ray.data.build.trajectories import TrajectoryRow
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.seeds import derive_seed

STAGE = "audit"
SCALES = (
    "suitability",
    "reference_grounding",
    "process",
    "skill_integration",
    "prompt_faithfulness",
    "supervised_value",
)
"""The six grades of the audit, from 1 to 5 (third-party reading of the paper; the rubric is this project's)."""


class AuditConfig(Config):
    """Configure the audit."""

    second_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the rows that the second auditor reads as well, where there is one."""
    seed: int = Field(default=1, ge=0)
    """Seed of the choice of these rows."""


class AuditRow(TrajectoryRow):
    """Hold a trajectory with its audit: grades by scale, and those of the second auditor where it read the row."""

    audit: dict[str, Any] = Field(default_factory=dict)
    audit_rationale: str = ""
    auditor: str = ""
    second_audit: dict[str, Any] = Field(default_factory=dict)
    second_auditor: str = ""


class Auditor(Protocol):
    """Define a grader of trajectories. `identity` names it in every row."""

    identity: str

    async def audit(self, row: TrajectoryRow) -> Grades:
        """Return grades on all `SCALES`. Raises InfraFailure when it gave up after bounded retries."""
        ...


class AuditStage:
    """Implement `data.build.stage.RowStage`."""

    def __init__(self, config: AuditConfig, auditor: Auditor, second: Auditor | None = None) -> None:
        """Grade with `auditor`, and a sample also with `second`."""
        self._config, self._auditor, self._second = config, auditor, second

    async def do(self, row: AuditRow) -> AuditRow:
        """Return the row with its grades; nothing is rejected here.

        Raises:
            InfraFailure: as the auditors; what the first one gave is kept.
            UserFault: when an auditor does not grade all scales.
        """
        if not row.audit:
            grades = check_scales(await self._auditor.audit(row), SCALES)
            first = {
                "audit": dict(grades.values),
                "audit_rationale": grades.rationale,
                "auditor": self._auditor.identity,
            }
            row = row.model_copy(update=first)
        if self._second is None or not self._sampled(row):
            return row
        try:
            second = check_scales(await self._second.audit(row), SCALES)
        except InfraFailure as failure:
            raise RowInterrupted(row, failure) from failure
        return row.model_copy(update={"second_audit": dict(second.values), "second_auditor": self._second.identity})

    def _sampled(self, row: AuditRow) -> bool:
        # The choice follows the id alone, so that a resumed build reads the same sample.
        return (
            derive_seed(self._config.seed, "second audit", row.id) % 1_000_000 < 1_000_000 * self._config.second_share
        )


class ChatAuditor:
    """Grade through a chat model that sees the reference pictures and reads the whole record."""

    def __init__(self, grader: ChatGrader, images: ImageStore) -> None:
        """Grade with a `ChatGrader` over `SCALES`; references are read from `images`."""
        self._grader, self._images = grader, images
        self.identity = grader.identity

    async def audit(self, row: TrajectoryRow) -> Grades:
        """Return the grades. Raises PictureUnusable for one that is missing, InfraFailure when the model gave up."""
        hits = row.references
        pictures = {f"Reference {n}": read_picture(self._images, hit.image) for n, hit in enumerate(hits, 1)}
        turns = [f"{turn['role']}: {turn['content']}" for turn in row.answer["messages"][1:]]
        texts = {"request": row.prompt, "record": "\n\n".join(turns)}
        return await self._grader.grade(texts, pictures)

    async def aclose(self) -> None:
        """Release the resources of the model."""
        await self._grader.aclose()


def read_picture(images: ImageStore, ref: ImageRef) -> bytes:
    """Return the bytes of a stored picture. Raises PictureUnusable naming one that is missing."""
    try:
        return images.get(ref)
    except OSError as error:
        raise PictureUnusable(f"picture {ref.sha256[:12]} cannot be read: {error}") from error


class AuditorAgreement(Record):
    """Hold the agreement of two auditors on one scale."""

    scale: str
    rows: int
    kappa: float | None
    """Weighted kappa; None where chance leaves no disagreement."""
    mean: float
    second_mean: float


def agreement(rows: Iterable[AuditRow], scales: Sequence[str] = SCALES) -> list[AuditorAgreement]:
    """Return the agreement of both auditors on the rows that both have read, scale by scale; empty without such rows."""
    both = [row for row in rows if row.audit and row.second_audit]
    found = []
    for scale in scales if both else ():
        first, second = ([int(part[scale]) for part in parts] for parts in _columns(both))
        means = (sum(first) / len(first), sum(second) / len(second))
        kappa = weighted_kappa(first, second)
        found.append(AuditorAgreement(scale=scale, rows=len(both), kappa=kappa, mean=means[0], second_mean=means[1]))
    return found


def _columns(rows: Sequence[AuditRow]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [row.audit for row in rows], [row.second_audit for row in rows]
