"""A run on rows of which some cannot be used: it takes its steps, says what it left out, and keeps its parts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from published_helpers import bench_row, write_lines

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.run import examine
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.run import RunStore

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def picture(color: int, format: str = "PNG", side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (color, 0, 90)).save(buffer, format)
    return buffer.getvalue()


def truth(data: Path, number: int) -> Path:
    return data / bench_row(number)["gt_image"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with 24 rows, of which six have a truth that no judge can open."""
    (tmp_path / "images").mkdir()
    for number in range(24):
        truth(tmp_path, number).write_bytes(picture(number))
    bad = [POINTER, picture(1, "GIF"), picture(2)[:-30], picture(3, "BMP"), b"", picture(4, side=7)]
    for number, content in enumerate(bad):
        truth(tmp_path, number).write_bytes(content)
    write_lines(tmp_path / "texts.jsonl", [{"title": "lighthouse", "url": "u", "snippet": "a tower with windows"}])
    write_lines(tmp_path / "pictures.jsonl", [{"title": "a reference", "file": "images/case_00010.jpg"}])
    write_lines(tmp_path / "rows.jsonl", [bench_row(number) for number in range(24)])
    return tmp_path


def config_of(data: Path, steps: int, *more: str) -> RunConfig:
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.05, tool_calls: 1}",
            f"loop={{steps: {steps}, requests_per_step: 2, group_size: 2, validate_every: 0, parity_limit: 1.0}}",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "heldout.requests=2",
            "judge={type: 'steady_judge:SteadyJudge', config: {min_side: 8}}",
            f"tools={{type: local, config: {{texts: '{data}/texts.jsonl', pictures: '{data}/pictures.jsonl'}}}}",
            "requests.type=published",
            f"requests.config={{paths: ['{data}/rows.jsonl'], split: {{validation_count: 3, test_count: 3}}}}",
            *more,
        ],
    )


def test_a_run_leaves_out_what_its_judge_cannot_open(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = data / "run"
    evolve_run(config_of(data, 6), run, in_process=True)
    store = RunStore.read(str(run))
    assert store.last_step == 6
    said = capfd.readouterr()
    [line] = [line for line in (said.out + said.err).splitlines() if "rows kept" in line]
    assert "rows: 18 of 24 rows kept, 6 rejected: 6 unreadable_image (first: " in line
    rejected = [json.loads(text) for text in (run / "rejected_rows.jsonl").read_text().splitlines()]
    assert sorted(row["row"] for row in rejected) == [1, 2, 3, 4, 5, 6]
    assert "Git LFS pointer" in rejected[0]["detail"]
    page = (run / "report.html").read_text()
    assert "Rows left out" in page and "unreadable image" in page
    used = {group.request_id for step in store.committed_steps() for group in store.groups(step)}
    assert not used & {str(number) for number in range(6)}
    parts = store.rows()["parts"]
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 12, "validation": 3, "test": 3}


def test_a_resumed_run_trains_on_no_held_out_request_of_changed_rows(data: Path) -> None:
    run = data / "run"
    evolve_run(config_of(data, 1), run, in_process=True)
    parts = RunStore.read(str(run)).rows()["parts"]
    apart = {*parts["validation"], *parts["test"]}
    for number in range(24, 90):
        truth(data, number).write_bytes(picture(number))
    write_lines(data / "rows.jsonl", [bench_row(number) for number in range(90)])
    evolve_run(config_of(data, 7), run, in_process=True)
    store = RunStore.read(str(run))
    used = {group.request_id for step in store.committed_steps() for group in store.groups(step)}
    assert used <= set(parts["train"]) and not used & apart and len(used) == 12
    write_lines(data / "rows.jsonl", [bench_row(number) for number in range(20)])
    [problem] = [check for check in examine(config_of(data, 8), run) if check.name == "data"]
    assert problem.status is Status.PROBLEM and "no longer those that it began with: 4 gone" in problem.detail
    with pytest.raises(UserFault, match=r"no longer those that it began with: 4 gone \(.*start a new run"):
        evolve_run(config_of(data, 8), run, in_process=True)


def test_the_doctor_names_the_rows_that_a_run_would_leave_out(data: Path) -> None:
    checks = examine(config_of(data, 1), data / "run")
    [told] = [check.detail for check in checks if check.name == "data" and "rejected" in check.detail]
    assert "6 rejected" in told and "unreadable_image: 6" in told


def test_a_run_without_a_usable_row_does_not_start(data: Path) -> None:
    for number in range(24):
        truth(data, number).write_bytes(POINTER)
    with pytest.raises(UserFault, match="24 unreadable_image.*Git LFS pointer"):
        evolve_run(config_of(data, 1), data / "run", in_process=True)


def test_a_judge_that_grades_on_another_scale_is_noted_once(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    judge = "judge={type: 'steady_judge:SteadyJudge', config: {flags: ['clipped:faithfulness']}}"
    evolve_run(config_of(data, 3, judge), data / "run", in_process=True)
    said = capfd.readouterr()
    notes = [line for line in (said.out + said.err).splitlines() if "value that was clipped" in line]
    assert len(notes) == 1 and "100% of the verdicts" in notes[0]
    assert {row["judge_clipped_fraction"] for row in RunStore.read(str(data / "run")).metrics()} == {1.0}
