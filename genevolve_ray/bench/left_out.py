"""Cases that an average leaves out, by reason: named on the console, in the summary and in the exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.aliases import flag
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.rejections import RejectionReport, RowFault
from genevolve_ray.records.published.results import RAW_PROMPT, EvaluatedRow

NO_ROW = "no result"
_REASON_CHARS = 160
_NAMED = 8
"""Cases that one line of the console names, and rejected rows that it lists again after the job."""


class LeftOut(Record):
    """Hold the cases without scores by reason, and the rows of the input that could not be used.

    `by_policy` are those among the cases for which the policy gave no program: a result, not a failure.
    """

    total: int
    cases: dict[str, tuple[str, ...]] = {}
    by_policy: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """True when something is left out for another reason than the policy's own result."""
        return bool(self.rejected) or any(set(ids) - set(self.by_policy) for ids in self.cases.values())

    def lines(self) -> list[str]:
        """Return what is left out as lines for the console: counts, reasons, and the first cases of each."""
        count = sum(map(len, self.cases.values()))
        found = [f"left out of the scores: {count} of {self.total} cases"] if count else []
        for reason, ids in self.cases.items():
            more = f", and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            found.append(f"  {len(ids)}: {reason} ({', '.join(ids[:_NAMED])}{more})")
        found += [f"rejected rows of the input: {len(self.rejected)}"] if self.rejected else []
        found += [f"  {line}" for line in self.rejected[:_NAMED]]
        return [*found, *(["  ..."] if len(self.rejected) > _NAMED else [])]


def left_out(
    rows: Sequence[EvaluatedRow], expected: Sequence[ResultRow] | None = None, report: RejectionReport | None = None
) -> LeftOut:
    """Return what the averages of evaluated rows leave out.

    Args:
        rows: the evaluated rows.
        expected: the cases of the benchmark; by default `rows`.
        report: the rejected rows of the input.
    """
    found: Mapping[str, EvaluatedRow] = {row.id: row for row in rows}
    cases: dict[str, list[str]] = {}
    by_policy = []
    for case in rows if expected is None else expected:
        row = found.get(case.id)
        reason = _reason(row)
        if reason:
            cases.setdefault(reason, []).append(case.case_id)
        if row is not None and _by_policy(row):
            by_policy.append(case.case_id)
    rejected = () if report is None else tuple(str(one) for why in report.rejected for one in report.examples(why))
    return LeftOut(
        total=len(rows if expected is None else expected),
        cases={reason: tuple(ids) for reason, ids in cases.items()},
        by_policy=tuple(by_policy),
        rejected=rejected,
    )


def _reason(row: EvaluatedRow | None) -> str:
    """Return why a case has no scores, "" where it has."""
    if row is None:
        return NO_ROW
    if row.scores is not None:
        return ""
    told = RAW_PROMPT if row.status == RAW_PROMPT else row.failure
    return " ".join(told.split()).removeprefix("error: ")[:_REASON_CHARS] or "not evaluated"


def _by_policy(row: EvaluatedRow) -> bool:
    """Return whether a row has no picture because the policy left no program, and its renderer said so."""
    if row.scores is not None or row.is_direct or row.has_program:
        return False
    try:
        return flag(row.values.get("success"), "success") is False
    except RowFault:
        return False
