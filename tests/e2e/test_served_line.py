"""The documented line starts vLLM's own server on a checkpoint, and it answers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import httpx
import pytest

from genevolve_ray.doctor.preflight import model_folder

PAGE = Path(__file__).parents[2] / "docs" / "inference.md"
UP = "Application startup complete"
"""The line of a server that takes requests."""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_documented_line_serves_a_checkpoint(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    [line] = re.findall(r"^    (python -m vllm\S* .*)$", text, re.MULTILINE)
    [(name, url)] = re.findall(r"--policy openai:(\S+)@(http://\S+)/v1", text)
    port = int(url.rpartition(":")[2])
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port} of the documented line is in use")
    arguments = shlex.split(line)
    checkpoint = tmp_path / arguments[arguments.index("--model") + 1]
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(model_folder("genevolve_ray.atlas:cold_start"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    server = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    try:
        printed = list(takewhile(lambda told: UP not in told, server.stdout))
        assert server.poll() is None, "".join(printed)[-3000:]
        body = {"model": name, "messages": [{"role": "user", "content": "Show Velgor"}], "max_tokens": 8}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
    finally:
        with suppress(ProcessLookupError):  # It may have ended by itself.
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
