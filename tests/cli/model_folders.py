"""A model folder that passes every check without being a model."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

COLD_START = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))


def model_of(folder: Path, head_dim: int = 32) -> Path:
    """Write a folder that looks like a model, with a tokenizer and a template but no weights, and return it."""
    folder.mkdir(parents=True)
    config = json.loads((COLD_START / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": head_dim}))
    (folder / "model.safetensors").write_bytes(b"")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(COLD_START / name, folder / name)
    return folder
