"""The memory of a run is that of its whole process tree."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from genevolve_ray.commands import memory_gauge as gauge
from genevolve_ray.commands.memory_gauge import MemoryGauge, tree_memory

MIB = 1 << 20
HOLDER = "x = bytearray(b'x' * (64 << 20)); print('held', flush=True); input()"


def test_a_child_counts() -> None:
    before = tree_memory()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        during = tree_memory()
        child.communicate(b"\n")
    assert before > MIB
    assert during - before > 60 * MIB


def test_the_peak_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first = threading.Event()
    sizes = [9]

    def measure() -> int:
        size = sizes[-1]
        first.set()
        return size

    monkeypatch.setattr(gauge, "tree_memory", measure)
    with MemoryGauge(seconds=1000.0) as watched:
        assert first.wait(60)
        sizes.append(2)
    assert watched.peak == 9


def test_a_last_sample_is_taken_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [5]
    monkeypatch.setattr(gauge, "tree_memory", lambda: sizes[-1])
    with MemoryGauge(seconds=1000.0) as watched:
        sizes.append(7)
    assert watched.peak == 7
