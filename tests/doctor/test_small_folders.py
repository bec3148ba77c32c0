"""Where the folders of the preset `small` are missing, doctor and run name the command that makes them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from genevolve_ray.commands.evolve import demo_run
from genevolve_ray.config import load_config
from genevolve_ray.doctor import settings_tree
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.parts import setup
from genevolve_ray.doctor.preflight import check_setup, preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.small.preset import own_preset
from genevolve_ray.small.stages import PRESET_FOLDER

REMEDY = "genevolve small setup"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_names_the_first_missing_folder_and_the_remedy() -> None:
    with pytest.raises(UserFault, match=rf"policy\.model=runs/small/policy: no such .*: run {REMEDY}"):
        preflight(load_config("small"), local=True)


def test_the_doctor_has_one_finding_for_all_of_them() -> None:
    [check] = setup(load_config("small"))
    assert check.status is Status.PROBLEM and check.remedy == REMEDY
    left = len(settings_tree.unmade(load_config("small")))
    assert left > 5 and f"({left - 1} more are missing)" in check.detail


def test_a_setup_elsewhere_is_named_with_its_folder(tmp_path: Path) -> None:
    preset = own_preset(tmp_path / "elsewhere").path
    config = load_config(str(preset))
    with pytest.raises(UserFault, match=rf"{REMEDY} --out {tmp_path / 'elsewhere'}$"):
        check_setup(config)
    assert [check.remedy for check in setup(config)] == [f"{REMEDY} --out {tmp_path / 'elsewhere'}"]
    assert len(settings_tree.unmade(config)) == len(settings_tree.unmade(load_config("small")))


def test_a_file_over_a_setup_elsewhere_and_parts_of_ones_own_are_told_apart(tmp_path: Path) -> None:
    own_preset(tmp_path / "elsewhere")
    file = tmp_path / "own.yaml"
    file.write_text("extends: elsewhere/small.yaml\npolicy: {model: /models/policy}\n")
    config = load_config(str(file))
    assert settings_tree.setup_folder(config) == tmp_path / "elsewhere"
    assert "policy.model" not in dict(settings_tree.unmade(config))


def test_one_model_of_a_like_name_is_no_setup() -> None:
    config = load_config("small", ["policy.model=/models/policy"])
    assert settings_tree.setup_folder(config) == PRESET_FOLDER
    assert settings_tree.setup_folder(load_config("paper", ["policy.model=/models/policy"])) == PRESET_FOLDER


@pytest.mark.parametrize("above", ["", "me/", "/models/"])
def test_models_of_like_names_are_no_setup(above: str, tmp_path: Path) -> None:
    above = above.replace("/models", str(tmp_path))
    config = load_config(
        "small", [f"policy.model={above}policy", f"experience.embedder.transformers.model={above}embedder"]
    )
    assert settings_tree.setup_folder(config) == PRESET_FOLDER
    assert all(Path(path).is_relative_to(PRESET_FOLDER) for _, path in settings_tree.unmade(config))


def test_nothing_is_said_once_they_are_there() -> None:
    config = load_config("small")
    for _, path in settings_tree.unmade(config):
        Path(path).mkdir(parents=True, exist_ok=True)
    check_setup(config)
    assert setup(config) == []


@pytest.mark.parametrize("preset", ["atlas", "paper"])
def test_other_presets_need_no_setup(preset: str) -> None:
    assert setup(load_config(preset)) == []


def test_the_run_is_not_in_the_folder_of_the_setup() -> None:
    assert Path("runs", load_config("small").name) != PRESET_FOLDER


def test_the_demo_of_small_trains_no_cold_start() -> None:
    with pytest.raises(UserFault, match=r"--cold-start trains that of the preset atlas.*small setup --from-nothing"):
        demo_run(load_config("small"), Path("runs/demo"), cold_start=True, in_process=True)


def test_small_is_the_papers_method_with_other_parts() -> None:
    config, paper = load_config("small"), load_config("paper")
    assert "paper" in config.layers and settings_tree.fill_ins(config) == []
    assert config.learner.ved == paper.learner.ved and config.learner.grpo == paper.learner.grpo
    assert config.learner.kl == paper.learner.kl and config.experience.memory == paper.experience.memory
    assert (config.loop.steps, config.loop.requests_per_step, config.loop.group_size) == (10, 4, 4)


def test_nothing_of_the_atlas_takes_part() -> None:
    config = load_config("small")
    assert [role for role in settings_tree.plugin_roles(config) if "atlas" in config.plugin(role).type] == []
    assert config.policy.model.startswith(str(PRESET_FOLDER)) and config.protocol.name == "small"


def test_the_preset_stays_short() -> None:
    text = (resources.files("genevolve_ray") / "configs" / "small.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
