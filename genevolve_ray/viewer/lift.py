"""Page of lifts: what each kind of guide adds in the prompt of a policy, with intervals over requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.viewer.figures import number
from genevolve_ray.viewer.gaps import GapRow, gap_rows, gap_tile, mapping_of
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import fixed, render_page, write_page

ABOUT = {
    "own": "the request's own bundle",
    "remembered": "the nearest bundle of another request",
    "merged": "the majority of the nearest bundles of other requests",
    "placebo": "neutral words of the same length",
    "constant": "one bundle for every request",
}
"""What a kind of guide is."""
_MINUS = "_minus_"


@dataclass(frozen=True)
class PolicyLifts:
    """Hold what guides add to one policy.

    Attributes:
        name: the policy: a step of the run, or its start.
        reward: its mean reward without a guide, None where no request has one.
        requests: number of requests with a reward.
        lifts: gain of each kind of guide.
        differences: kinds compared on the requests that have both.
        left_out: (kind, samples, reason) of samples without a reward.
    """

    name: str
    reward: float | None
    requests: int
    lifts: list[GapRow]
    differences: list[GapRow]
    left_out: list[tuple[str, int, str]]


def write_lifts(result: Mapping[str, Any], out: Path) -> Path:
    """Write the page of the result of `genevolve experience lift` and return its path. Raises OSError."""
    return write_page(render_lifts(result), out)


def render_lifts(result: Mapping[str, Any]) -> str:
    """Return the page; missing values are left out, and every text is escaped."""
    return render_page("lift.html.j2", {"what": "lifts of guides", "thumbs": {}, **lift_context(result)})


def lift_context(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page shows of lifts: title, subtitle, tiles, and the policies with their rows."""
    policies = [_policy(str(name), mapping_of(found)) for name, found in mapping_of(result.get("policies")).items()]
    return {
        "title": Path(str(result.get("run") or "run")).name,
        "subtitle": [f"step {step:.0f}" if (step := number(result.get("step"))) is not None else ""],
        "tiles": _tiles(policies),
        "policies": policies,
        "about": ABOUT,
    }


def _policy(name: str, found: Mapping[Any, Any]) -> PolicyLifts:
    lifts = {str(kind): mapping_of(gain) for kind, gain in mapping_of(found.get("lift")).items() if gain is not None}
    gaps = {
        " − ".join(str(key).split(_MINUS, 1)): mapping_of(gap)
        for key, gap in mapping_of(found.get("differences")).items()
        if gap is not None
    }
    left_out = [
        (str(kind), int(number(count) or 0), str(reason).replace("_", " "))
        for kind, reasons in mapping_of(found.get("left_out")).items()
        for reason, count in mapping_of(reasons).items()
    ]
    return PolicyLifts(
        name=name,
        reward=number(found.get("reward")),
        requests=int(number(found.get("requests")) or 0),
        lifts=gap_rows({kind: (gain, ()) for kind, gain in lifts.items()}),
        differences=gap_rows({kinds: (gap, ()) for kinds, gap in gaps.items()}),
        left_out=left_out,
    )


def _tiles(policies: list[PolicyLifts]) -> list[Tile]:
    tiles = []
    for policy in policies:
        if policy.reward is not None:
            note = f"{policy.name}, without a guide"
            tiles.append(Tile("Reward", fixed(policy.reward), note=note))
        known = (row for row in policy.lifts[:1] if row.mean is not None)
        tiles += [gap_tile(row, f"Lift of {row.name}, {policy.name}") for row in known]
    return tiles
