"""A fine-tuning that is killed while it writes a state: the same command ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from published_helpers import sft_row, write_lines
from safetensors.torch import load_file

import genevolve_ray

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

PLAIN = "from genevolve_ray.cli import main; main()"
DYING = """
import os, pathlib, signal
from genevolve_ray.learning import sft_state
save, count = sft_state.save_state, [0]
def save_and_die(*parts):
    save(*parts)
    count[0] += 1
    if count[0] == 3:
        import psutil
        children = [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        pathlib.Path(os.environ["CHILDREN"]).write_text(" ".join(map(str, children)))
        os.kill(os.getpid(), signal.SIGKILL)
sft_state.save_state = save_and_die
"""
"""Ends the process once a state is on the disk, and before it has its name."""
SETTINGS = ("dtype=float32", "lr=3e-3", "global_batch=2", "epochs=4", "checkpoint_every=2", "heldout_fraction=0.3")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from agent_fakes import CHATML
    from tiny_qwen3 import build_model, build_tokenizer

    build_model(tmp_path / "model", seed=0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def train(rows: Path, model: Path, out: Path, ranks: int, *, dies: bool = False) -> str:
    """Run the command and return what it printed."""
    sets = [part for value in (*SETTINGS, f"ranks={ranks}", "threads=1") for part in ("--set", value)]
    root = str(Path(genevolve_ray.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CHILDREN": f"{out}.children"}
    arguments = ["sft", str(rows), "--model", str(model), "--out", str(out), *sets]
    code = (DYING if dies else "") + PLAIN
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == (-signal.SIGKILL if dies else 0), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_same_command_goes_on_after_kill_9(tmp_path: Path, model: Path, ranks: int) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [*(sft_row(i) for i in range(10)), b"{"])
    train(rows, model, tmp_path / "whole", ranks)
    train(rows, model, tmp_path / "killed", ranks, dies=True)
    children = [int(pid) for pid in (tmp_path / "killed.children").read_text().split()]
    assert len(children) == ranks - 1
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in children if psutil.pid_exists(pid)], timeout=30)
    assert not alive, "the other ranks end with the first"
    assert "resuming after step 4/" in train(rows, model, tmp_path / "killed", ranks)
    made = [json.loads((tmp_path / name / "sft.json").read_text()) for name in ("whole", "killed")]
    assert made[0]["loss"] == made[1]["loss"] and made[0]["heldout"] == made[1]["heldout"]
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())
    reports = [(tmp_path / name / "rejections.json").read_text() for name in ("whole", "killed")]
    assert reports[0] == reports[1]
