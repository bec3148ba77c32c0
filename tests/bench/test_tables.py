"""The published figures, and tables that put ours beside them."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scoring_helpers import TYPES, raw_row, read, scored

from genevolve_ray.bench.knowgen import knowgen_rows, summarise_knowgen
from genevolve_ray.bench.published import KSCORE, WISE, is_genevolve_bench
from genevolve_ray.bench.scoring import Summary, summarise
from genevolve_ray.bench.tables import (
    Comparison,
    compare_knowgen,
    compare_kscore,
    compare_wise,
    html_page,
    markdown_table,
    rich_table,
    write_tables,
)
from genevolve_ray.bench.wise import WEIGHTS, Edition, LegacyScore, VerifiedScore, summarise_wise
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.verdict import ScoreFormula


def ours(formula: ScoreFormula = ScoreFormula.RELEASE_SUMMARY) -> Summary:
    rows = [
        raw_row(0, scored(1, 0.5, 1, 0.5)),
        raw_row(1, scored(1, 0, None, 0.3)),
        raw_row(2, None),
        raw_row(3, success=False),
    ]
    return summarise(read(rows), formula, samples=50)


def compared(method: str = "mine", generator: str = "flux") -> Comparison:
    return compare_kscore([(method, generator, ours())])


def text_of(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(rich_table(comparison))
    return console.file.getvalue()  # type: ignore[attr-defined]


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_the_published_overall_scores_are_the_weighted_sums_of_their_dimensions() -> None:
    assert len(KSCORE) == 14
    for row in KSCORE:
        total = 0.1 * row.faithfulness + 0.4 * row.visual_correctness + 0.4 * row.text_accuracy + 0.1 * row.aesthetics
        assert total == pytest.approx(row.overall, abs=1e-4), row


def test_the_published_overall_scores_are_the_means_of_their_splits() -> None:
    knowledge_cases, quality_cases = 335, 259
    cases = knowledge_cases + quality_cases
    assert cases == 594
    for row in KSCORE:
        total = (knowledge_cases * row.knowledge + quality_cases * row.quality) / cases
        assert total == pytest.approx(row.overall, abs=4e-4), row


def test_the_published_wiscore_is_the_weighted_sum_of_its_categories() -> None:
    best = WISE[-1]
    total = sum(w * v for w, v in zip(WEIGHTS[Edition.LEGACY], best.categories.values(), strict=True))
    assert total == pytest.approx(best.overall, abs=0.006)


def test_ours_stands_beside_the_published_lines() -> None:
    comparison = compared()
    assert [line.origin for line in comparison.lines] == ["published"] * 14 + ["ours"]
    mine = comparison.lines[-1]
    expected = (0.1 + 0.2 + 0.4 + 0.05 + 0.1 + 0.2 + 0.03) / 2
    assert mine.values == pytest.approx((1.0, 0.25, 0.75, 0.4, expected, 0.75, 0.33))
    assert mine.note == "1 missing and 1 failed of 4; as zero .2700; scores off 0, 0.5, 1: 1"
    assert any("release-summary" in note for note in comparison.notes)
    assert any("project page" in note for note in comparison.notes)


def test_the_terminal_shows_every_figure() -> None:
    shown = text_of(compared())
    assert "GenEvolve" in shown and ".5739" in shown and ".2525" in shown and "mine" in shown
    assert "formula release-summary" in shown
    assert "mine, flux: 1 missing and 1 failed of 4" in shown


def test_markup_in_a_name_is_shown_and_not_obeyed() -> None:
    assert "[red]x[/red]" in text_of(compared(method="[red]x[/red]"))
    assert r"a\|b\*" in markdown_table(compared(method="a|b*"))


def test_markdown_rows_have_as_many_cells_as_the_head() -> None:
    rows = [line for line in markdown_table(compared()).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 15
    assert {row.count("|") for row in rows} == {11}


def test_the_page_holds_every_line_and_loads_nothing() -> None:
    page = html_page([compared(method="<script>alert(1)</script>")])
    cells = Cells()
    cells.feed(page)
    assert len(cells.rows) == 1 + 15
    assert cells.rows[-1][:2] == ["<script>alert(1)</script>", "flux"]
    assert not {"script", "link", "img", "iframe"} & set(cells.tags)
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")


def test_tables_are_written_whole(tmp_path: Path) -> None:
    markdown, page = write_tables(tmp_path, [compared()])
    assert markdown.read_text().startswith("## KScore") and page.read_text().startswith("<!doctype html>")
    assert len(list(tmp_path.iterdir())) == 2


def test_one_table_has_one_formula() -> None:
    with pytest.raises(ValueError, match="paper, release-summary"):
        compare_kscore([("a", "", ours()), ("b", "", ours(ScoreFormula.PAPER))])


def bench_cases(**changes: Any) -> list[ResultRow]:
    """Return rows with the composition of GenEvolve-Bench."""
    return [
        ResultRow.read(
            {
                "id": number,
                "prompt": "x",
                "meta": {"eval_type": TYPES[number >= 335]},
                "category": "vehicle_transport" if number < 335 else "grounded_text_layout",
                "difficulty": "medium" if number < 219 else "hard",
            }
            | changes.get(f"row_{number}", {})
        )
        for number in range(changes.get("count", 594))
    ]


def test_only_the_rows_of_the_benchmark_stand_beside_the_published_ones() -> None:
    assert is_genevolve_bench(bench_cases())
    assert not is_genevolve_bench(bench_cases(count=593))
    assert not is_genevolve_bench(bench_cases(row_0={"difficulty": "hard"}))
    assert not is_genevolve_bench(bench_cases(row_0={"meta": {"eval_type": TYPES[1]}}))
    assert not is_genevolve_bench(bench_cases(row_0={"category": "anime"}))
    assert not is_genevolve_bench(bench_cases(row_0={"meta": {"eval_type": TYPES[0], "case_id": "5"}}))
    assert not is_genevolve_bench([])


def test_other_rows_are_counted_in_the_title() -> None:
    comparison = compare_kscore([("mine", "flux", ours())], ())
    assert comparison.title == "KScore on 4 rows" and not any("ublished" in note for note in comparison.notes)
    assert "Our lines: 4 rows, formula release-summary" in compared().notes[-1]


def test_knowgen_is_named_with_its_own_overall_score() -> None:
    rows = [
        raw_row(0, scored(1, 0.5, 1, 0.5), category="physics"),
        raw_row(1, scored(0, 0.5, None, 1), category="anime"),
    ]
    found = summarise_knowgen(read(rows), samples=0)
    comparison = compare_knowgen([("mine", "flux", found)])
    assert comparison.title == "KnowGen (2 rows)" and comparison.columns[4:] == ("KnowGen", "science", "popular")
    assert comparison.lines[0].values == (0.5, 0.5, 0.75, 0.75, 0.625, 0.75, 0.5)
    assert [(row["summary_type"], row["count"]) for row in knowgen_rows(found)] == [
        ("science_and_knowledge", 1),
        ("pop_culture_and_news", 1),
        ("overall_avg", 2),
    ]


def test_a_tier_fills_the_column_of_its_type() -> None:
    rows = [raw_row(n, scored(1, 1, n, 1), eval_type="", tier=tier) for n, tier in enumerate(("T1", "T3"))]
    line = compare_kscore([("a", "", summarise(read(rows), ScoreFormula.PAPER, samples=0))], ()).lines[0]
    assert line.values[-2:] == pytest.approx((0.6, 1.0))


def test_a_type_of_several_names_is_a_dash_and_says_so() -> None:
    rows = [raw_row(0, scored(1, 1, 1, 1)), raw_row(2, scored(0, 0, 0, 0), eval_type="", tier="T1")]
    line = compare_kscore([("a", "", summarise(read(rows), ScoreFormula.PAPER, samples=0))], ()).lines[0]
    assert line.values[5] is None
    assert "no figure for a type of several names: Knowledge-Anchored, T1" in line.note


def test_a_type_that_is_lacking_is_a_dash() -> None:
    row = raw_row(0, scored(1, 1, 1, 1), eval_type=TYPES[0])
    line = compare_kscore([("a", "", summarise(read([row]), ScoreFormula.PAPER, samples=0))], ()).lines[0]
    assert line.values[-2:] == (1.0, None)
    assert "| – |" in markdown_table(compare_kscore([("a", "", summarise(read([row]), ScoreFormula.PAPER, samples=0))]))


def test_wise_figures_stand_beside_legacy_ones_only() -> None:
    legacy = summarise_wise(
        [LegacyScore(prompt_id=1, consistency=2, realism=2, aesthetic_quality=2)], Edition.LEGACY, samples=0
    )
    comparison = compare_wise([("mine", legacy)])
    assert comparison.lines[-1].values == (1.0, None, None, None, None, None, None)
    assert comparison.lines[-1].note.startswith("999 of 1000 missing")
    verified = summarise_wise([VerifiedScore(prompt_id=1, score=1)], Edition.VERIFIED, samples=0)
    with pytest.raises(ValueError, match="legacy, verified"):
        compare_wise([("mine", verified)])
    assert compare_wise([("mine", verified)], ()).title == "WISE (verified)"
