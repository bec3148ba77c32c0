"""Inference for real: a checkpoint under vLLM's own server, driven by a foreign client and by ours; a benchmark on Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.config import load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.vllm_settings import vllm_environment
from genevolve_ray.records.images import FilesystemImages, MemoryImages
from genevolve_ray.records.published.writers import request_values
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.tools.protocol import EpisodeContext

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def genevolve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from genevolve_ray.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three held-out requests of the atlas as a benchmark's files."""
    root = tmp_path_factory.mktemp("data")
    images = FilesystemImages(str(root / "gt"))
    rows = load_config("atlas").requests.build(images).heldout(3)
    lines = []
    for request in rows:
        truth = request.truth_image
        assert truth is not None
        lines.append(json.dumps(request_values(request, f"gt/{truth.sha256[:2]}/{truth.file_name}")))
    (root / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The cold start under vLLM's own server, with nothing of ours around it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = model_folder("genevolve_ray.atlas:cold_start")
    options = [
        "--dtype",
        "float32",
        "--max-model-len",
        "1536",
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        "268435456",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        + ["--served-model-name", "atlas", "--host", "127.0.0.1", "--port", str(port), *options],
        env={**os.environ, **vllm_environment(device="cpu", threads=1)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{port}"
    try:
        printed = list(takewhile(lambda line: "Application startup complete" not in line, process.stdout))
        assert process.poll() is None, "".join(printed)[-3000:]
        yield url
    finally:
        with suppress(ProcessLookupError):  # It may have ended by itself.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def foreign_client(url: str, row: dict[str, Any]) -> dict[str, Any]:
    """A client that knows the published wire protocol and nothing of this package: messages in, tags out."""
    config = load_config("atlas")
    tools = config.tools.build(MemoryImages()).tools
    # Whose world the tools look in is told by the id.
    asked = Request(id=row["id"], prompt=row["prompt"], eval_type=EvalType(row["eval_type"]))
    episode = EpisodeContext(request=asked)
    messages = [
        {"role": "system", "content": system_prompt(PROFILES["atlas"], tools)},
        {"role": "user", "content": row["prompt"]},
    ]
    async with httpx.AsyncClient(timeout=120) as client:
        for _ in range(9):
            body = {"model": "atlas", "messages": messages, "temperature": 0, "max_tokens": 160}
            answer = (await client.post(f"{url}/v1/chat/completions", json=body)).raise_for_status().json()
            text = answer["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": text})
            if "<answer>" in text:
                return dict(json.loads(text.split("<answer>")[1].split("</answer>")[0]))
            call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
            found = await tools[call["name"]].call(call["arguments"], episode)
            messages.append({"role": "user", "content": f"<tool_response>\n{_digest(found)}\n</tool_response>"})
    raise AssertionError("no answer in nine turns")


def _digest(found: Any) -> str:
    """The published digests, abridged as the profile of this checkpoint has them."""
    if hasattr(found, "markdown"):
        return str(found.markdown).rpartition("## In short")[2].strip()
    if hasattr(found, "results"):
        blocks = []
        for result in found.results:
            lines = [f"{n}. snippet: {hit.snippet}" for n, hit in enumerate(result.hits, 1)]
            blocks += [f"--- search result for [{result.query}] ---", *lines, "--- end of search result ---"]
        return "\n".join(blocks)
    lines = [f"IMG_{n:03d}: title: {hit.title}" for n, hit in enumerate(found.hits, 1)]
    return "\n".join([f"--- image search result for [{found.query}] ---", *lines, "--- end of image search result ---"])


async def test_a_foreign_client_gets_a_program_from_the_served_checkpoint(served: str, data: Path) -> None:
    row = json.loads((data / "test.jsonl").read_text().splitlines()[0])
    program = await foreign_client(served, row)
    assert program["gen_prompt"] and program["reference_images"][0]["img_id"].startswith("IMG_")


def test_a_served_checkpoint_is_a_policy(served: str, data: Path, tmp_path: Path) -> None:
    """Also on Ray: the tools are a service, the episodes run in a worker without an engine."""
    ended = genevolve(
        *("rollout", "--input", data / "test.jsonl", "--output", tmp_path / "agent", "--config", "atlas"),
        *("--policy", f"openai:atlas@{served}/v1", "--set", "inference.temperature=0"),
        *("--set", "cluster.object_store_mib=80", "--set", "cluster.start_timeout=400"),
    )
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "agent" / "results.json").read_text())
    assert len(rows) == 3 and all(row["rounds"] > 1 for row in rows)
    assert [row["genevolve_ray"]["engine"] for row in rows] == ["openai:atlas"] * 3
    assert sum(row["termination"] == "answer" and bool(row["gen_prompt"]) for row in rows) >= 2
    used = rows[0]["genevolve_ray"]["usage"]["agent"]["policy"]
    assert used["calls"] == rows[0]["rounds"] and used["completion_tokens"] > 0


def test_a_benchmark_on_ray_runs_once(data: Path, tmp_path: Path) -> None:
    command = (
        *("bench", "genevolve", "--data", data, "--output", tmp_path / "out", "--config", "atlas"),
        *("--set", "engine.kind=transformers", "--set", "inference.temperature=0"),
        *("--set", "cluster.object_store_mib=80", "--set", "cluster.start_timeout=400"),
    )
    first = genevolve(*command)
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "out" / "judge" / "summary.json").read_text())
    assert summary["all"]["denominator"] == 3 and summary["all"]["count_eval_success"] >= 2
    assert 0 < summary["all"]["overall"] <= 1
    journals = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.jsonl")}
    again = genevolve(*command)
    assert again.returncode == 0, again.stderr
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.jsonl")} == journals
