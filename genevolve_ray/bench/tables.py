"""Own results next to the published ones: for the terminal, as Markdown, and as a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jinja2 import Environment, select_autoescape
from rich.table import Table
from rich.text import Text

from genevolve_ray.bench.knowgen import POPULAR, SCIENCE, KnowGenSummary, knowgen_rows
from genevolve_ray.bench.published import KSCORE, WISE, PublishedKScore, PublishedWise
from genevolve_ray.bench.scoring import DIMENSIONS, MEASURES, SplitScores, Summary
from genevolve_ray.bench.wise import CATEGORIES, WiseSummary
from genevolve_ray.records.base import Record
from genevolve_ray.records.intervals import Interval
from genevolve_ray.records.published.aliases import type_of
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.request import EvalType

KNOWGEN_COLUMNS = ("faith.", "vis.", "text", "aesth.", "KnowGen", "science", "popular")
KSCORE_COLUMNS = ("faith.", "vis.", "text", "aesth.", "KScore", "know.", "qual.")
WISE_COLUMNS = (*CATEGORIES, "overall")
DASH = "–"


class ComparisonLine(Record):
    """Hold one line of a comparison; `note` states what a reader needs for its interpretation."""

    method: str
    generator: str = ""
    values: tuple[float | None, ...]
    interval: Interval | None = None
    origin: Literal["ours", "published"]
    note: str = ""


class Comparison(Record):
    """Hold lines under common columns; `main` is the column of the interval."""

    title: str
    columns: tuple[str, ...]
    main: int
    digits: int
    lines: tuple[ComparisonLine, ...]
    notes: tuple[str, ...] = ()


def compare_kscore(
    ours: Sequence[tuple[str, str, Summary]], published: Sequence[PublishedKScore] = KSCORE
) -> Comparison:
    """Return own summaries, each with its method and generator, next to the published table of GenEvolve-Bench.

    For rows that are not those of GenEvolve-Bench, `published` is empty, and the title states their number.

    Raises:
        ValueError: when the own summaries are not all under one formula.
    """
    formulas = sorted({summary.formula.value for _, _, summary in ours})
    if len(formulas) > 1:
        raise ValueError(f"one table has one formula, these have {', '.join(formulas)}")
    lines = [_published_line(row) for row in published] + [_our_line(*item) for item in ours]
    notes = [f"Published lines: {source}." for source in dict.fromkeys(row.source for row in published)]
    if published:
        notes.append("The published table fits the formula release-summary.")
    counts = sorted({summary.total_cases for _, _, summary in ours})
    told = " or ".join(f"{count} row{'s' if count != 1 else ''}" for count in counts)
    notes += [f"Our lines: {told}, formula {f}, 95% bootstrap interval over scored rows." for f in formulas]
    return Comparison(
        title=f"KScore on {'GenEvolve-Bench' if published or not told else told}",
        columns=KSCORE_COLUMNS,
        main=4,
        digits=4,
        lines=tuple(lines),
        notes=tuple(notes),
    )


def compare_wise(ours: Sequence[tuple[str, WiseSummary]], published: Sequence[PublishedWise] = WISE) -> Comparison:
    """Return own WISE summaries next to the published WiScores; only those of the legacy edition are comparable.

    Raises:
        ValueError: when the own summaries are of two editions, or verified ones would be listed with published legacy
            ones.
    """
    editions = sorted({summary.edition.value for _, summary in ours} | ({"legacy"} if published else set()))
    if len(editions) > 1:
        raise ValueError(f"one table has one edition of WISE, these are {', '.join(editions)}")
    lines = [
        ComparisonLine(
            method=row.method,
            values=(*(row.categories.get(name) for name in CATEGORIES), row.overall),
            origin="published",
        )
        for row in published
    ]
    for method, summary in ours:
        means = (*(summary.categories[name].mean for name in CATEGORIES), summary.overall)
        missing = len(summary.missing_ids)
        zero = (
            f"{missing} of {summary.total} missing; as zero {_show(summary.overall_missing_zero, 4)}" if missing else ""
        )
        lines.append(ComparisonLine(method=method, values=means, origin="ours", note=zero))
    notes = [f"Published lines: {source}." for source in dict.fromkeys(row.source for row in published)]
    edition = editions[0] if editions else "legacy"
    return Comparison(
        title=f"WISE ({edition})",
        columns=WISE_COLUMNS,
        main=len(CATEGORIES),
        digits=2,
        lines=tuple(lines),
        notes=tuple(notes),
    )


def _published_line(row: PublishedKScore) -> ComparisonLine:
    figures = (*(getattr(row, name) for name in MEASURES), row.knowledge, row.quality)
    return ComparisonLine(method=row.method, generator=row.generator, values=figures, origin="published")


def _our_line(method: str, generator: str, summary: Summary) -> ComparisonLine:
    splits = [_of_type(summary, kind) for kind in (EvalType.KNOWLEDGE, EvalType.QUALITY)]
    values = (*(getattr(summary.all, n) for n in MEASURES), *(split.overall if split else None for split in splits))
    told = []
    if summary.all.missing_or_failed:
        told.append(
            f"{len(summary.missing_case_ids)} missing and {len(summary.failed_case_ids)} failed of {summary.total_cases};"
            f" as zero {_show(summary.all.overall_missing_zero, 4)}"
        )
    if summary.off_grid:
        told.append(f"scores off 0, 0.5, 1: {sum(summary.off_grid.values())}")
    if "True" in summary.made_by.get("references_ignored", ()):
        told.append("generator ignored references")
    for kind in (EvalType.KNOWLEDGE, EvalType.QUALITY):
        if len(names := _names_of(summary, kind)) > 1:
            told.append(f"no figure for a type of several names: {', '.join(names)}")
    for maker in ("renderer", "judge", "profile"):
        if len(summary.made_by.get(maker, ())) > 1:
            told.append(f"rows of several {maker}s")
    return ComparisonLine(
        method=method,
        generator=generator,
        values=values,
        interval=summary.all.intervals.get("overall"),
        origin="ours",
        note="; ".join(told),
    )


def _of_type(summary: Summary, kind: EvalType) -> SplitScores | None:
    """Return the split of a type, under whichever name it is written; None for none, and where it has several names."""
    names = _names_of(summary, kind)
    return summary.by_eval_type[names[0]] if len(names) == 1 else None


def _names_of(summary: Summary, kind: EvalType) -> list[str]:
    """Return the names under which the rows state a type."""
    return [name for name in summary.by_eval_type if type_of(name) is kind]


def compare_knowgen(ours: Sequence[tuple[str, str, KnowGenSummary]]) -> Comparison:
    """Return own KnowGen summaries; every column before the groups is the mean of the two groups."""
    lines = []
    for method, generator, found in ours:
        figures = {row["summary_type"]: row["avg_scores"] for row in knowgen_rows(found)}
        missing = sum(split.missing_or_failed for split in found.groups.values())
        told = [f"{missing} missing or failed; as zero {_show(found.overall_missing_zero, 4)}"] if missing else []
        told += [f"{len(found.uncategorised)} rows of neither group"] if found.uncategorised else []
        lines.append(
            ComparisonLine(
                method=method,
                generator=generator,
                values=(*figures["overall_avg"].values(), *(figures[name]["overall"] for name in (SCIENCE, POPULAR))),
                origin="ours",
                note="; ".join(told),
            )
        )
    formulas = ", ".join(sorted({found.formula.value for _, _, found in ours}))
    counts = " or ".join(str(count) for count in sorted({found.rows.total_cases for _, _, found in ours}))
    return Comparison(
        title=f"KnowGen ({counts} rows)",
        columns=KNOWGEN_COLUMNS,
        main=len(DIMENSIONS),
        digits=4,
        lines=tuple(lines),
        notes=(f"KnowGen is the mean of its two groups, formula {formulas}.",),
    )


def rich_table(comparison: Comparison) -> Table:
    """Return a comparison for the terminal, its notes below; names are shown literally, without markup."""
    about = [
        f"{line.method}{f', {line.generator}' if line.generator else ''}: {line.note}"
        for line in comparison.lines
        if line.note
    ]
    caption = Text("\n".join([*about, *comparison.notes]))
    table = Table(title=Text(comparison.title), caption=caption, caption_justify="left", title_justify="left")
    for name in ("method", "generator"):
        table.add_column(name, overflow="fold")
    for name in comparison.columns:
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for line in comparison.lines:
        if before and line.origin != before:
            table.add_section()
        before = line.origin
        cells = [Text(cell) for cell in _cells(comparison, line)[:-1]]
        table.add_row(*cells, style="bold" if line.origin == "ours" else "")
    return table


def markdown_table(comparison: Comparison) -> str:
    """Return a comparison as Markdown, with its notes below."""
    names = ["method", "generator", *comparison.columns, "note"]
    rule = ["---", "---", *("---:" for _ in comparison.columns), "---"]
    rows = [names, rule]
    for line in comparison.lines:
        cells = [_escape(cell) for cell in _cells(comparison, line)]
        rows.append([f"**{cells[0]}**", *cells[1:]] if line.origin == "ours" else cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    notes = "".join(f"\n- {_escape(note)}" for note in comparison.notes)
    return f"## {_escape(comparison.title)}\n\n{table}\n{notes}\n"


def html_page(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as one page that loads nothing and runs no script; every text in it is escaped."""
    shown = [
        {
            "comparison": c,
            "rows": [(line, _cells(c, line)) for line in c.lines],
            "numbers": range(2, 2 + len(c.columns)),
        }
        for c in comparisons
    ]
    return _PAGE.render(shown=shown).encode(errors="replace").decode()


def write_tables(folder: Path, comparisons: Sequence[Comparison], stem: str = "comparison") -> tuple[Path, Path]:
    """Write comparisons as Markdown and as a page, each atomically, and return both paths."""
    text = "\n".join(markdown_table(c) for c in comparisons).encode(errors="replace")
    page = html_page(comparisons).encode()
    return write_bytes(folder / f"{stem}.md", text), write_bytes(folder / f"{stem}.html", page)


def _cells(comparison: Comparison, line: ComparisonLine) -> list[str]:
    values = [_show(value, comparison.digits) for value in line.values]
    if line.interval is not None:
        low, high = (_show(v, comparison.digits) for v in (line.interval.low, line.interval.high))
        values[comparison.main] += f" [{low}, {high}]"
    return [line.method, line.generator, *values, line.note]


def _show(value: float | None, digits: int) -> str:
    if value is None:
        return DASH
    return f"{value:.{digits}f}".removeprefix("0") if 0 <= value < 1 else f"{value:.{digits}f}"


def _escape(text: str) -> str:
    plain = " ".join(text.split())
    return "".join(f"\\{mark}" if mark in "\\`*_[]<>|#" else mark for mark in plain)


_PAGE = Environment(autoescape=select_autoescape(default=True, default_for_string=True)).from_string("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ shown[0].comparison.title if shown else "Results" }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.number { text-align: right; white-space: nowrap; }
.ours td { font-weight: 600; background: color-mix(in srgb, #3b82f6 12%, transparent); }
.notes { font-size: .85rem; opacity: .8; }
</style>
</head>
<body>
{% for item in shown %}
<h1>{{ item.comparison.title }}</h1>
<div><table>
<thead><tr><th>method</th><th>generator</th>
{%- for name in item.comparison.columns %}<th class="number">{{ name }}</th>{% endfor %}<th>note</th></tr></thead>
<tbody>
{% for line, cells in item.rows %}<tr class="{{ line.origin }}">
{%- for cell in cells %}<td{% if loop.index0 in item.numbers %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
<ul class="notes">{% for note in item.comparison.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endfor %}
</body>
</html>
""")
