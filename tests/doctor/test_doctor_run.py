"""genevolve doctor PRESET: each thing that a run lacks is a line of its own."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor import limits
from genevolve_ray.doctor import settings_tree as tree
from genevolve_ray.doctor.machine import Check, Gpu, Status, exit_status
from genevolve_ray.doctor.model_folder import Weights, read_weights
from genevolve_ray.doctor.preflight import check_policy, preflight
from genevolve_ray.doctor.run import examine
from genevolve_ray.errors import UserFault

Filled = Callable[..., RunConfig]
COLD_START = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
BLANKS = {
    "policy.model",
    "experience.embedder.transformers.model",
    "requests.config.paths.0",
    "requests.config.validation_paths.0",
    "requests.config.heldout_paths.0",
    "renderer.config.url.0",
}


def named(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def problems(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.status is Status.PROBLEM]


def of(config: RunConfig, tmp_path: Path) -> list[Check]:
    return examine(config, tmp_path / "run")


def test_every_blank_of_the_paper_preset_is_a_line() -> None:
    assert {key for key, _ in tree.fill_ins(load_config("paper"))} == BLANKS


def test_blanks_of_parts_that_are_switched_off_do_not_count() -> None:
    config = load_config("paper", ["experience.enabled=false", "learner.ved.coefficient=0"])
    assert {key for key, _ in tree.fill_ins(config)} == {
        key for key in BLANKS if key.split(".")[0] not in ("experience", "summariser")
    }


def test_the_paper_preset_as_it_comes_says_what_it_waits_for(tmp_path: Path) -> None:
    checks = of(load_config("paper"), tmp_path)
    assert len(named(checks, "fill in")) == len(BLANKS)
    assert all(check.remedy for check in problems(checks))
    variables = {check.detail.split()[0] for check in named(checks, "token")}
    assert variables == {"GEMINI_API_KEY", "SERPER_API_KEY"}
    assert {check.status for check in checks if check.name in ("renderer", "data", "policy")} == {Status.NOTE}
    assert {check.status for check in checks if check.name == "judge"} == {Status.OK}, "it waits for its token alone"
    assert exit_status(checks) == 1


def test_a_preset_that_is_filled_in_can_start(filled: Filled, tmp_path: Path) -> None:
    config = filled()
    assert problems(of(config, tmp_path)) == []
    preflight(config)


def test_nothing_is_asked_over_the_network_unless_told_to(filled: Filled, server: Any, tmp_path: Path) -> None:
    of(filled(), tmp_path)
    assert server.calls == []


def test_preflight_names_the_blanks() -> None:
    with pytest.raises(UserFault, match=r"not filled in: .*policy\.model.*renderer\.config\.url\.0"):
        preflight(load_config("paper"))


def test_preflight_wants_the_token_of_a_judge(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    config = filled()
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(UserFault, match=r"GEMINI_API_KEY \(judge\.config\.kscore\.token_env\)"):
        preflight(config)


@pytest.mark.parametrize("check", ["off", "optional"])
def test_a_judge_that_may_leave_programs_aside_is_refused_where_they_count(
    check: str, filled: Filled, tmp_path: Path
) -> None:
    config = filled(f"judge.config.sufficiency_check={check}")
    with pytest.raises(UserFault, match=f"sufficiency_check={check}, but reward.text_weight is 0.5"):
        preflight(config)
    assert any("sufficiency_check" in found.detail for found in problems(of(config, tmp_path)))
    preflight(filled(f"judge.config.sufficiency_check={check}", "reward.text_weight=0", "reward.image_weight=1"))


def test_a_variable_of_the_replicas_own_environment_counts(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    config = filled("judge.runtime_env={env_vars: {GEMINI_API_KEY: x}}")
    assert [token.role for token in tree.unset_tokens(config)] == ["summariser"]


def test_a_variable_that_the_driver_hands_on_must_be_set(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    config = filled("judge.runtime_env={env_vars: {GEMINI_API_KEY: '${MY_GEMINI}'}}")
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("MY_GEMINI", raising=False)
    with pytest.raises(UserFault, match=r"MY_GEMINI \(judge\.runtime_env\.env_vars\.GEMINI_API_KEY\)"):
        preflight(config)
    monkeypatch.setenv("MY_GEMINI", "never-to-be-shown")
    assert tree.unset_references(config.model_dump(), here=True) == []
    assert config.judge.environment() == {"env_vars": {"GEMINI_API_KEY": "never-to-be-shown"}}
    assert "never-to-be-shown" not in repr(config)


def test_a_secret_in_plain_is_a_note_that_names_the_remedy(filled: Filled, tmp_path: Path) -> None:
    config = filled("judge.runtime_env={env_vars: {OTHER_KEY: plain-and-long}}")
    [check] = named(of(config, tmp_path), "secret")
    assert check.status is Status.NOTE
    assert "judge.runtime_env.env_vars.OTHER_KEY" in check.detail and "${NAME}" in check.remedy
    assert "plain-and-long" not in repr(check)


def test_no_token_is_shown(filled: Filled, tmp_path: Path) -> None:
    assert "never-to-be-shown" not in repr(examine(filled(), tmp_path, deep=True, spend=True))


@pytest.mark.parametrize(
    ("setting", "name", "said"),
    [
        ("policy.model=/no/such/model", "policy", "/no/such/model"),
        ("judge.type=nowhere:Judge", "judge", "nowhere:Judge"),
        ("renderer.config.num_inference_steps=0", "renderer", "renderer.config.num_inference_steps"),
        ("renderer.config.url=ftp://there", "renderer", "ftp://there"),
        ("requests.config.paths=[/no/such.jsonl]", "data", "/no/such.jsonl"),
        ("judge.config.formula=paper", "formula", "judge.config.formula=paper, reward.formula=release-summary"),
        ("cluster.renderer.timeout=2480", "time", "4 tries x (600 + 20 s) = 2480 s, cluster.renderer.timeout=2480"),
        ("cluster.rollout_workers=100000", "placement", "requests"),
        ("engine.device=cuda", "devices", "engine.device=cuda"),
        ("engine.max_model_len=4096", "context", "supports only 2048"),
        ("engine.max_model_len=512", "context", "a prompt alone can fill"),
        ("experience.embedder.transformers.model=/no/such/model", "embedder", "/no/such/model"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(
    filled: Filled, tmp_path: Path, setting: str, name: str, said: str
) -> None:
    found = problems(of(filled(setting), tmp_path))
    [check] = [check for check in found if check.name == name and said in check.detail]
    assert check.remedy
    assert {name} <= {check.name for check in found} <= {name, "placement"}


def test_a_time_limit_above_all_tries_is_enough(filled: Filled) -> None:
    checks = limits.time_limits(filled("cluster.renderer.timeout=2481"))
    assert {check.status for check in checks} == {Status.OK}


def test_a_judge_that_is_asked_again_may_take_longer(filled: Filled) -> None:
    [check] = [c for c in limits.time_limits(filled("cluster.judge.timeout=600")) if "judge" in c.detail]
    assert (check.status, "1680 s" in check.detail) == (Status.NOTE, True)


def test_what_a_renderer_preset_stands_for_is_looked_at() -> None:
    named_preset = "{type: 'genevolve_ray.renderers.presets:Named', config: {name: nano-banana-pro}}"
    config = load_config("atlas", [f"renderer={named_preset}"])
    assert [(token.key, token.variable) for token in tree.unset_tokens(config)] == [
        ("renderer.config", "GEMINI_API_KEY")
    ]
    assert [check.status for check in limits.time_limits(config)] == [Status.OK]  # The limit follows 4 x 620 s.
    short = load_config("atlas", [f"renderer={named_preset}", "cluster.renderer.timeout=300"])
    assert [check.status for check in limits.time_limits(short)] == [Status.PROBLEM]


@pytest.mark.parametrize(("gpus", "status"), [(0, [Status.PROBLEM]), (0.5, [])])
def test_a_judge_on_a_gpu_must_reserve_one(gpus: float, status: list[Status]) -> None:
    kind = "genevolve_ray.judges.local_judge:LocalVlmJudge"
    judge = f"{{type: '{kind}', config: {{model: {{model: /models/judge, device: cuda}}}}}}"
    checks = limits.reservations(load_config("atlas", [f"judge={judge}", f"cluster.judge.gpus={gpus}"]))
    assert [check.status for check in checks] == status


def test_an_engine_that_cuts_episodes_short_is_a_note() -> None:
    [check] = limits.context(load_config("atlas"))
    assert check.status is Status.NOTE
    assert check.remedy.endswith("=1712")


def test_a_longer_context_than_the_policy_has_is_no_remedy() -> None:
    [check] = limits.context(load_config("atlas", ["profile=release", "engine.max_model_len=null"]))
    assert (check.status, check.remedy.partition(":")[0]) == (Status.PROBLEM, "the policy supports no more")
    [check] = limits.context(load_config("atlas", ["profile=release"]))
    assert check.remedy.endswith("=2048")


@pytest.mark.parametrize(("parameters", "said"), [(964_000, "0.964M"), (8_030_000_000, "8.03B")])
def test_parameters_are_counted_in_their_own_unit(parameters: int, said: str) -> None:
    assert Weights(parameters, bytes=1).count == said


def test_a_learner_that_does_not_fit_its_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_gpus", lambda: [Gpu("Test GPU", 80 * 1024)])
    eight = Weights(parameters=8 * 10**9, bytes=16 * 10**9)
    [check] = limits.learner_memory(load_config("paper"), eight)
    assert check.status is Status.PROBLEM
    assert check.detail.startswith("119 GiB a rank")  # 8e9 x (4 + 8 + 4) bytes
    assert limits.learner_memory(load_config("paper", ["learner.lora={}"]), eight) == []
    [check] = limits.learner_memory(load_config("paper", ["cluster.learner_ranks=2"]), eight)
    assert check.status is Status.OK


def test_a_learner_that_shares_its_gpu_has_what_the_engine_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_gpus", lambda: [Gpu("Test GPU", 80 * 1024)])
    four = Weights(parameters=4 * 10**9, bytes=8 * 10**9)
    shared = ["cluster.rollout_workers=1", "cluster.learner_ranks=1", "cluster.rollout_gpus=0.5"]
    shared += ["cluster.learner_gpus=0.5", "engine.vllm.gpu_memory_utilization=0.4"]
    [check] = limits.learner_memory(load_config("paper", shared), four)
    assert check.status is Status.PROBLEM
    assert check.detail.endswith("80 GiB, of which the engine takes 32 (engine.vllm.gpu_memory_utilization)")
    assert check.remedy.endswith("or --set engine.vllm.sleep=true")
    sleeps = [*shared, "engine.vllm.sleep=true"]
    [check] = limits.learner_memory(load_config("paper", sleeps), four)
    assert check.status is Status.OK
    assert "takes 32 beside 45 during rollouts" in check.detail
    greedy = load_config("paper", [*sleeps, "engine.vllm.gpu_memory_utilization=0.5"])
    [check] = limits.learner_memory(greedy, four)
    assert check.status is Status.PROBLEM
    assert check.remedy.endswith("or a smaller engine.vllm.gpu_memory_utilization")


def test_a_disk_that_holds_no_checkpoints_is_said(tmp_path: Path) -> None:
    huge = Weights(parameters=10**15, bytes=1)
    [check] = limits.disk(load_config("paper"), tmp_path / "run", huge)
    assert (check.status, "4 checkpoints" in check.detail) == (Status.PROBLEM, True)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(COLD_START, tmp_path / "policy"))


def test_the_parameters_of_a_folder_are_counted(policy: Path) -> None:
    file = policy / "model.safetensors"
    with safe_open(file, "np") as tensors:
        parameters = sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    assert read_weights(policy) == Weights(parameters, file.stat().st_size)


def test_weights_of_a_broken_download_are_named(policy: Path) -> None:
    file = policy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{file} has .* bytes, but its header declares"):
        read_weights(policy)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{"]
)
def test_a_file_that_is_no_safetensors_is_named(policy: Path, content: bytes) -> None:
    (policy / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="safetensors"):
        read_weights(policy)


def test_a_shard_that_the_index_lists_must_be_there(policy: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (policy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="lacks model-00002.safetensors"):
        read_weights(policy)


def test_a_policy_without_a_chat_template_is_said(filled: Filled, policy: Path, tmp_path: Path) -> None:
    (policy / "chat_template.jinja").unlink()
    [check] = problems(of(filled(f"policy.model={policy}"), tmp_path))
    assert "lacks a chat template" in check.detail


def test_the_reference_engine_takes_what_vllm_does_not(policy: Path) -> None:
    settings = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(settings | {"head_dim": 16}))
    with pytest.raises(UserFault, match="vLLM on CPU needs head_dim >= 32"):
        check_policy(load_config("atlas", [f"policy.model={policy}"]))
    check_policy(load_config("atlas", [f"policy.model={policy}", "engine.kind=transformers"]))


def test_a_plug_in_with_an_environment_of_its_own_is_not_imported_here(filled: Filled, tmp_path: Path) -> None:
    judge = "judge={type: 'only_there.judge:Judge', runtime_env: {pip: [only-there]}}"
    checks = of(filled(judge), tmp_path)
    assert problems(checks) == []
    [check] = named(checks, "judge")
    assert (check.status, "is checked there" in check.detail) == (Status.NOTE, True)


def test_a_missing_truth_image_is_counted(filled: Filled, data: Path, tmp_path: Path) -> None:
    row = json.loads((data / "train.jsonl").read_text()) | {
        "id": "other",
        "question": "a windmill",
        "gt_image": "images/no.jpg",
    }
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps(row | {"prompt_pool_index": 7}) + "\n")
    found = named(of(filled(), tmp_path), "data")
    assert [c.status for c in found if "missing_image: 1" in c.detail] == [Status.NOTE]


def test_a_truth_image_that_is_no_picture_is_said(filled: Filled, data: Path, tmp_path: Path) -> None:
    (data / "images/case_00000.jpg").write_bytes(b"no picture")
    [check] = problems(of(filled(), tmp_path))
    assert "case_00000.jpg" in check.detail


def test_a_token_that_would_go_unencrypted_is_noted(filled: Filled, tmp_path: Path) -> None:
    config = filled("judge.config.kscore.url=http://judge.example/v1")
    [check] = [c for c in named(of(config, tmp_path), "service") if "judge.example" in c.detail]
    assert (check.status, check.remedy) == (Status.NOTE, "use https")


def test_a_plug_in_that_raises_anything_is_a_line(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from genevolve_ray.tools.web import WebTools

    def broken(config: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(WebTools, "check", broken)
    [check] = problems(of(filled(), tmp_path))
    assert (check.name, "ZeroDivisionError: oh" in check.detail) == ("tools", True)


@pytest.mark.parametrize(("hard", "status"), [(1 << 20, Status.OK), (1024, Status.NOTE), (128, Status.PROBLEM)])
def test_the_files_that_a_gateway_may_open_are_counted(
    monkeypatch: pytest.MonkeyPatch, hard: int, status: Status
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (min(hard, 1024), hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: None)
    check, *_ = limits.descriptors(load_config("atlas", ["gateway.port=0"]))
    assert check.status is status and check.name == "gateway"
    assert limits.descriptors(load_config("atlas")) == []
