"""The doctor warns where a run lacks a part of the method that its base has."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.method import method


def own(folder: Path, text: str, *overrides: str) -> RunConfig:
    (folder / "own.yaml").write_text(text)
    return load_config(str(folder / "own.yaml"), overrides)


def said(config: RunConfig) -> list[str]:
    findings = method(config)
    assert {finding.status for finding in findings} <= {Status.NOTE}
    return [f"{finding.detail}; {finding.remedy}" for finding in findings]


@pytest.mark.parametrize("preset", ["paper", "atlas", "small"])
def test_a_preset_and_a_file_that_extends_it_lack_nothing(tmp_path: Path, preset: str) -> None:
    assert said(load_config(preset)) == []
    assert said(own(tmp_path, f"extends: {preset}\nseed: 3\n")) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.ved.coefficient=0", "this run has no VED, paper has learner.ved.coefficient=2"),
        ("learner.kl.coefficient=0", "this run has no KL, paper has learner.kl.coefficient=0.001"),
    ],
)
def test_a_part_that_is_switched_off_is_named_with_the_base_and_its_value(
    tmp_path: Path, override: str, message: str
) -> None:
    [found] = said(load_config("paper", [override]))
    assert found.startswith(message)
    key, _, value = override.partition("=")
    nested = f"{{{key.split('.')[1]}: {{coefficient: {value}}}}}"
    assert said(own(tmp_path, f"extends: paper\nlearner: {nested}\n")) == [found]


def test_a_run_without_experience_names_the_base_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("extends: paper\nseed: 2\n")
    text = "extends: team.yaml\nexperience: {enabled: false}\nlearner: {ved: {coefficient: 0}}\n"
    experience, ved = said(own(tmp_path, text))
    assert experience == (
        f"this run has no experience, {tmp_path / 'team.yaml'} has experience.enabled=true; --set experience.enabled=true"
    )
    assert "learner.ved.coefficient=2" in ved


def test_a_file_without_a_base_is_advised_to_extend_the_paper(tmp_path: Path) -> None:
    parts = "\n".join(f"{role}: {{type: 'a:A'}}" for role in ("requests", "tools", "renderer", "judge"))
    [found] = said(own(tmp_path, f"policy: {{model: m}}\n{parts}\n"))
    assert found == "this run has no experience, VED, KL; `extends: paper` at the head of the file"


def test_a_coefficient_by_gradient_norms_is_named_as_it_is_set(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("extends: atlas\nlearner: {ved: {coefficient: {ratio_to_grpo: 0.5}}}\n")
    [found] = said(own(tmp_path, "extends: team.yaml\nlearner: {ved: {coefficient: 0}}\n"))
    assert f"this run has no VED, {tmp_path / 'team.yaml'} has learner.ved.coefficient={{ratio_to_grpo: 0.5}}" in found
