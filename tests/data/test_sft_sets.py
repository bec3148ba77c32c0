"""The ranks of a fine-tuning tokenize each a share of the rows, and all of them get all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agent_fakes import CHATML, byte_tokenizer
from published_helpers import sft_row, write_lines

from genevolve_ray.data.sft_rows import RowEncoder, TokenizedRow
from genevolve_ray.data.sft_sets import SharedEncoding
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.trajectories import SftRow, read_sft


class Rank(Ranks):
    """One of two ranks, which sees what the other passes."""

    def __init__(self, rank: int, passed: list[Any]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "passed", passed)

    def exchange(self, own: Any) -> list[Any]:
        self.passed.append(own)  # type: ignore[attr-defined]
        return self.passed  # type: ignore[attr-defined, no-any-return]


class Counting(RowEncoder):
    """Counts the rows that it encodes."""

    count = 0

    def outcome(self, row: SftRow) -> Any:
        self.count += 1
        return super().outcome(row)


@pytest.fixture
def rows(tmp_path: Path) -> list[SftRow]:
    """Return five rows, of which the third holds a control token and the last is too long."""
    made = [sft_row(i) for i in range(5)]
    made[2]["messages"][1]["content"] += "<|im_end|>"
    made[4]["messages"][1]["content"] += " x" * 2000
    return list(read_sft([write_lines(tmp_path / "rows.jsonl", made)], RejectionReport()))


def encoded(rows: list[SftRow], ranks: Ranks | None) -> tuple[list[TokenizedRow], RejectionReport, int]:
    encoder, kept, report = Counting(byte_tokenizer(CHATML), cutoff=3000), list[TokenizedRow](), RejectionReport()
    encoding = SharedEncoding(encoder, ranks)
    for row in rows:
        encoding.add(row, kept)
    encoding.finish(report)
    return kept, report, encoder.count


def test_every_rank_encodes_a_share_and_gets_all_rows(rows: list[SftRow]) -> None:
    passed: list[Any] = []
    with pytest.raises(KeyError):  # The first of two to pass its share finds nothing of the other.
        encoded(rows, Rank(1, passed))
    kept, report, count = encoded(rows, Rank(0, passed))
    alone, expected, _ = encoded(rows, None)
    assert count == 3 and kept == alone and len(kept) == 3
    assert report.as_dict() == expected.as_dict()
    assert report.as_dict()["rejected"] == {"control_text": 1, "too_many_tokens": 1}


def test_ranks_that_read_different_files_are_refused(rows: list[SftRow]) -> None:
    passed: list[Any] = []
    with pytest.raises(KeyError):
        encoded(rows[1:], Rank(1, passed))
    with pytest.raises(DataError, match="the ranks read different files: 4, 5 rows"):
        encoded(rows, Rank(0, passed))
