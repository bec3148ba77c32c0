"""Servers on the loopback for the doctor to ask, and a paper preset whose blanks are filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doctor_services import AskedServer, asked_server

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor import preflight
from genevolve_ray.doctor import run as examine

TOKENS = ("GEMINI_API_KEY", "SERPER_API_KEY")
SECRET = "never-to-be-shown"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy machine without GPU, cluster or tokens, wherever the tests run."""
    monkeypatch.setattr(examine, "diagnose", lambda run_dir: [])
    monkeypatch.setattr(preflight, "find_gpus", list)
    for name in (*TOKENS, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[AskedServer]:
    with asked_server() as server:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three files of made-up rows with their truth images."""
    from PIL import Image
    from published_helpers import bench_row, write_lines

    (tmp_path / "images").mkdir()
    for number, name in enumerate(("train", "validation", "bench")):
        write_lines(tmp_path / f"{name}.jsonl", [bench_row(number)])
        Image.new("RGB", (64, 48), "teal").save(tmp_path / bench_row(number)["gt_image"])
    return tmp_path


@pytest.fixture
def filled(data: Path, server: AskedServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The paper preset with every blank filled in, cut down to this machine: the policy is the atlas's."""
    from importlib import resources

    for name in TOKENS:
        monkeypatch.setenv(name, SECRET)
    folder = resources.files("genevolve_ray.atlas") / "cold_start"
    settings = {
        "policy.model": "genevolve_ray.atlas:cold_start",
        "profile": "atlas",
        "engine.device": "cpu",
        "engine.max_model_len": 2048,
        "learner.device": "cpu",
        "cluster.rollout_gpus": 0,
        "cluster.learner_gpus": 0,
        "cluster.rollout_cpus": 0.1,
        "cluster.learner_cpus": 0.1,
        "experience.embedder.transformers.model": folder,
        "requests.config.paths": [str(data / "train.jsonl")],
        "requests.config.validation_paths": [str(data / "validation.jsonl")],
        "requests.config.heldout_paths": [str(data / "bench.jsonl")],
        "renderer.config.url": [server.url],
        "judge.config.kscore.url": f"{server.url}/v1",
        "judge.config.kscore.model": "seer",
        "summariser.config.url": f"{server.url}/v1",
        "summariser.config.model": "seer",
        "tools.config.serper.url": server.url,
    }

    def build(*more: str) -> RunConfig:
        return load_config("paper", [*(f"{key}={value}" for key, value in settings.items()), *more])

    return build
