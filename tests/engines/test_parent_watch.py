"""A child whose parent is killed goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import genevolve_ray

PARENT = """
import multiprocessing, signal
from genevolve_ray.engines.parent_watch import die_with_parent

def work(ready):
    die_with_parent(("Engine",))
    ready.set()
    signal.pause()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=work, args=(ready,), name="Engine-1")
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    signal.pause()
"""


@pytest.mark.timeout(60)
def test_a_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(genevolve_ray.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    parent = psutil.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=20)
    # Where nobody reaps orphans, the dead stay in the table as zombies.
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
