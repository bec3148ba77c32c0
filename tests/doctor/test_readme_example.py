"""The configuration of the README is the method, and lacks nothing but what is on the user's own machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genevolve_ray.config import load_config
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.run import examine

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def real(tmp_path: Path) -> str:
    """Return the path of the README's `real.yaml`, its one block of YAML."""
    [example] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    (tmp_path / "real.yaml").write_text(example, encoding="utf-8")
    return str(tmp_path / "real.yaml")


def test_the_readmes_real_configuration_is_the_papers_method(real: str) -> None:
    config, paper = load_config(real), load_config("paper")
    assert config.experience.enabled
    assert (config.learner.ved.coefficient, config.learner.kl.coefficient) == (2.0, 1e-3)
    assert (config.learner.lr, config.loop.steps) == (1e-6, 200)
    assert (config.loop, config.reward, config.sampling) == (paper.loop, paper.reward, paper.sampling)
    assert config.learner.model_copy(update={"lora": None}) == paper.learner
    assert "paper" in config.layers
    assert not [
        check
        for check in examine(config, Path("run"))
        if check.name in ("method", "fill in") and check.status is not Status.OK
    ]


def test_the_readmes_real_configuration_lacks_models_data_and_gpus_alone(
    real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "x")
    checks = examine(load_config(real), tmp_path / "run")
    assert {check.name for check in checks if check.status is Status.PROBLEM} == {
        "policy",
        "embedder",
        "data",
        "devices",
        "placement",
    }
