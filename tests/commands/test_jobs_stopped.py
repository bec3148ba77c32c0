"""A job killed or asked to stop in the middle: what is done is done once, and the same command ends the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from played_bench import painter, write_config, write_data
from played_world import World, playing

ROOT = Path(__file__).parents[2]
COUNT = 24
pytestmark = pytest.mark.timeout(300)


def command() -> list[str]:
    options = ["--data", "data", "--output", "out", "--config", "my.yaml", "--policy", "policy.yaml", "--in-process"]
    return [
        sys.executable,
        "-c",
        "from genevolve_ray.cli import main; main()",
        "bench",
        "genevolve",
        *options,
        "--in-flight",
        "4",
    ]


@contextmanager
def started(root: Path) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        command(),
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(root: Path) -> tuple[int, str]:
    with started(root) as process:
        _, err = process.communicate(timeout=120)
        return process.returncode, err


def judged(root: Path) -> list[str]:
    lines = (root / "out" / "judge" / "results_eval.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    write_data(tmp_path / "data", COUNT)
    with playing(World(script=painter, delay=0.05, after=30)) as world:
        write_config(tmp_path / "my.yaml", world)
        yield world


def test_a_killed_job_goes_on_and_does_nothing_twice(world: World, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        assert world.reached.wait(90)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    kept = set(judged(tmp_path)) if (tmp_path / "out" / "judge" / "results_eval.jsonl").is_file() else set()
    assert len(kept) < COUNT
    rendered = {json.loads(line)["id"] for line in (tmp_path / "out/render/results.jsonl").read_text().splitlines()}
    code, err = finished(tmp_path)
    assert code == 0, err
    assert sorted(judged(tmp_path)) == [f"case-{n:03d}" for n in range(COUNT)]
    # What a journal held at the kill was not asked for again; of what was on the way nothing is known.
    prompts = {f"heron number {int(i[-3:])} like the first reference image" for i in rendered}
    again = {about for (service, about), n in world.done.items() if service == "render" and n > 1}
    assert not again & prompts and len(again) <= 4
    twice = {about for (service, about), n in world.done.items() if service == "judge" and n > 1}
    assert not twice & kept and len(twice) <= 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_rows_in_flight(world: World, tmp_path: Path, number: int, code: int) -> None:
    with started(tmp_path) as process:
        assert world.reached.wait(90)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
    assert "finishing the rows in flight" in err and "The same command resumes it" in err
    done = json.loads((tmp_path / "out" / "judge" / "results_eval.json").read_text())
    ids = [row["id"] for row in done if "summary_type" not in row]
    assert 0 < len(ids) < COUNT
    assert f"{COUNT - len(ids)} of {COUNT} rows are left" in err
    again, told = finished(tmp_path)
    assert again == 0, told
    assert {n for (service, _), n in world.done.items() if service != "chat"} == {1}
