"""Page of the JSON file that `genevolve bench atlas` writes: rewards of one policy on held-out requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.viewer.figures import number, score_histogram
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import fixed, percent, render_page, write_page

_MEASURES = ("right_reference_fraction", "right_reference_greedy", "chance", "tool_calls_mean", "infra_failures")
_FACTS = ("policy", "engine", "score_formula", "experience", "images", "world_seed", "requests", "package")


def write_suite(result: Mapping[str, Any], out: Path, name: str) -> Path:
    """Write the page of a suite's result and return its path. Raises OSError when it cannot be written."""
    return write_page(render_suite(result, name), out)


def render_suite(result: Mapping[str, Any], name: str) -> str:
    """Return the page; missing values are left out, and every text is escaped."""
    return render_page("results.html.j2", {"what": "suite result", "thumbs": {}, **suite_context(result, name)})


def suite_context(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a page shows of a suite's result: tiles, distribution, measures, and what has no reward."""
    rewards = result.get("rewards")
    listed = rewards if isinstance(rewards, Mapping) else {}
    scores = [v for value in listed.values() if (v := number(value)) is not None]
    lost = [str(key) for key, value in listed.items() if number(value) is None]
    parts = result.get("reward_parts")
    measures = {**(parts if isinstance(parts, Mapping) else {}), **{key: result.get(key) for key in _MEASURES}}
    return {
        "title": name,
        "subtitle": [str(result[key]) for key in ("policy", "engine") if result.get(key)],
        "tiles": _tiles(result),
        "histogram": score_histogram(scores),
        "splits": [],
        "ends": None,
        "components": [],
        "measures": [
            (str(key).replace("_", " "), v) for key, value in measures.items() if (v := number(value)) is not None
        ],
        "cards": [],
        "failures": [("no reward, because a service failed", len(lost), ", ".join(lost[:8]))] if lost else [],
        "rejected": [],
        "facts": [(key.replace("_", " "), str(result[key])) for key in _FACTS if result.get(key) not in (None, "")],
    }


def _tiles(result: Mapping[str, Any]) -> list[Tile]:
    mean, greedy, valid = (number(result.get(key)) for key in ("reward_mean", "reward_greedy", "valid_fraction"))
    requests = number(result.get("requests"))
    note = f"sampled, {requests:,.0f} requests" if requests is not None else "sampled"
    tiles = [Tile("Reward", fixed(mean), note=note)] if mean is not None else []
    tiles += [Tile("Reward, greedy", fixed(greedy))] if greedy is not None else []
    return [*tiles, *([Tile("Valid programs", percent(valid))] if valid is not None else [])]
