"""A machine without a GPU, and a model folder that passes every check without being a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import model_of


@pytest.fixture(autouse=True)
def machine(no_gpu: None) -> None:
    """These tests run on a machine without a GPU."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_of(tmp_path / "model")
