"""The configuration of the README loads, and lacks nothing but what is on the user's own machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genevolve_ray.config import load_config
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.run import examine

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readmes_real_configuration_lacks_models_data_and_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "x")
    [example] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    (tmp_path / "real.yaml").write_text(example, encoding="utf-8")
    checks = examine(load_config(str(tmp_path / "real.yaml")), tmp_path / "run")
    assert {check.name for check in checks if check.status is Status.PROBLEM} == {
        "policy",
        "data",
        "devices",
        "placement",
    }
