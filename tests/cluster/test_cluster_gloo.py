"""An evolution whose weights never lie in a folder: real Ray, vLLM and learner on a CPU, over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_version_is_sent_and_a_killed_worker_comes_back_with_the_current_one(
    workers: int, tmp_path: Path
) -> None:
    # In a process of its own: the fixed thread pools and the killed worker are nobody else's affair.
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_transfer",
        "--way",
        "gloo",
        "--workers",
        str(workers),
        "--ranks",
        "2",
        "--steps",
        "3",
    ]
    out = tmp_path / "result.json"
    ended = subprocess.run(
        [*command, "--json", str(out)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert out.is_file(), ended.stderr[-3000:]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["checks"] == dict.fromkeys(result["checks"], True), result
    assert ended.returncode == 0
