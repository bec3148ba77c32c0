"""A tiny policy folder for the tests of data."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random Qwen3 whose tokenizer has a chat template."""
    from agent_fakes import CHATML
    from tiny_qwen3 import build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("policy")
    build_model(folder, seed=0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder
