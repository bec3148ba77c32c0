"""What the scores of a folder leave in doubt is noted after them, and a judge that cannot give them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.commands.jobs import Job, carry_out
from genevolve_ray.commands.judged import doubts
from genevolve_ray.config import load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import Wanted
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS


def row(number: int, **provenance: Any) -> ResultRow:
    return ResultRow.read({"id": str(number), "question": "a lamp", PROVENANCE: provenance})


def test_clipped_grades_and_cut_prompts_are_noted() -> None:
    usage = {"render": {CUT_PROMPTS: {"images": 1}, "renderer": {"calls": 1}}}
    rows = [row(1, flags=["clipped:aesthetics"]), row(2, usage=usage), row(3, flags=["off-grid:aesthetics"]), row(4)]
    clipped, cut = doubts(rows)
    assert clipped.startswith("25% of the verdicts") and cut.startswith("1 prompts are longer")


def test_nothing_else_is() -> None:
    assert doubts([]) == doubts([row(1), row(2, flags="clipped:x", usage=[1])]) == []


def test_a_judge_without_a_kscore_is_refused_before_any_part_starts(tmp_path: Path) -> None:
    config = load_config("atlas", ['judge={type: http, config: {url: "http://127.0.0.1:9"}}'])
    out, wanted = tmp_path / "out", Wanted(render=True, judge=True)
    job = Job("bench", config, out, (), wanted, build=lambda *_: [], settings={}, store=out, in_process=True)
    with pytest.raises(UserFault, match=r"judge\.type=http gives no KScore, only reward: name another judge"):
        carry_out(job)
    assert not out.exists()
