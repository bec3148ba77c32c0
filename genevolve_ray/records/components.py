"""Open verdicts: any named components, with their range, reasons and artefacts. KScore and sufficiency are one shape."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.verdict import WEIGHTS, ScoreFormula, Verdict, kscore


class ComponentRange(Record):
    """Declare the range of a component, before any verdict exists."""

    low: float = Field(default=0.0, allow_inf_nan=False)
    high: float = Field(default=1.0, allow_inf_nan=False)
    sometimes: bool = False
    """True where a judgment that succeeded may lack it: a text score has no value without a required text."""

    @model_validator(mode="after")
    def _ordered(self) -> ComponentRange:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


class Artefact(Record):
    """Point to evidence: a picture, a box in the judged picture, or both."""

    kind: str
    """What it is, such as `heatmap` or `text`."""
    label: str = ""
    image: ImageRef | None = None
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom as fractions of the picture."""


class Component(Record):
    """Hold one named score of a judge with its range."""

    value: float = Field(allow_inf_nan=False)
    low: float = Field(default=0.0, allow_inf_nan=False)
    high: float = Field(default=1.0, allow_inf_nan=False)
    rationale: str = ""
    artefacts: tuple[Artefact, ...] = ()

    @model_validator(mode="after")
    def _inside(self) -> Component:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"value={self.value:g} is outside [{self.low:g}, {self.high:g}]")
        return self

    @property
    def scaled(self) -> float:
        """The value on the scale from 0 (worst) to 1 (best); a component with that range keeps its value."""
        return (self.value - self.low) / (self.high - self.low)


def component_at(scale: ComponentRange, share: float) -> Component:
    """Return a component of a declared range at `share` of the way from its low end (0) to its high end (1)."""
    value = scale.low + share * (scale.high - scale.low)
    return Component(value=min(max(value, scale.low), scale.high), low=scale.low, high=scale.high)


class OpenVerdict(Record):
    """Hold the components that a judge measured, and the judge's identity. What it did not measure is absent."""

    components: dict[str, Component]
    judge: str
    rationale: str = ""
    flags: tuple[str, ...] = ()
    """Anomalies of the judgment, as `code` or `code:component`."""


AnyVerdict = Verdict | OpenVerdict
"""What a judge may return."""
KSCORE_SCALES: Mapping[str, ComponentRange] = {
    **{name: ComponentRange(sometimes=name == "text_accuracy") for name in WEIGHTS},
    "kscore": ComponentRange(),
    "sufficiency": ComponentRange(),
}
"""The components of a KScore verdict. `text_accuracy` is absent where the request contains no text."""


def components_of(verdict: AnyVerdict, formula: ScoreFormula | None = None) -> dict[str, Component]:
    """Return the components of a verdict by name; `formula` is that of the KScore, by default the verdict's own."""
    if isinstance(verdict, OpenVerdict):
        return verdict.components
    grades = {name: getattr(verdict.image, name) for name in WEIGHTS}
    grades["kscore"] = kscore(verdict.image, formula or verdict.formula)
    grades["sufficiency"] = verdict.text.score if verdict.examined else None
    reasons = {"kscore": verdict.rationale, "sufficiency": verdict.text_rationale}
    return {
        name: Component(value=value, rationale=reasons.get(name, ""))
        for name, value in grades.items()
        if value is not None
    }


def graded(verdict: AnyVerdict) -> Verdict:
    """Return a verdict with the four grades of a KScore. Raises UserFault for one without them."""
    if isinstance(verdict, OpenVerdict):
        named = ", ".join(verdict.components)
        raise UserFault(f"{verdict.judge} gives no KScore, only an open verdict of {named}: name another judge")
    return verdict


def opened(verdict: AnyVerdict, formula: ScoreFormula | None = None) -> OpenVerdict:
    """Return a verdict in the open form, with the components that `components_of` returns for `formula`."""
    if isinstance(verdict, OpenVerdict):
        return verdict
    return OpenVerdict(components=components_of(verdict, formula), judge=verdict.judge, flags=verdict.flags)
