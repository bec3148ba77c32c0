"""One verdict from those of several judges: components by name, or the grades of a KScore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.records.components import (
    AnyVerdict,
    Component,
    ComponentRange,
    OpenVerdict,
    components_of,
    graded,
)
from genevolve_ray.records.verdict import (
    BINS,
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    WEIGHTS,
    ImageScores,
    ScoreFormula,
    SufficiencyBin,
    Verdict,
    kscore,
)

Combination = Literal["mean", "median"]
AGREEMENT = "agreement"
"""The component that tells how far the members agree."""
_RATIONALE_CHARS = 2000
_UNMEASURED = (UNEXAMINED, EXAMINATION_FAILED)


@dataclass(frozen=True)
class Merging:
    """Describe how verdicts are merged.

    Attributes:
        judge: identity of the judge that gives the merged verdict.
        weights: weight of each member in a mean.
        combine: `mean`, or `median` (of an even number the mean of the middle two), which has no weights.
        scales: the components of the open form with their ranges, without `agreement`.
        agreement: the components whose agreement counts; none: it is not measured.
    """

    judge: str
    weights: Mapping[str, float]
    combine: Combination
    scales: Mapping[str, ComponentRange] = field(default_factory=dict)
    agreement: Sequence[str] = ()

    def value(self, values: Mapping[str, float]) -> float:
        """Return the mean or median of values by member, never outside of them."""
        if self.combine == "median":
            return median(values.values())
        total = sum(self.weights[name] for name in values)
        mean = sum(self.weights[name] / total * value for name, value in values.items())
        return min(max(mean, min(values.values())), max(values.values()))


def merged_open(verdicts: Mapping[str, AnyVerdict], merging: Merging) -> OpenVerdict:
    """Return the components of verdicts by member, each merged over the members that measured it.

    Raises:
        InfraFailure: when a member gives a component that it did not declare, or with another range.
    """
    given: dict[str, dict[str, Component]] = {}
    for member, verdict in verdicts.items():
        for name, component in components_of(verdict).items():
            scale = merging.scales.get(name)
            if scale is None or (scale.low, scale.high) != (component.low, component.high):
                bounds = f"[{component.low:g}, {component.high:g}]"
                raise InfraFailure(f"{merging.judge}: {member} gives {name} in {bounds}, which it did not declare")
            given.setdefault(name, {})[member] = component
    found = {name: _merged(given[name], merging) for name in merging.scales if name in given}
    apart = [1 - _spread(given[name]) for name in merging.agreement if len(given.get(name, ())) > 1]
    if apart:
        found[AGREEMENT] = Component(value=min(max(sum(apart) / len(apart), 0.0), 1.0))
    unmeasured = () if "sufficiency" in found else _UNMEASURED
    return OpenVerdict(components=found, judge=merging.judge, flags=_flags(verdicts, unmeasured))


def merged_kscore(verdicts: Mapping[str, AnyVerdict], merging: Merging) -> Verdict:
    """Return a verdict with the merged grades of KScore verdicts by member.

    The request has a text where at least half of the members say so, and then their grades of it count. The sufficiency is
    one of five grades, the one that is nearest to the merged one (of two, the lower), with the flag `snapped:sufficiency`.

    Raises:
        UserFault: when a member gives no KScore, or two compute it by different formulas.
    """
    members = {member: graded(verdict) for member, verdict in verdicts.items()}
    formula = _common_formula(members)
    flags = list(_flags(verdicts))
    grades: dict[str, float | None] = {}
    for name in WEIGHTS:
        values = {m: grade for m, verdict in members.items() if (grade := getattr(verdict.image, name)) is not None}
        grades[name] = merging.value(values) if 2 * len(values) >= len(members) else None
        if 0 < len(values) < len(members):
            flags.append(f"split:{name}")
    examined = {member: verdict for member, verdict in members.items() if verdict.examined}
    text = NOT_EXAMINED if not examined else _nearest_bin(examined, merging, flags)
    if not examined:
        flags += [flag for flag in _UNMEASURED if any(flag in verdict.flags for verdict in members.values())]
    scores = {member: kscore(verdict.image, formula) for member, verdict in members.items()}
    return Verdict(
        image=ImageScores.model_validate(grades),
        text=text,
        rationale=_told({m: (scores[m], verdict.rationale) for m, verdict in members.items()}),
        text_rationale=_told({m: (verdict.text.score, verdict.text_rationale) for m, verdict in examined.items()}),
        judge=merging.judge,
        formula=formula,
        flags=tuple(flags),
    )


def _common_formula(members: Mapping[str, Verdict]) -> ScoreFormula:
    formulas = {verdict.formula for verdict in members.values()}
    if len(formulas) > 1:
        told = ", ".join(f"{verdict.formula.value} of {member}" for member, verdict in members.items())
        raise UserFault(f"the members compute their KScores by different formulas: {told}; set one `formula`")
    return formulas.pop()


def _nearest_bin(examined: Mapping[str, Verdict], merging: Merging, flags: list[str]) -> SufficiencyBin:
    score = merging.value({member: verdict.text.score for member, verdict in examined.items()})
    nearest = min(BINS, key=lambda value: (abs(value - score), value))
    if abs(nearest - score) > 1e-9:
        flags.append("snapped:sufficiency")
    return SufficiencyBin(score=nearest)


def _merged(given: Mapping[str, Component], merging: Merging) -> Component:
    """Return one component of several members, with the artefacts of all."""
    one = next(iter(given.values()))
    return Component(
        value=merging.value({member: component.value for member, component in given.items()}),
        low=one.low,
        high=one.high,
        rationale=_told({member: (component.value, component.rationale) for member, component in given.items()}),
        artefacts=tuple(artefact for component in given.values() for artefact in component.artefacts),
    )


def _spread(given: Mapping[str, Component]) -> float:
    """Return the difference of the greatest and the least of several members, on the scale from 0 to 1."""
    scaled = [component.scaled for component in given.values()]
    return max(scaled) - min(scaled)


def _told(reasons: Mapping[str, tuple[float, str]]) -> str:
    """Return what each member says, with its value, in equal shares of the room."""
    room = _RATIONALE_CHARS // max(1, len(reasons))
    told = (f"{member} {value:.3g}{f': {why}' if why else ''}" for member, (value, why) in reasons.items())
    return "; ".join(one[:room] for one in told)


def _flags(verdicts: Mapping[str, AnyVerdict], unmeasured: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the flags of all members, each once; of those about an examination that failed, only `unmeasured`."""
    every = dict.fromkeys(flag for verdict in verdicts.values() for flag in verdict.flags)
    return tuple(flag for flag in every if flag not in _UNMEASURED or flag in unmeasured)
