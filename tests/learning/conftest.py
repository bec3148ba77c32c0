"""A tiny Qwen3 for the learning tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_qwen3_policy import tiny_model
from transformers import Qwen3ForCausalLM


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    """Return a fresh tiny model."""
    return tiny_model()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model in HF layout."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model whose head is not its embedding."""
    folder = tmp_path_factory.mktemp("untied")
    tiny_model(tied=False).save_pretrained(folder)
    return folder
