"""What a model folder or its settings cannot do is one line before the start, in the doctor and in every command."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zoo import ZOO, build

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.agent.trained_prompt import PROMPT_FILE
from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.commands.policies import named_policy
from genevolve_ray.config import ConfigError, RunConfig
from genevolve_ray.doctor.machine import Check, Status
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.doctor.run import examine
from genevolve_ray.errors import UserFault

Animal = Callable[[str], Path]
ConfigOf = Callable[..., RunConfig]


@pytest.fixture
def copy(animal: Animal, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of a species with changes in its `config.json`."""

    def make(name: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(animal(name), tmp_path / name))
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def problems(config: RunConfig, tmp_path: Path) -> list[Check]:
    return [check for check in examine(config, tmp_path / "run") if check.status is Status.PROBLEM]


def assert_refused(config: RunConfig, tmp_path: Path, name: str, *said: str) -> None:
    """The doctor, without --deep, has one problem of this name, and a run does not start; both say the same."""
    [check] = problems(config, tmp_path)
    with pytest.raises(UserFault) as fault:
        preflight(config, local=True)
    assert check.name == name
    for text in said:
        assert text in check.detail and text in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_tokenizer_larger_than_the_embedding(copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path) -> None:
    folder = copy("qwen3")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"] - 2
    folder = build("qwen3", tmp_path / "small", vocab_size=rows)
    assert_refused(config_of(folder), tmp_path, "policy", f"but the model embeds {rows}", f"(id {rows})")
    with pytest.raises(UserFault, match=f"embeds {rows}"), named_policy(str(folder), config_of(folder)):
        pass


def test_an_embedder_with_a_tokenizer_larger_than_its_embedding(
    animal: Animal, config_of: ConfigOf, tmp_path: Path
) -> None:
    size = json.loads((animal("qwen3") / "config.json").read_text())["vocab_size"]
    folder = build("qwen3", tmp_path / "small", vocab_size=size - 2)
    embedder = "experience.embedder={kind: transformers, transformers: {model: '%s'}}"
    good, bad = (config_of(animal("qwen3"), "experience.enabled=true", embedder % f) for f in (animal("qwen3"), folder))
    assert problems(good, tmp_path) == []
    assert_refused(bad, tmp_path, "embedder", "experience.embedder.transformers.model", f"embeds {size - 2}")


def test_fine_tuning_a_tokenizer_larger_than_the_embedding(
    genevolve: Callable[..., Any], animal: Animal, tmp_path: Path
) -> None:
    from published_helpers import sft_row, write_lines

    rows = write_lines(tmp_path / "rows.jsonl", [sft_row(0)])
    size = json.loads((animal("qwen3") / "config.json").read_text())["vocab_size"]
    folder = build("qwen3", tmp_path / "small", vocab_size=size - 2)
    code, _, err = genevolve("sft", rows, "--model", folder, "--out", tmp_path / "out")
    last = err.splitlines()[-1]
    assert (code, last.startswith("error: "), "Traceback" in err) == (2, True, False)
    assert f"embeds {size - 2}" in last


def test_a_model_without_a_chat_template(copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path) -> None:
    folder = copy("qwen3")
    (folder / "chat_template.jinja").unlink()
    assert_refused(config_of(folder), tmp_path, "policy", "lacks a chat template")
    with pytest.raises(UserFault, match="lacks a chat template"), named_policy(str(folder), config_of(folder)):
        pass


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no chats') }}", "TemplateError: no chats"),
        ("{% for m in messages %}{{ m.nothing.there }}{% endfor %}", "UndefinedError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "must end an assistant turn"),
    ],
)
def test_a_template_that_cannot_be_used(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path, template: str, said: str
) -> None:
    folder = copy("qwen3")
    (folder / "chat_template.jinja").write_text(template)
    assert_refused(config_of(folder), tmp_path, "policy", said)


def test_a_file_that_no_checkpoint_could_copy(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, access = copy("qwen3"), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path).name != "LICENSE")
    assert_refused(config_of(folder), tmp_path, "policy", f"{folder / 'LICENSE'} cannot be read")


def test_a_tokenizer_that_loses_text(copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path) -> None:
    folder = copy("qwen3")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    assert_refused(config_of(folder), tmp_path, "policy", "does not keep text", "Heron")


def test_a_tokenizer_that_is_no_tokenizer(copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path) -> None:
    folder = copy("qwen3")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Other"}}')
    assert_refused(config_of(folder), tmp_path, "policy", f"the tokenizer in {folder} cannot be used")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("qwen3", {"model_type": "of_tomorrow"}, "of_tomorrow"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("qwen3", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("gemma3", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"),
    ],
)
def test_a_model_that_cannot_be_computed_alike(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    folder = copy(name, **changes)
    assert_refused(config_of(folder), tmp_path, "policy", said, "config.json")


def test_a_factor_that_follows_the_length_needs_the_reference_engine(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path
) -> None:
    folder = copy("qwen3", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    assert_refused(config_of(folder, "engine.kind=vllm"), tmp_path, "policy", "rope_type dynamic")
    assert problems(config_of(folder), tmp_path) == []


def test_renamed_tensors_are_not_streamed(animal: Animal, config_of: ConfigOf, tmp_path: Path) -> None:
    gloo = ("engine.kind=vllm", "cluster.weights=gloo")
    assert_refused(config_of(animal("mixtral"), *gloo), tmp_path, "policy", "cluster.weights=gloo", "mixtral")
    assert problems(config_of(animal("qwen3-moe"), *gloo), tmp_path) == []


@pytest.mark.parametrize(("name", "asked", "limit"), [("qwen3", 4096, 2048), ("qwen3-yarn", 4096, 2048)])
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_a_context_longer_than_the_models_positions(
    animal: Animal, config_of: ConfigOf, tmp_path: Path, kind: str, name: str, asked: int, limit: int
) -> None:
    config = config_of(animal(name), f"engine.kind={kind}", f"engine.max_model_len={asked}")
    assert_refused(config, tmp_path, "context", f"engine.max_model_len={asked}", f"supports only {limit}")


def test_a_rollout_is_checked_by_its_own_engine(copy: Callable[..., Path], config_of: ConfigOf) -> None:
    folder = copy("qwen3", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    with named_policy(str(folder), config_of(folder)) as source:
        assert source is not None
    other = config_of(folder, "engine.kind=vllm")
    with pytest.raises(UserFault, match=r"--policy: .*engine\.kind=transformers"), named_policy(str(folder), other):
        pass


def test_pictures_for_a_model_without_sight_or_without_a_processor(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path
) -> None:
    pictures = ("engine.kind=vllm", "engine.vllm.max_images=2")
    assert_refused(config_of(copy("qwen3"), *pictures), tmp_path, "policy", "engine.vllm.max_images=2", "does not see")
    folder = copy("qwen3-vl")
    assert problems(config_of(folder, *pictures), tmp_path) == []
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    assert_refused(config_of(folder, *pictures), tmp_path, "policy", "patch_size=14", "vision_config.patch_size=16")
    (folder / "preprocessor_config.json").unlink()
    assert_refused(config_of(folder, *pictures), tmp_path, "policy", f"{folder} has no image processor")


@pytest.mark.parametrize("name", [name for name, species in ZOO.items() if species.vision is not None])
def test_models_that_see_pass_with_both_engines(
    animal: Animal, config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for engine in ("vllm", "transformers"):
        assert problems(config_of(animal(name), f"engine.kind={engine}"), tmp_path) == []
    # Without torchvision vLLM samples from no model that sees.
    monkeypatch.setattr(metadata, "version", {}.__getitem__)
    monkeypatch.setattr(metadata, "PackageNotFoundError", KeyError)
    assert_refused(config_of(animal(name), "engine.kind=vllm"), tmp_path, "policy", "torchvision", "make setup")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2.5-vl", "publish=merged sends full weights"),
        ("qwen3-moe", "mlp.experts is a Qwen3MoeExperts, not a Linear"),
    ],
)
def test_an_adapter_that_cannot_be_published_or_attached(
    animal: Animal, config_of: ConfigOf, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UserFault, match=said):
        evolve_run(config_of(animal(name), "learner.lora={rank: 2, alpha: 4}"), tmp_path / "run", in_process=True)


def test_a_profile_with_a_date_needs_one(
    animal: Animal, config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "zoo", PROFILES["zoo"].model_copy(update={"append_date": True}))
    assert_refused(config_of(animal("qwen3")), tmp_path, "date", "profile=zoo", "date=YYYY-MM-DD")
    preflight(config_of(animal("qwen3"), "date=2024-02-29"), local=True)
    with pytest.raises(ConfigError, match=r"date='2024-02-30': write a day as YYYY-MM-DD"):
        config_of(animal("qwen3"), "date='2024-02-30'")


def test_a_template_that_forbids_two_user_messages_needs_the_last_step_as_a_note(
    animal: Animal, config_of: ConfigOf, tmp_path: Path
) -> None:
    own_turn = "profile={extends: zoo, name: own-turn, final_step_as: turn}"
    said = ("forbids two user messages in a row", "final_step_as: note")
    assert_refused(config_of(animal("gemma"), own_turn), tmp_path, "policy", *said)
    with pytest.raises(UserFault, match=said[0]), named_policy(str(animal("gemma")), config_of(Path("x"), own_turn)):
        pass
    preflight(config_of(animal("gemma")), local=True)
    preflight(config_of(animal("qwen3"), own_turn), local=True)


def test_a_policy_with_other_words_than_the_profile_is_a_note(
    copy: Callable[..., Path], config_of: ConfigOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("qwen3")
    (folder / PROMPT_FILE).write_text("Other words.\nHere.\n")
    notes = [check for check in examine(config_of(folder), tmp_path / "run") if check.name == "system prompt"]
    assert [check.status for check in notes] == [Status.NOTE]
    assert "line 1 is 'Other words.'" in notes[0].detail
    preflight(config_of(folder), local=True)
    assert "fine-tuned on another system prompt" in caplog.text
    same = f"profile={{extends: zoo, name: same, prompt: {folder / PROMPT_FILE}}}"
    assert not [c for c in examine(config_of(folder, same), tmp_path / "run") if c.name == "system prompt"]
