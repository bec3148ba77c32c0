"""`genevolve init`: whatever is chosen, the files are valid, short, and nothing is overwritten."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import parse

from genevolve_ray.commands.init import InitOptions, planned
from genevolve_ray.commands.init_layout import gpu_plan, parse_gpus
from genevolve_ray.commands.serve import load_served
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import OWN

Command = Callable[..., Any]
REAL = {
    "policy": "Qwen/Qwen3-VL-8B-Instruct",
    "renderer": "qwen-service",
    "judge": "vllm:Qwen/Qwen3-VL-32B-Instruct",
    "tools": "serper",
    "gpus": "4",
}


def flags(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def written(folder: Path, options: InitOptions) -> RunConfig:
    """Write the files of a run without the doctor, and return its configuration."""
    folder.mkdir(exist_ok=True)
    for name, text in planned(folder, options).items():
        (folder / name).write_text(text)
    return load_config(str(folder / "run.yaml"))


def test_without_a_choice_the_run_is_the_atlas_and_can_start(tmp_path: Path, genevolve: Command) -> None:
    folder = tmp_path / "my-run"
    ended = genevolve("init", folder)
    assert ended.code == 0
    assert "run my-run" in ended.out and "problem" not in ended.out
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "run.yaml"]
    config, preset = load_config(str(folder / "run.yaml")), load_config("atlas")
    assert config == preset.model_copy(update={"name": "my-run", "layers": config.layers})
    text = (folder / "README.md").read_text()
    assert [line[:5] for line in text.splitlines() if line.startswith("## ")] == [f"## {n}." for n in range(1, 6)]


def test_a_judge_behind_http_scores_by_the_formula_of_the_run(tmp_path: Path) -> None:
    config = written(
        tmp_path / "run", InitOptions(renderer="qwen-service:http://a:1", judge="endpoint:m@http://b:2/v1")
    )
    assert config.judge.config["formula"] == config.reward.formula.value == "paper"
    real = written(tmp_path / "real", InitOptions(policy="Qwen/Qwen3-VL-8B-Instruct", judge="endpoint:m@http://b:2/v1"))
    assert real.judge.config.get("formula", "release-summary") == real.reward.formula.value


def test_a_real_run_resolves_to_the_method_and_missing_services_are_findings(
    tmp_path: Path, genevolve: Command
) -> None:
    folder = tmp_path / "real"
    ended = genevolve("init", folder, *flags(REAL))
    assert (ended.code, ended.err) == (0, "")
    assert "written: " in ended.out and "model folder does not exist" in ended.out
    config = load_config(str(folder / "run.yaml"))
    assert config.experience.enabled
    assert (config.learner.ved.coefficient, config.learner.kl.coefficient, config.learner.lr) == (2.0, 1e-3, 1e-6)
    assert config.loop.steps == 200
    assert config.judge.config["kscore"]["token_env"] == ""
    assert len((folder / "run.yaml").read_text().splitlines()) < 60


def test_scripts_and_commands_are_real(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    written(folder, InitOptions(**REAL))
    scripts = sorted(folder.glob("*.sh"))
    assert [script.name for script in scripts] == ["download.sh", "serve_judge.sh", "serve_renderer.sh"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".sh", ".md")}
    commands = [
        line for text in texts.values() for line in text.splitlines() if re.match(r"(exec |CUDA\S+ )?genevolve", line)
    ]
    assert len(commands) == 6
    for line in commands:
        words = shlex.split(line, comments=True)
        parse(words[words.index("genevolve") + 1 :])
    for text in texts.values():
        for command in re.findall(r"`genevolve ([^`]+)`", text):
            parse(shlex.split(command))
    downloads = [line.split() for line in texts["download.sh"].splitlines() if line.startswith("hf ")]
    assert all(words[1] == "download" and words[3] == "--local-dir" for words in downloads)
    assert "huggingface_hub" in texts["download.sh"] and "vLLM: python -m vllm.entrypoints" in texts["serve_judge.sh"]


def test_the_services_beside_it_can_be_served_and_have_the_names_that_the_run_calls(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    config = written(folder, InitOptions(**REAL))
    for role in ("renderer", "judge"):
        spec, _ = load_served(str(folder / f"{role}.yaml"), [], role)
        spec.settings(spec.resolve())
        assert (
            f"--port {re.search(r':(800.)', str(getattr(config, role).config))[1]}"
            in (  # type: ignore[index]
                folder / f"serve_{role}.sh"
            ).read_text()
        )
    served = yaml.safe_load((folder / "judge.yaml").read_text())["judge"]["config"]["model"]
    assert config.judge.config["kscore"]["model"] == f"{Path(served['model']).name}:{served['dtype']}"


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "org/policy"},
        {"policy": "/models/policy", "renderer": "diffusers:org/model", "judge": "gemini", "gpus": "2"},
        {
            "policy": "org/policy",
            "renderer": "preset:flux.2-klein-4b",
            "judge": "endpoint:seer@http://x:1/v1",
            "gpus": "3",
        },
        {"policy": "org/policy", "renderer": "gemini", "judge": "endpoint http://x:1/v1", "gpus": "8"},
        {"policy": "org/policy", "renderer": "images-api:m@http://x:1/v1", "judge": "vllm org/judge", "gpus": "16"},
        {
            "policy": "org/policy",
            "renderer": "qwen-service:http://a:1,http://b:1",
            "judge": "gemini:flash",
            "gpus": "1",
        },
        {"policy": "org/policy", "renderer": "qwen-service", "judge": "vllm:org/judge", "gpus": "0"},
        {"renderer": "atlas", "judge": "gemini", "tools": "local:/corpus"},
        {"renderer": "atlas", "judge": "gemini", "tools": "searxng:http://a:8080,http://b:8080"},
        {"renderer": "atlas", "judge": "gemini", "tools": "brave"},
        {"renderer": "atlas", "judge": "gemini", "tools": "folder:/corpus"},
        {"renderer": "qwen-service:http://127.0.0.1:8001"},
        {"renderer": "my_pkg.draw:Renderer", "judge": "my_pkg.judge:Judge", "tools": "web", "policy": "org/policy"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_every_choice_gives_a_configuration_that_loads(options: dict[str, str], tmp_path: Path) -> None:
    config = written(tmp_path / "run", InitOptions(**options))
    assert config.name == "run"
    for script in tmp_path.glob("run/*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    for role in ("renderer", "judge", "tools", "summariser"):
        if "my_pkg" not in getattr(config, role).type and FILL not in str(getattr(config, role).config):
            spec = getattr(config, role)
            kind = spec.resolve()
            spec.settings(kind)


FILL = "FILL_IN"


@pytest.mark.parametrize(("role", "name"), [(r, n) for r in ("renderer", "judge", "tools") for n in OWN[r]])
def test_every_registered_name_is_a_choice(role: str, name: str, tmp_path: Path) -> None:
    more = {
        "diffusers": ":org/m",
        "preset": ":flux.1-dev",
        "images-api": ":m@http://x/v1",
        "endpoint": ":m@http://x/v1",
        "searxng": ":http://x:8080",
        "folder": ":/corpus",
    }
    what = ":org/m" if name == "local" else more.get(name, "")
    others = {"judge": "gemini"} if role == "renderer" else {}
    config = written(
        tmp_path / "run", InitOptions(**{"policy": "org/policy", "gpus": "4", **others, role: name + what})
    )
    assert config.layers


def test_a_model_and_an_address_are_told_apart(tmp_path: Path) -> None:
    config = written(tmp_path / "one", InitOptions(renderer="images-api:flux", judge="endpoint:seer"))
    assert config.renderer.config == {"url": "http://FILL_IN/v1", "model": "flux"}
    assert config.judge.config["kscore"]["model"] == "seer"
    config = written(tmp_path / "two", InitOptions(renderer="images-api:http://x/v1", judge="gemini"))
    assert config.renderer.config == {"url": "http://x/v1", "model": "FILL_IN"}


def test_a_revision_of_a_hub_model_is_downloaded(tmp_path: Path) -> None:
    config = written(tmp_path / "run", InitOptions(policy="org/policy@v1.0", judge="gemini", renderer="gemini"))
    assert config.policy.model == "./models/policy"
    script = (tmp_path / "run" / "download.sh").read_text()
    assert "hf download org/policy --revision v1.0 --local-dir ./models/policy\n" in script


def test_files_are_never_overwritten(tmp_path: Path, genevolve: Command) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    ended = genevolve("init", folder)
    assert ended.code == 2 and "run.yaml exist and are not overwritten" in ended.err
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "run.yaml"]
    assert (folder / "run.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"renderer": "photoshop"}, "--renderer 'photoshop': choose atlas, qwen-service"),
        ({"renderer": "diffusers", "judge": "gemini"}, "--renderer 'diffusers': needs more"),
        ({"renderer": "preset:nothing", "judge": "gemini"}, "--renderer preset:nothing"),
        ({"renderer": "gemini"}, "--judge atlas scores pictures of the atlas renderer alone"),
        ({"judge": "vllm"}, "--judge 'vllm': needs more"),
        ({"tools": "local"}, "--tools 'local': needs more"),
        ({"tools": "searxng"}, "--tools 'searxng': needs more"),
        ({"tools": "folder"}, "--tools 'folder': needs more"),
        ({"tools": "???"}, "--tools '???'"),
        ({"tools": "serper:my-key"}, "--tools 'serper:my-key': serper takes nothing more"),
        ({"renderer": "atlas:big"}, "--renderer 'atlas:big': atlas takes nothing more"),
        ({"judge": "rules:big"}, "--judge 'rules:big': choose atlas"),
        ({"gpus": "many"}, "--gpus 'many'"),
        ({"gpus": "0,0"}, "--gpus '0,0'"),
        ({**REAL, "gpus": "2"}, "--gpus 0,1: 2 of 2 go to renderer and judge"),
        ({"data": "/no/such/rows"}, "--judge atlas scores requests of the atlas alone"),
        ({"judge": "gemini", "data": "/no/such/rows"}, "--data /no/such/rows: no such file or folder"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: dict[str, str], named: str, tmp_path: Path, genevolve: Command
) -> None:
    ended = genevolve("init", tmp_path / "run", *flags(options))
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert named in ended.err
    assert not (tmp_path / "run").exists()


def test_a_policy_that_is_known_to_be_blind_reads_text_only(tmp_path: Path) -> None:
    from zoo import build

    def shown(policy: str) -> bool:
        return written(
            tmp_path / "run", InitOptions(policy=policy, judge="gemini", renderer="gemini")
        ).protocol.observations.images

    assert not shown(str(build("qwen3", tmp_path / "blind")))
    assert shown(str(build("qwen3-vl", tmp_path / "seeing")))
    assert shown("org/not-downloaded-yet")


def test_gpus_are_a_number_or_indices() -> None:
    assert parse_gpus("3") == ("0", "1", "2")
    assert parse_gpus("5,") == ("5",)
    assert parse_gpus("0, 2,7") == ("0", "2", "7")
    with pytest.raises(UserFault):
        parse_gpus("-1")


@pytest.mark.parametrize(
    ("gpus", "services", "inside", "engines", "ranks", "lora"),
    [
        (1, 0, 0, 1, 1, True),
        (2, 0, 0, 1, 1, True),
        (4, 0, 0, 2, 2, True),
        (8, 0, 0, 4, 4, False),
        (8, 2, 1, 3, 2, True),
    ],
)
def test_gpus_are_divided_by_the_stated_rule(
    gpus: int, services: int, inside: int, engines: int, ranks: int, lora: bool
) -> None:
    plan = gpu_plan(parse_gpus(str(gpus)), services=services, inside=inside)
    cluster = plan.values["cluster"]
    assert (cluster.get("rollout_workers", 1), cluster.get("learner_ranks", 1)) == (engines, ranks)
    assert ("learner" in plan.values) == lora
    assert len(plan.training) + len(plan.services) == gpus and len(plan.services) == services
    used = cluster.get("rollout_workers", 1) * cluster["rollout_gpus"] + ranks * cluster["learner_gpus"]
    assert used == gpus - services - inside


def test_a_folder_of_published_rows_becomes_the_request_source(tmp_path: Path) -> None:
    for name in ("RL/train.jsonl", "RL/validation.parquet", "Bench/test.jsonl", "SFT/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    options = InitOptions(policy="org/policy", judge="gemini", gpus="1", data=tmp_path)
    config = written(tmp_path / "run", options)
    found = config.requests.config
    assert found["paths"] == [str(tmp_path / "RL/train.jsonl")]
    assert found["validation_paths"] == [str(tmp_path / "RL/validation.parquet")]
    assert found["heldout_paths"] == [str(tmp_path / "Bench/test.jsonl")]
    config.requests.settings(config.requests.resolve())
    alone = InitOptions(policy="org/policy", judge="gemini", gpus="1", data=tmp_path / "RL/train.jsonl")
    config = written(tmp_path / "other", alone)
    config.requests.settings(config.requests.resolve())
    assert config.requests.config["split"] == {"validation": 0.05, "test": 0.1}


def test_on_a_terminal_it_asks_for_what_is_not_given(
    tmp_path: Path, genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def prompt(text: str, default: str) -> str:
        asked.append(text.partition(" ")[0])
        return "gemini" if text.startswith("judge") else default

    monkeypatch.setattr("genevolve_ray.cli.new_run._on_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", prompt)
    assert genevolve("init", tmp_path / "run", "--tools", "atlas").code == 0
    assert asked == ["policy", "renderer", "judge", "gpus"]
    assert load_config(str(tmp_path / "run/run.yaml")).judge.type == "endpoint"
