"""`genevolve serve`: what it refuses in one line before it starts, its lines for a run, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tiny_vlm import build_vlm

from genevolve_ray.config import validate_config
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer

Command = Callable[..., Any]


@contextmanager
def command_line(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a command until it has printed its lines for a run; yields the process and these lines as YAML."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "genevolve_ray", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process, yaml.safe_load(_block(process))
        finally:
            process.kill()


def _block(process: subprocess.Popen[str]) -> str:
    """Return the YAML that a served part prints."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        heading = line.rstrip().endswith(":") and " " not in line.strip()
        if heading or (lines and line.startswith(" ")):
            lines.append(line)
        if lines and line.strip().startswith("model:"):
            return "".join(lines)
    raise AssertionError("the command ended before it listened")


def serves_a_run_until_sigterm(*options: str) -> None:
    with command_line("serve", "renderer", "atlas", "--port", "0", *options) as (process, printed):
        spec = printed["renderer"]
        assert spec["type"] == "qwen-service"
        config = QwenServiceConfig.model_validate(spec["config"] | {"attempts": 1})
        assert config.model.startswith("atlas-renderer/1:")
        client = QwenServiceRenderer(config)

        async def drawn() -> bytes:
            try:
                return await client.render("two red circles", [], 3)
            finally:
                await client.aclose()

        assert asyncio.run(drawn()).startswith(b"\x89PNG")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read().endswith("the renderer has stopped\n")


def test_a_run_calls_it_by_the_lines_that_it_prints_and_sigterm_ends_it() -> None:
    serves_a_run_until_sigterm("--in-process")


@pytest.mark.e2e
def test_the_same_on_ray() -> None:
    serves_a_run_until_sigterm()


def test_a_judge_of_a_local_model_is_served_with_a_token(tmp_path: Path) -> None:
    model = build_vlm(tmp_path / "vlm")
    chat = {"model": model, "threads": 1}
    spec = {"judge": {"type": "local", "config": {"backend": "transformers", "model": chat}}}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(spec))
    token = {"SERVED_TOKEN": "a-token-of-enough-characters"}
    arguments = ("serve", "judge", str(tmp_path / "judge.yaml"), "--port", "0", "--in-process")
    with command_line(*arguments, "--token-env", "SERVED_TOKEN", **token) as (process, printed):
        config = printed["judge"]["config"]["kscore"]
        assert config["model"] == "vlm:float32"
        body = {"model": config["model"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        address = f"{config['url']}/chat/completions"
        assert httpx.post(address, json=body).status_code == 401
        header = {"Authorization": f"Bearer {token['SERVED_TOKEN']}"}
        answer = httpx.post(address, json=body, headers=header, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_busy_port_is_named_before_anything_is_loaded(genevolve: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = genevolve("serve", "renderer", "atlas", "--port", str(port))
    assert ended.code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["judge", "atlas"], "judge.type="),
        (["renderer", "atlas", "--host", "0.0.0.0"], "--host 0.0.0.0"),
        (["renderer", "nowhere.yaml"], "nowhere.yaml"),
        (["renderer", "atlas", "--set", "renderer.type=nothing"], "nothing"),
        (["renderer", "atlas", "--set", "renderer.config.failure=2"], "renderer.config.failure"),
        (["renderer", "atlas", "--set", "cluster.renderer.replicas=0"], "cluster.renderer.replicas"),
        (["renderer", "atlas", "--set", "rendrer.type=atlas"], "--set rendrer: unknown key"),
        (["renderer", "atlas", "--token-env", "NOT_SET"], "--token-env NOT_SET"),
    ],
)
def test_what_cannot_be_served_ends_with_one_line(arguments: list[str], named: str, genevolve: Command) -> None:
    ended = genevolve("serve", *arguments, "--in-process", "--port", "0")
    assert ended.code == 2
    assert named in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_gpus_that_this_machine_lacks_are_named(genevolve: Command, no_gpu: None) -> None:
    ended = genevolve("serve", "renderer", "atlas", "--port", "0", "--set", "cluster.renderer.gpus=1")
    assert ended.code == 2
    assert "cluster.renderer.gpus=1.0: a GPU is asked for, this machine has none" in ended.err


def test_a_file_may_hold_the_served_part_alone(tmp_path: Path, genevolve: Command) -> None:
    file = tmp_path / "renderer.yaml"
    file.write_text("renderer:\n  type: qwen-service\n  config: {url: 'http://127.0.0.1:18477'}\n")
    ended = genevolve("serve", "renderer", str(file), "--port", "18477", "--in-process")
    assert ended.code == 2
    assert "renderer.config.url='http://127.0.0.1:18477' is the address of this server itself" in ended.err
    ended = genevolve("serve", "judge", str(file), "--in-process")
    assert "judge: missing" in ended.err
    file.write_text("renderer: {type: atlas}\nrendrer: {}\n")
    ended = genevolve("serve", "renderer", str(file), "--in-process")
    assert f"{file}: line 2: rendrer: unknown key (value {{}}), did you mean renderer?" in ended.err


def test_the_lines_for_a_judge_make_a_valid_configuration() -> None:
    from genevolve_ray.commands.serve import client_spec
    from genevolve_ray.config import load_config
    from genevolve_ray.doctor.preflight import check_plugin

    values = load_config("atlas").model_dump(mode="json")
    described = {"models": ["seer:bfloat16", "reader"]}
    config = validate_config(values | client_spec("judge", "http://gpu-1:8002", "TOKEN", described))
    check_plugin("judge", config.judge)
    assert config.judge.config["kscore"] == {
        "url": "http://gpu-1:8002/v1",
        "model": "seer:bfloat16",
        "token_env": "TOKEN",
    }
    assert config.judge.config["sufficiency"]["model"] == "reader"
