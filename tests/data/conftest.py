"""The tests of data use the made-up rows of records, the tokenizers of the agent and the tiny model of the engines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for folder in ("records", "agent", "engines"):
    sys.path.append(str(Path(__file__).parents[1] / folder))


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
