"""The script for one GPU: a stage that fails, hangs or cannot run does not keep the others from running."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import gpu_all
from benchmarks.measure import LeftOut, Options, Row, Spread

OPTIONS = Options(Path("nowhere"), quick=True)


def good(_: Options) -> list[Row]:
    return [Row("a figure", Spread.of([1.0]), "s")]


def bad(_: Options) -> list[Row]:
    raise RuntimeError("the device is lost")


def elsewhere(_: Options) -> list[Row]:
    raise LeftOut("needs two GPUs")


@pytest.fixture(autouse=True)
def three_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("stages_of_a_test")
    vars(module).update(STAGES=(("good", good), ("bad", bad), ("elsewhere", elsewhere)), SECONDS={"bad": 7})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(gpu_all, "MODULES", (module.__name__,))


def test_stages_have_limits() -> None:
    assert {name: limit for name, (_, limit) in gpu_all.stages().items()} == {"good": 90, "bad": 7, "elsewhere": 90}


def test_a_stage_tells_what_became_of_it() -> None:
    found = {name: gpu_all.run_here(name, OPTIONS) for name in gpu_all.stages()}
    assert [row["name"] for row in found["good"]["rows"]] == ["a figure"]
    assert {name: stage["state"] for name, stage in found.items()} == {
        "good": "done",
        "bad": "failed: RuntimeError: the device is lost",
        "elsewhere": "left out: needs two GPUs",
    }


def test_the_others_run_until_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, float] = {}

    def child(name: str, _: object, seconds: float) -> dict[str, object]:
        limits[name] = seconds
        return gpu_all.run_here(name, OPTIONS)

    monkeypatch.setattr(gpu_all, "in_child", child)
    parsed = gpu_all.parse(["--rehearse", "--only", "good", "--only", "bad"])
    assert [stage["state"].split(":")[0] for stage in gpu_all.run_all(parsed).values()] == ["done", "failed"]
    assert limits == {"good": 90, "bad": 7}
    parsed.seconds = 0
    assert [stage["state"] for stage in gpu_all.run_all(parsed).values()] == ["left out: no time was left"] * 2


def test_a_stage_that_ends_early_or_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    failed = gpu_all.in_child("good", gpu_all.parse(["--rehearse"]), 20)
    assert failed["state"].startswith("failed: exit code 1")
    monkeypatch.setattr(subprocess.Popen, "wait", hang_once(subprocess.Popen.wait))
    assert gpu_all.in_child("good", gpu_all.parse(["--rehearse"]), 20)["state"] == "failed: it did not end within 20 s"


def hang_once(wait: object) -> object:
    """Return `Popen.wait`, which runs out of time where it has a limit."""

    def waiting(child: object, timeout: float | None = None) -> object:
        if timeout is not None:
            raise subprocess.TimeoutExpired("stage", timeout)
        return wait(child)  # type: ignore[operator]

    return waiting


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    script = Path(gpu_all.__file__)
    subprocess.run([sys.executable, script, "--rehearse", "--json", out], check=True, timeout=600)
    found = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    left_out = [name for name, stage in found.items() if stage["state"].startswith("left out")]
    assert left_out == ["learner: Liger"]
    assert all(stage["state"] == "done" and stage["rows"] for name, stage in found.items() if name not in left_out)
