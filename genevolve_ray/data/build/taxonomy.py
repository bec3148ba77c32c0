"""Taxonomies of requests: the values of the fields of a recipe, their numbers, and the combinations that are allowed.

A taxonomy has six axes: type of request, family, factual gap, visual anchor, dominant requirement and difficulty. The
values of one axis may depend on those of one earlier axis (`given`, and `only` on each value). So dependencies form
trees, and whether the numbers of the values can all be met is decided exactly, one pair of axes at a time
(`quotas.allot`). With free dependencies between three axes or more the question is NP-hard (tables of three dimensions
with zeros that are given; Irving and Jerrum 1994).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field, ValidationError, model_validator

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config
from genevolve_ray.records.request import EvalType
from genevolve_ray.records.strict_text import read_yaml
from genevolve_ray.records.suggestions import meant

FOLDER = Path(__file__).parent / "taxonomies"
"""The taxonomies of the package, one YAML file each."""
AXES = ("eval_type", "family", "gap", "anchor", "requirement", "difficulty")
"""The axes of a taxonomy; each may depend on one before it."""
_TOLERANCE = 1e-6
"""Greatest distance of a sum of shares from 1."""


class TaxonomyError(UserFault, ValueError):
    """Report a taxonomy that cannot be used; the message names the values."""


class AxisValue(Config):
    """Describe one value of an axis."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name, as recipes hold it."""
    label: str = ""
    """A few words for a model or a reader; by default the name."""
    description: str = ""
    """The meaning, as the writer of prompts receives it."""
    count: int | None = Field(default=None, ge=0)
    """Rows with this value among as many as the counts of the axis sum to."""
    share: float | None = Field(default=None, ge=0, le=1)
    """Share of the rows, instead of a count. An axis without counts and shares is spread evenly."""
    only: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Values of the axis `given` with which this one may occur; by default all. A value of the axis that `given` itself
    depends on stands for all values that may occur with it."""

    @property
    def words(self) -> str:
        """The label, or the name in words."""
        return self.label or self.name.replace("_", " ")


class FamilyValue(AxisValue):
    """Describe a family of tasks."""

    entity_kinds: tuple[str, ...] = ()
    """Kinds of entities that its prompts are about; by default any."""
    entities: int = Field(default=1, ge=0, le=8)
    """Entities of one prompt."""
    people: bool = False
    """Whether its prompts may name real persons."""


class GapValue(AxisValue):
    """Describe a kind of fact that a request leaves open, so that it must be found."""

    text_search: bool = True
    """Whether the fact needs a text search."""


class RequirementValue(AxisValue):
    """Describe a requirement on the picture."""

    beside: tuple[str, ...] | None = None
    """Requirements that may be secondary to this one; by default all others."""


class DifficultyValue(AxisValue):
    """Describe a level of difficulty."""

    secondary: int = Field(default=0, ge=0)
    """Secondary requirements of a recipe."""


V = TypeVar("V", bound=AxisValue)


class Axis(Config, Generic[V]):
    """Hold the values of one field of a recipe."""

    given: str = ""
    """The earlier axis on which the values depend; "" for none."""
    values: tuple[V, ...] = Field(min_length=1)
    """The values, in the order of reports."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values."""
        return tuple(value.name for value in self.values)

    @model_validator(mode="after")
    def _consistent(self) -> Axis[V]:
        if twice := _repeated(self.names):
            raise ValueError(f"value {twice!r} is given twice")
        for name in ("count", "share"):
            without = [value.name for value in self.values if getattr(value, name) is None]
            if without and len(without) < len(self.values):
                raise ValueError(f"every value of an axis has a {name}, or none has: {without[0]!r} has none")
        shares = [value.share for value in self.values if value.share is not None]
        if shares and self.values[0].count is not None:
            raise ValueError(f"value {self.values[0].name!r} has a count and a share")
        if shares and abs(sum(shares) - 1) > _TOLERANCE:
            raise ValueError(f"the shares of {', '.join(self.names)} sum to {sum(shares):g}, not to 1")
        if not self.given and (bound := next((v for v in self.values if v.only is not None), None)):
            raise ValueError(f"value {bound.name!r} has `only`, but the axis names no `given`")
        return self

    def total(self) -> int | None:
        """Return the sum of the counts, None for an axis without counts. Zeros alone sum to no number of rows."""
        counts = [value.count for value in self.values if value.count is not None]
        return sum(counts) if counts else None

    def weights(self) -> list[Fraction] | None:
        """Return a weight for each value, from its count or share; None for an axis that is spread evenly."""
        if all(value.count is not None for value in self.values):
            return [Fraction(value.count or 0) for value in self.values]
        if all(value.share is not None for value in self.values):
            return [Fraction(value.share or 0).limit_denominator(10**9) for value in self.values]
        return None


class Taxonomy(Config):
    """Define what recipes are drawn from. The first axis has the two types of requests."""

    name: str = Field(min_length=1)
    """Name of the taxonomy; part of every id."""
    source: str = ""
    """Origin of the values and numbers."""
    image_search: bool = True
    """Whether every request needs an image search."""
    eval_type: Axis[AxisValue]
    """Types of requests: `Knowledge-Anchored` and `Quality-Anchored`."""
    family: Axis[FamilyValue]
    """Families of tasks; each belongs to types of requests."""
    gap: Axis[GapValue]
    """Factual gaps."""
    anchor: Axis[AxisValue]
    """Visual anchors: what a reference picture must show."""
    requirement: Axis[RequirementValue]
    """Dominant requirements."""
    difficulty: Axis[DifficultyValue]
    """Levels of difficulty."""

    @model_validator(mode="after")
    def _joined(self) -> Taxonomy:
        for place, name in enumerate(AXES):
            self._check_given(name, self.axis(name), AXES[:place])
        known = {kind.value for kind in EvalType}
        if unknown := sorted(set(self.eval_type.names) - known):
            raise ValueError(f"eval_type {unknown[0]!r} is unknown: {', '.join(sorted(known))}")
        totals = {name: total for name in AXES if (total := self.axis(name).total()) is not None}
        if len(set(totals.values())) > 1:
            stated = ", ".join(f"{name} {total}" for name, total in totals.items())
            raise ValueError(f"the counts of the axes sum to different numbers of rows: {stated}")
        if 0 in totals.values():
            raise ValueError(f"the counts of {', '.join(totals)} are all 0")
        self._check_secondary()
        return self

    def _check_given(self, name: str, axis: Axis[AxisValue], earlier: Sequence[str]) -> None:
        if not axis.given:
            return
        if axis.given not in earlier:
            raise ValueError(f"{name}: given {axis.given!r} is none of the axes before it: {', '.join(earlier)}")
        groups = self._groups(axis.given)
        for value in axis.values:
            for parent in value.only or ():
                if parent not in groups:
                    raise ValueError(
                        f"{name} {value.name!r}: only names {parent!r}, which is no {axis.given}{meant(parent, groups)}"
                    )
        for parent, row in zip(self.axis(axis.given).names, self.allowed(name), strict=True):
            if not any(row):
                raise ValueError(f"{axis.given} {parent!r} allows no {name}")

    def _check_secondary(self) -> None:
        names = self.requirement.names
        most = max(self.difficulty.values, key=lambda value: value.secondary)
        for value in self.requirement.values:
            for other in value.beside or ():
                if other not in names or other == value.name:
                    raise ValueError(f"requirement {value.name!r}: beside names {other!r}{meant(other, names)}")
            if len(self.beside(value.name)) < most.secondary:
                raise ValueError(
                    f"difficulty {most.name!r} has {most.secondary} secondary requirements, but {value.name!r} allows "
                    f"{len(self.beside(value.name))}"
                )

    @property
    def rows(self) -> int | None:
        """Rows for which the counts are meant, None where no axis has counts."""
        return next((total for name in AXES if (total := self.axis(name).total()) is not None), None)

    def axis(self, name: str) -> Axis[AxisValue]:
        """Return an axis by its name."""
        found: Axis[AxisValue] = getattr(self, name)
        return found

    def allowed(self, name: str) -> list[list[bool]]:
        """Return bool[parents][values]: which values of an axis may occur with each value of the axis it depends on.

        An axis that depends on none has one row.
        """
        axis = self.axis(name)
        if not axis.given:
            return [[True] * len(axis.values)]
        groups, parents = self._groups(axis.given), self.axis(axis.given).names
        bounds = [set(parents) if v.only is None else set().union(*(groups[n] for n in v.only)) for v in axis.values]
        return [[parent in bound for bound in bounds] for parent in parents]

    def _groups(self, name: str) -> dict[str, set[str]]:
        """Return the values of an axis that a name in `only` stands for: its own, and those of the axis above it."""
        axis, groups = self.axis(name), {}
        if axis.given:
            for parent, row in zip(self.axis(axis.given).names, self.allowed(name), strict=True):
                groups[parent] = {value for value, may in zip(axis.names, row, strict=True) if may}
        return groups | {value: {value} for value in axis.names}

    def beside(self, requirement: str) -> tuple[str, ...]:
        """Return the requirements that may be secondary to a dominant one."""
        found = named(self.requirement.values)[requirement].beside
        return tuple(n for n in self.requirement.names if n != requirement) if found is None else found


def named(values: Sequence[V]) -> dict[str, V]:
    """Return values by their names."""
    return {value.name: value for value in values}


def load_taxonomy(source: str | Path) -> Taxonomy:
    """Return a taxonomy: the name of one of the package, or the path of a YAML file.

    Raises:
        TaxonomyError: naming the source and the values that are wrong.
        YamlFault: for a text that is no YAML.
        OSError: when the file cannot be read.
    """
    own = FOLDER / f"{source}.yaml"
    path = own if own.is_file() and "/" not in str(source) else Path(source)
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise TaxonomyError(f"taxonomy {str(source)!r} is neither a file nor one of {', '.join(known)}")
    return read_taxonomy(read_yaml(path), str(source))


def read_taxonomy(values: Mapping[str, object], source: str) -> Taxonomy:
    """Return a taxonomy of plain values. Raises TaxonomyError, in one line that begins with `source`."""
    try:
        return Taxonomy.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
        raise TaxonomyError(f"{source}: {'; '.join(faults[:5])}") from error


def _repeated(names: Sequence[str]) -> str:
    return next((name for place, name in enumerate(names) if name in names[:place]), "")
