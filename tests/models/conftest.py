"""A tiny Qwen3 as the base of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_qwen3_policy import tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model in HF layout."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(folder)
    return folder
