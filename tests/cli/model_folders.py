"""A model folder that passes every check without being a model."""

from __future__ import annotations

import json
from pathlib import Path


def model_of(folder: Path, head_dim: int = 32) -> Path:
    """Write a folder that looks like a model, and return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "head_dim": head_dim}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder
