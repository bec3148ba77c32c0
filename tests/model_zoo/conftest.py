"""A short protocol, so that a random policy of the zoo plays an episode in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from zoo import build

from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor import run as examine

SHORT = PROFILES["atlas"].model_copy(
    update={
        "name": "zoo",
        "max_turns": 2,
        "max_tool_calls": 1,
        "max_prompt_tokens": 1536,
        "max_turn_tokens": 24,
        "max_response_tokens": 120,
    }
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    monkeypatch.setitem(PROFILES, "zoo", SHORT)
    monkeypatch.setattr(examine, "diagnose", lambda run_dir: [])


@pytest.fixture(scope="session")
def animal(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a species, built once."""
    built: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = build(name, tmp_path_factory.mktemp("zoo") / name)
        return built[name]

    return folder


@pytest.fixture
def config_of() -> Callable[..., RunConfig]:
    """Return the configuration of a short run of a folder on the reference engine."""

    def make(folder: Path, *more: str) -> RunConfig:
        return load_config(
            "atlas",
            [
                f"policy.model={folder}",
                "profile=zoo",
                "engine.kind=transformers",
                "engine.max_model_len=null",
                "loop={steps: 1, requests_per_step: 1, group_size: 2, validate_every: 0, checkpoint_every: 1}",
                "heldout.requests=0",
                "experience.enabled=false",
                "learner.ved.coefficient=0",
                "learner.threads=1",
                "cluster={rollout_cpus: 0.1, learner_cpus: 0.1}",
                *more,
            ],
        )

    return make
