"""Self-contained HTML file about a run: it loads nothing, so it can be sent, archived and opened offline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from genevolve_ray.records.differences import value_at
from genevolve_ray.records.secrets import masked
from genevolve_ray.viewer.alarms import alarm_list
from genevolve_ray.viewer.data import ReportData, ReportPair, load_report_data, pairs, scored
from genevolve_ray.viewer.figures import figures, heldout_figure, number
from genevolve_ray.viewer.gallery import Pictures, attempt, breakdown, choose
from genevolve_ray.viewer.headlines import tiles
from genevolve_ray.viewer.lessons import lesson_cards, redraw_cards
from genevolve_ray.viewer.page import render_page, write_page

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore

MAX_ATTEMPTS = 6
"""Training trajectories that the page shows in full."""


def write_report(source: RunStore | ReportData | Path | str, out: Path) -> Path:
    """Write the report of a run store, of a run's folder, or of loaded data, and return its path.

    The file appears complete or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    data = source if isinstance(source, ReportData) else load_report_data(source)
    beside = data.folder is not None and out.parent.resolve() == data.folder.resolve()
    return write_page(render_report(data, "images" if beside else ""), out)


def render_report(data: ReportData, images: str = "") -> str:
    """Return the page. All text of trajectories is untrusted: it is escaped, and the page runs only its own scripts.

    Args:
        data: contents of the page.
        images: the run's folder of pictures relative to the page, which then links their files; "" for no links.
    """
    return render_page("report.html.j2", _context(data, images))


def _context(data: ReportData, images: str) -> dict[str, Any]:
    pictures = Pictures(data.load_image, images)
    compared = pairs(data)
    cards = [_card(chosen.pair, chosen.why, pictures) for chosen in choose(compared)]
    attempts = [attempt(t, pictures) for t in data.training if t.turns][:MAX_ATTEMPTS]
    lessons = lesson_cards(data.experience, pictures) if data.experience else []
    return {
        "what": "run",
        "title": data.name,
        "subtitle": _subtitle(data),
        "tiles": tiles(data),
        "alarms": alarm_list(data.metrics, data.alarm_texts),
        "figures": figures(data.metrics, data.validations, data.parity_limit),
        "heldout": heldout_figure([(p.request.id, p.before.score, p.after.score) for p in compared]),
        "parts": _parts(data.summary),
        "breakdown": breakdown(compared),
        "compared": len(compared),
        "cards": cards,
        "lessons": lessons,
        "taught": data.experience,
        "redraws": redraw_cards(data.redraws, pictures),
        "attempts": attempts,
        "thumbs": {**pictures.thumbs(), **pictures.full()},
        "rejected": _rejected(data.rejected),
        "provenance": provenance(data),
        "config": yaml.safe_dump(_plain(masked(data.config)), sort_keys=False, allow_unicode=True)
        if data.config
        else "",
    }


def _rejected(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """Return (reason, rows, first example) of rows that were left out, the most frequent reason first."""
    counts = Counter(str(row.get("reason", "")) for row in rows)
    first = {str(row.get("reason", "")): row for row in reversed(rows)}
    told = {reason: f"{row.get('source')}:{row.get('row')} {row.get('detail')}" for reason, row in first.items()}
    return [(reason, count, told[reason]) for reason, count in counts.most_common()]


def _card(pair: ReportPair, why: str, pictures: Pictures) -> dict[str, Any]:
    return {
        "pair": pair,
        "why": why,
        "truth": pictures.get(pair.request.truth_image),
        "before": attempt(pair.before, pictures),
        "after": attempt(pair.after, pictures),
    }


def provenance(data: ReportData) -> list[tuple[str, str]]:
    """Return (name, value) of the origin of a run and its trajectories. Nested run information is flattened by dots."""
    rows = [(key, str(value)) for key, value in _flat(data.run)]
    everything = [*data.before, *data.after, *data.training]
    for field in ("profile", "engine", "renderer", "judge"):
        names = sorted({str(getattr(t.provenance, field)) for t in everything} - {""})
        rows.append((field, ", ".join(names)))
    formulas = sorted({t.verdict.formula.value for t in everything if t.verdict})
    rows.append(("score formula", ", ".join(formulas)))
    for label, side in (("before", data.before), ("after", data.after)):
        versions = sorted({v for t in side for v in t.ledger.versions if v >= 0})
        rows.append((f"policy versions {label}", ", ".join(map(str, versions))))
        unscored = sum(not scored(t) for t in side)
        rows.append((f"attempts without a reward {label}", f"{unscored} of {len(side)}" if unscored else ""))
    return [(name, value) for name, value in rows if value]


def _subtitle(data: ReportData) -> list[str]:
    steps = f"{len(data.metrics):,} steps" if data.metrics else ""
    model = str(value_at(data.config, "policy.model") or "")
    times = [str(data.run[k]) for k in ("created", "finished") if data.run.get(k)]
    return [item for item in (str(data.run.get("preset", "")), steps, model, " to ".join(times)) if item]


def _parts(summary: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    sides = [summary.get(f"heldout_parts_{side}") for side in ("sft", "final")]
    before, after = (side if isinstance(side, Mapping) else {} for side in sides)
    names = [name for name in dict.fromkeys([*before, *after]) if number(before.get(name, after.get(name))) is not None]
    return [(str(name), number(before.get(name)), number(after.get(name))) for name in names]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{name}."))
        elif value not in (None, "", [], ()):
            rows.append((name, value))
    return rows


def _plain(value: Any) -> Any:
    """Return a value that YAML can write safely: mappings, lists, and plain scalars."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or type(value) in (str, int, float, bool) else str(value)
