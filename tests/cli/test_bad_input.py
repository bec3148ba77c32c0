"""Bad input ends in one line that names the value at fault, exit code 2 and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import genevolve_ray
from genevolve_ray.config import load_config
from genevolve_ray.doctor.preflight import check_devices, require_gpus
from genevolve_ray.errors import UserFault

TOOLBOX = "genevolve_ray.tools.toolbox:LocalTools"


def check_refused(ended: tuple[int, str, str], *named: str) -> None:
    code, _, err = ended
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1, err
    assert all(name in err for name in named), err


@pytest.mark.parametrize("where", [[], ["--in-process"]])
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("loop.group_sise=4", ["loop.group_sise", "unknown key"]),
        ("loop.steps=many", ["loop.steps", "'many'"]),
        ("loop.group_size=1", ["loop.group_size", "got 1"]),
        ("loop.max_staleness=-1", ["loop.max_staleness", "got -1"]),
        ("loop.steps", ["--set 'loop.steps'", "key=value"]),
        ("policy.model=/no/such/model", ["policy.model", "/no/such/model"]),
        ("policy.model=no_such_package:folder", ["policy.model", "no_such_package"]),
        ("policy.model=json.decoder:folder", ["policy.model", "json.decoder"]),
        ("engine.device=cuda", ["engine.device=cuda", "GPU"]),
        ("learner.device=cuda:1", ["learner.device=cuda:1", "GPU"]),
        ("cluster.rollout_gpus=1", ["cluster.rollout_gpus=1", "GPU"]),
        ("cluster.judge.gpus=0.5", ["cluster.judge.gpus=0.5", "GPU"]),
    ],
)
def test_a_bad_setting_is_refused(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, where: list[str], setting: str, named: list[str]
) -> None:
    run = tmp_path / "run"
    check_refused(genevolve("evolve", "atlas", "--run", str(run), "--set", setting, *where), *named)
    assert not run.exists()


def test_steps_are_checked_like_any_key(genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    check_refused(genevolve("evolve", "atlas", "--run", str(tmp_path / "run"), "--steps", "0"), "loop.steps", "got 0")


def test_an_unknown_preset_is_refused(genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    check_refused(genevolve("evolve", "atlass", "--run", str(tmp_path / "run")), "'atlass'", "atlas")
    assert not (tmp_path / "run").exists()


def test_a_model_with_narrow_heads_is_refused(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, narrow_model: Path
) -> None:
    run = tmp_path / "run"
    ended = genevolve("evolve", "atlas", "--run", str(run), "--set", f"policy.model={narrow_model}")
    check_refused(ended, "policy.model", "head_dim is 16", str(narrow_model))
    assert not run.exists()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("texts", None, "texts.jsonl: cannot be read"),
        ("texts", b'{"title": "t", "url": "u", "snippet": "s"}\n{"title": 3}\n', "texts.jsonl:2: "),
        ("texts", b"\xff\xff", "texts.jsonl: cannot be read"),
        ("pictures", b'{"title": "t", "file": "gone.png"}\n', "pictures.jsonl:1: picture 'gone.png'"),
    ],
)
def test_an_unreadable_corpus_is_refused(
    genevolve: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    model: Path,
    name: str,
    content: bytes | None,
    named: str,
) -> None:
    texts, pictures = tmp_path / "texts.jsonl", tmp_path / "pictures.jsonl"
    texts.write_bytes(b'{"title": "t", "url": "u", "snippet": "s"}\n')
    at_fault = {"texts": texts, "pictures": pictures}[name]
    if content is None:
        at_fault.unlink()
    else:
        at_fault.write_bytes(content)
    run = tmp_path / "run"
    tools = f"tools={{type: '{TOOLBOX}', config: {{texts: {texts}, pictures: {pictures}}}}}"
    ended = genevolve("evolve", "atlas", "--run", str(run), "--set", f"policy.model={model}", "--set", tools)
    check_refused(ended, "tools: ", named)
    assert not run.exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("tools.type=nowhere:Tools", ["tools: ", "nowhere:Tools"]),
        ("judge.type=genevolve_ray.atlas.judge:Missing", ["judge: ", "Missing"]),
        ("requests.config.seed=x", ["requests.config.seed: ", "'x'"]),
        ("requests.config.sede=1", ["requests.config.sede: ", "got 1"]),
    ],
)
def test_a_bad_plug_in_is_refused(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, model: Path, setting: str, named: list[str]
) -> None:
    run = tmp_path / "run"
    ended = genevolve("evolve", "atlas", "--run", str(run), "--set", f"policy.model={model}", "--set", setting)
    check_refused(ended, *named)
    assert not run.exists()


def test_deterministic_runs_need_one_process(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, model: Path
) -> None:
    settings = [f"policy.model={model}", "deterministic=true", "engine.kind=transformers"]
    sets = [part for setting in settings for part in ("--set", setting)]
    check_refused(genevolve("evolve", "atlas", "--run", str(tmp_path / "run"), *sets), "deterministic", "--in-process")


def test_a_demo_is_checked_before_it_copies_its_start(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, model: Path
) -> None:
    run = tmp_path / "demo"
    for setting in ("engine.device=cuda", "policy.model=/no/such/model"):
        sets = ["--set", f"policy.model={model}", "--set", setting]
        check_refused(genevolve("demo", "--run", str(run), *sets), setting.split("=")[1])
    assert not run.exists()


def test_a_run_of_another_configuration_is_left_alone(
    genevolve: Callable[..., tuple[int, str, str]], tmp_path: Path, model: Path
) -> None:
    from genevolve_ray.config import load_config
    from genevolve_ray.evolution.store.run import RunStore

    run, sets = tmp_path / "run", ["--set", f"policy.model={model}"]
    config = load_config("atlas", [f"policy.model={model}"])
    RunStore.open(str(run), config, run_seed=config.seed).close()
    before = (run / "config.yaml").read_bytes()
    ended = genevolve("evolve", "atlas", "--run", str(run), *sets, "--set", "loop.group_size=4")
    check_refused(ended, "loop.group_size: was 6, is 4", str(run))
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["report", "/no/such/run"], ["/no/such/run"]),
        (["sft", "marble"], ["'marble'"]),
        (["bench", "atlas", "--policy", "/no/such/policy", "--json", "y"], ["policy.model", "/no/such/policy"]),
        (["bench", "atlas", "--policy", "x", "--json", "y", "--engine", "sglang"], ["engine.kind", "'sglang'"]),
        (["bench", "atlas", "--policy", "x", "--json", "y", "--experience", "fine"], ["--experience", "'fine'"]),
        (["bench", "atlas-sight", "--policy", "x", "--json", "y", "--images", "dark"], ["--images", "'dark'", "blank"]),
    ],
)
def test_other_commands_refuse_as_well(
    genevolve: Callable[..., tuple[int, str, str]], arguments: list[str], named: list[str]
) -> None:
    check_refused(genevolve(*arguments), *named)


def test_an_unknown_benchmark_is_named(genevolve: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = genevolve("bench", "marble", "--policy", "x")
    assert code == 2
    assert "No such command 'marble'" in err


def test_the_command_as_a_shell_sees_it(tmp_path: Path) -> None:
    code = "from genevolve_ray.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(genevolve_ray.__file__).parents[1])}
    command = [sys.executable, "-c", code, "evolve", "atlas", "--set", "loop.group_size=1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    check_refused((ended.returncode, ended.stdout, ended.stderr), "loop.group_size", "got 1")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_the_environment_names_answers_for_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("atlas", ["cluster.rollout_gpus=1"])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_devices(config)
    with pytest.raises(UserFault, match="cluster.rollout_gpus=1.0: a GPU is asked for, this machine has none"):
        check_devices(config, local=True)


def test_whatever_asks_for_a_gpu_is_refused_in_the_same_words() -> None:
    require_gpus({"a": "cpu", "b": "cpu:0", "c": 0, "d": ""})
    with pytest.raises(UserFault, match="^a=cuda:1, b=0.5: a GPU is asked for, this machine has none$"):
        require_gpus({"a": "cuda:1", "b": 0.5, "c": "cpu"})


@pytest.mark.parametrize(
    "setting",
    [
        "renderer.config.url=ftp://user:pass-word-1@host",
        "judge.config.api_key=pass-word-1",
        "policy.api_key=pass-word-1",
        "policy={model: none, extra: 'http://user:pass-word-1@host'}",
        "renderer.api_key={pass-word-1",
    ],
)
def test_no_error_line_holds_a_secret(genevolve: Callable[..., Any], tmp_path: Path, setting: str) -> None:
    code, out, err = genevolve("evolve", "paper", "--run", str(tmp_path / "run"), "--set", setting)
    assert code == 2 and err.count("\n") == 1
    assert "pass-word-1" not in out + err
