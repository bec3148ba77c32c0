"""The command line in this process, and a model folder that passes every check without being a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from genevolve_ray.cli import main
from genevolve_ray.doctor import preflight

# The fakes of the loop are used here too.
sys.path.append(str(Path(__file__).parents[1] / "evolution"))


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def genevolve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line with some arguments."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["genevolve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run on a machine without a GPU, wherever they run."""
    monkeypatch.setattr(preflight, "find_gpus", list)


def model_of(folder: Path, head_dim: int = 32) -> Path:
    """A folder that looks like a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "head_dim": head_dim}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_of(tmp_path / "model")


@pytest.fixture
def narrow_model(tmp_path: Path) -> Path:
    return model_of(tmp_path / "narrow", head_dim=16)
