"""Progress of a fine-tuning, as it is kept with each of its states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from genevolve_ray.errors import MISREAD, UserFault
from genevolve_ray.records.published.rejections import Rejection, RejectionReason

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftEvaluation, SftStep


@dataclass
class SftProgress:
    """Hold the steps, the held-out losses as (steps done, loss), and the rows that were left out on the way.

    `batches` counts those that were drawn, which are more than the steps where all rows of a batch were left out.
    `seconds` are those of earlier processes.
    """

    batches: int = 0
    history: list[SftStep] = field(default_factory=list)
    heldout: list[tuple[int, SftEvaluation]] = field(default_factory=list)
    lost: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps that were taken."""
        return len(self.history)

    def values(self, seconds: float) -> dict[str, Any]:
        """Return plain values, with the seconds of all processes so far."""
        return {
            "steps": self.steps,
            "batches": self.batches,
            "seconds": round(seconds, 1),
            "history": [asdict(step) for step in self.history],
            "heldout": [{"steps": done, **asdict(evaluation)} for done, evaluation in self.heldout],
            "lost": [{**asdict(row), "reason": row.reason.value} for row in self.lost],
        }

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return what `values` made. Raises UserFault for anything else."""
        from genevolve_ray.learning.sft import SftEvaluation, SftStep

        try:
            lost = [{**row, "reason": RejectionReason(row["reason"])} for row in values["lost"]]
            heldout = [dict(each) for each in values["heldout"]]
            return cls(
                batches=int(values["batches"]),
                history=[SftStep(**step) for step in values["history"]],
                heldout=[(int(each.pop("steps")), SftEvaluation(**each)) for each in heldout],
                lost=[Rejection(**row) for row in lost],
                seconds=float(values["seconds"]),
            )
        except MISREAD as error:
            reason = " ".join(str(error).split())
            raise UserFault(
                f"progress.json of a training cannot be read ({reason}): remove it to start again"
            ) from error
