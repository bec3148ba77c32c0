"""The journal: torn lines, resuming, retries, and results.json in the order of the inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from result_helpers import INPUT, trajectory

from genevolve_ray.records.published import journal as journal_module
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.journal import RowJournal
from genevolve_ray.records.published.rejections import DataError, RowFault
from genevolve_ray.records.published.results import AgentRow, EvaluatedRow, RenderedRow
from genevolve_ray.records.published.writers import agent_row, evaluated_row, rendered_row
from genevolve_ray.records.trajectory import Termination
from genevolve_ray.records.verdict import ImageScores, ScoreFormula

SCORES = ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=1, aesthetics=1)


def inputs(count: int = 3) -> list[ResultRow]:
    return [ResultRow.read(INPUT | {"id": str(n), "meta": {}}) for n in range(count)]


def drawn(row: ResultRow, **settings: Any) -> dict[str, Any]:
    return rendered_row(row.values, renderer="flux", **settings)


def ids(rows: list[ResultRow]) -> list[str]:
    return [row.id for row in rows]


def open_journal(folder: Path, kind: type[ResultRow] = RenderedRow, **made_by: Any) -> RowJournal:
    return RowJournal(folder / "results.jsonl", kind, made_by)


def test_what_is_done_is_kept_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    rows = inputs(4)
    with open_journal(tmp_path) as journal:
        journal.append(drawn(rows[2]))
        journal.append(drawn(rows[1], error="down"))
    with open_journal(tmp_path) as journal:
        assert ids(journal.pending(rows)) == ["0", "1", "3"]
        journal.append(drawn(rows[1]))
        assert ids(journal.pending(rows)) == ["0", "3"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_results_come_in_the_order_of_the_inputs_with_the_last_row_of_each(tmp_path: Path) -> None:
    rows = inputs(3)
    with open_journal(tmp_path) as journal:
        journal.append(drawn(rows[2]))
        journal.append(drawn(rows[0], error="down"))
        journal.append(drawn(rows[0]))
        path = journal.write(rows, tmp_path / "results.json", [{"summary_type": "overall_avg"}])
    found = json.loads(path.read_bytes())
    assert [(row["id"], row["success"]) for row in found[:-1]] == [("0", True), ("2", True)]
    assert found[-1] == {"summary_type": "overall_avg"}
    assert sorted(os.listdir(tmp_path)) == ["results.json", "results.jsonl"]


def test_an_empty_journal_is_an_empty_array(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert json.loads(journal.write(inputs(), tmp_path / "results.json").read_bytes()) == []


@pytest.mark.parametrize("cut", [1, 2, 10, 300])
def test_a_torn_last_line_is_dropped_and_made_again(tmp_path: Path, cut: int) -> None:
    rows = inputs(3)
    with open_journal(tmp_path) as journal:
        journal.append(drawn(rows[0]))
        journal.append(drawn(rows[1]))
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    with open_journal(tmp_path) as journal:
        assert ids(journal.pending(rows)) == ["1", "2"]
        journal.append(drawn(rows[1]))
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["0", "1"]


def test_a_last_line_of_zeros_is_dropped(tmp_path: Path) -> None:
    """A power cut can leave the length of a write without its content."""
    with open_journal(tmp_path) as journal:
        journal.append(drawn(inputs()[0]))
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b"\0" * 64)
    with open_journal(tmp_path) as journal:
        assert len(journal) == 1


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append(drawn(inputs()[0]))
    file = tmp_path / "results.jsonl"
    file.write_bytes(b'{"id": \n' + file.read_bytes())
    with pytest.raises(DataError, match=r"results\.jsonl:1"):
        open_journal(tmp_path)


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    with open_journal(tmp_path), pytest.raises(DataError, match="another process"):
        open_journal(tmp_path)
    open_journal(tmp_path).close()


def test_a_row_that_could_not_be_written_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = inputs(2)
    with open_journal(tmp_path) as journal:
        journal.append(drawn(rows[0]))
        before = (tmp_path / "results.jsonl").read_bytes()
        real, calls = os.write, []

        def write(handle: int, data: memoryview) -> int:
            calls.append(len(data))
            if len(calls) > 1:
                raise OSError(28, "no space left")
            return real(handle, data[:10])

        monkeypatch.setattr(journal_module.os, "write", write)
        with pytest.raises(OSError, match="no space left"):
            journal.append(drawn(rows[1]))
        monkeypatch.undo()
        assert (tmp_path / "results.jsonl").read_bytes() == before
        journal.append(drawn(rows[1]))
        assert journal.pending(rows) == []


def test_a_result_of_another_input_is_made_again_and_not_written(tmp_path: Path) -> None:
    rows = inputs(2)
    with open_journal(tmp_path) as journal:
        for row in rows:
            journal.append(drawn(row))
        changed = [ResultRow.read(rows[0].values | {"question": "another"}), rows[1]]
        assert ids(journal.pending(changed)) == ["0"]
        found = json.loads(journal.write(changed, tmp_path / "results.json").read_bytes())
    assert [row["id"] for row in found] == ["1"]


def test_a_row_made_by_others_is_made_again(tmp_path: Path) -> None:
    rows = inputs(1)
    with open_journal(tmp_path) as journal:
        journal.append(drawn(rows[0], render_seed=1))
    with open_journal(tmp_path, renderer="flux", render_seed=1) as journal:
        assert journal.pending(rows) == []
    with open_journal(tmp_path, renderer="qwen") as journal:
        assert ids(journal.pending(rows)) == ["0"]


def test_a_row_whose_picture_is_gone_is_made_again(tmp_path: Path) -> None:
    rows = inputs(2)
    with open_journal(tmp_path) as journal:
        for row in rows:
            journal.append(drawn(row))
        assert ids(journal.pending(rows, intact=lambda row: row["id"] == "1")) == ["0"]


@pytest.mark.parametrize(
    ("termination", "again"),
    [
        (Termination.ANSWER, False),
        (Termination.NO_ANSWER, False),
        (Termination.MAX_ROUNDS, False),
        (Termination.ERROR, True),
    ],
)
def test_only_an_outside_failure_of_the_agent_is_tried_again(
    termination: Termination, again: bool, tmp_path: Path
) -> None:
    rows = inputs(1)
    with open_journal(tmp_path, AgentRow) as journal:
        attempt = trajectory(program=termination is Termination.ANSWER, termination=termination, reason="why")
        journal.append(agent_row(rows[0].values, attempt))
        assert bool(journal.pending(rows)) is again


def test_a_row_that_was_never_scored_is_judged_on_resume(tmp_path: Path) -> None:
    pictures = [RenderedRow.read(drawn(row)) for row in inputs(2)]
    made: dict[str, Any] = {"judge": "vlm", "formula": ScoreFormula.PAPER}
    with open_journal(tmp_path, EvaluatedRow, judge="vlm") as journal:
        journal.append(evaluated_row(pictures[0].values, scores=SCORES, **made))
        journal.append(evaluated_row(pictures[1].values, error="timeout", **made))
        assert ids(journal.pending(pictures)) == ["1"]


def test_ids_that_share_a_file_are_not_written(tmp_path: Path) -> None:
    rows = [ResultRow.read({"id": name, "prompt": "x"}) for name in ("A", "a")]
    with open_journal(tmp_path) as journal, pytest.raises(DataError, match="name_collision"):
        journal.write(rows, tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_a_row_without_a_usable_id_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path, AgentRow) as journal, pytest.raises(RowFault, match="unsafe_id"):
        journal.append({"id": "../x", "prompt": "p"})
