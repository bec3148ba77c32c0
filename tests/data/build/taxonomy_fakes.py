"""Small and random taxonomies for the tests of the data pipeline."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from genevolve_ray.data.build.taxonomy import AXES, Taxonomy, read_taxonomy

TYPES = ("Knowledge-Anchored", "Quality-Anchored")


def plain(**axes: Any) -> dict[str, Any]:
    """Return the values of a small taxonomy: two values on each axis that is not given."""
    values: dict[str, Any] = {"name": "small", "eval_type": {"values": [{"name": name} for name in TYPES]}}
    for axis in AXES[1:]:
        values[axis] = {"values": [{"name": f"{axis}-{n}"} for n in range(2)]}
    return values | axes


def small(**axes: Any) -> Taxonomy:
    """Return a small taxonomy."""
    return read_taxonomy(plain(**axes), "small")


@st.composite
def taxonomies(draw: st.DrawFn, most: int = 4, bounds: bool = True) -> dict[str, Any]:
    """Draw the values of a taxonomy without counts: random sizes, and with `bounds` random dependencies."""
    values: dict[str, Any] = {"name": "drawn"}
    for place, axis in enumerate(AXES):
        size = len(TYPES) if axis == "eval_type" else draw(st.integers(1, most))
        names = TYPES if axis == "eval_type" else [f"{axis}-{n}" for n in range(size)]
        listed: list[dict[str, Any]] = [{"name": name} for name in names]
        values[axis] = {"values": listed}
        given = draw(st.sampled_from(["", *AXES[:place]])) if bounds else ""
        if given:
            values[axis]["given"] = given
            parents = [value["name"] for value in values[given]["values"]]
            for value in listed:
                value["only"] = draw(st.lists(st.sampled_from(parents), unique=True, min_size=1))
            for parent in parents:  # Each value above allows at least one.
                if not any(parent in value["only"] for value in listed):
                    draw(st.sampled_from(listed))["only"].append(parent)
    return values


def with_counts(values: dict[str, Any], rows: int, draw: st.DrawFn) -> dict[str, Any]:
    """Give each value of a drawn taxonomy the number of rows that it has in some valid assignment."""
    taxonomy = read_taxonomy(values, "drawn")
    assigned: dict[str, list[int]] = {}
    for axis in AXES:
        allowed, given = taxonomy.allowed(axis), taxonomy.axis(axis).given
        assigned[axis] = [
            draw(st.sampled_from([c for c, may in enumerate(allowed[assigned[given][row] if given else 0]) if may]))
            for row in range(rows)
        ]
        for place, value in enumerate(values[axis]["values"]):
            value["count"] = assigned[axis].count(place)
    return values
