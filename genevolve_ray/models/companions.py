"""The files of a model folder besides its weights: configuration, tokenizer, template, processors, licence.

They belong to whoever made the model. A checkpoint gets copies of them, byte for byte, and never a version that a
library has read and written again: some files can be read but not written, and others are not read at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

CONFIG_FILE = "config.json"
_WEIGHT_SUFFIXES = frozenset(
    {
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".gguf",
        ".onnx",
        ".onnx_data",
        ".npz",
        ".ot",
        ".tflite",
    }
)
_INDEX_SUFFIX = ".index.json"
_ADAPTER_CONFIG = "adapter_config.json"
_FOREIGN = (CONFIG_FILE, "run.json", "model_index.json")
"""Files that mark a folder inside a model folder as a model, run or pipeline of its own."""
_CLOCK = "strftime_now"
"""Function by which a chat template asks for today's date."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


def companion_files(folder: str | Path) -> Iterator[Path]:
    """Yield the paths, relative to a model folder, of all its files that are not weights.

    Hidden files, and folders inside that are models or runs of their own, are left out.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            if not _is_weights(path.name):
                yield Path(path.name)
        elif path.is_dir() and not path.is_symlink() and not any((path / name).is_file() for name in _FOREIGN):
            yield from (Path(path.name) / inner for inner in companion_files(path))


def _is_weights(name: str) -> bool:
    return Path(name).suffix.lower() in _WEIGHT_SUFFIXES or name.endswith(_INDEX_SUFFIX) or name == _ADAPTER_CONFIG


def check_companions(folder: str | Path) -> None:
    """Check that the files which checkpoints will copy can be read. Raises PermissionError naming the first that cannot.

    Otherwise a run would end at its first checkpoint, and fine-tuning after its last step.
    """
    for name in companion_files(folder):
        if not os.access(Path(folder) / name, os.R_OK):
            raise PermissionError(f"{Path(folder) / name} cannot be read, but belongs to every checkpoint")


def copy_companions(source: str | Path, target: str | Path, *, config: bool = True) -> None:
    """Copy the files of a model folder besides its weights, unchanged, over those of the same names.

    Args:
        source: the model folder.
        target: an existing folder.
        config: whether `config.json` is copied; it describes weights that a folder of an adapter does not hold.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    own = Path(target).resolve()
    inside = own.is_relative_to(Path(source).resolve())
    for name in list(companion_files(source)):
        old, new = Path(source) / name, Path(target) / name
        if (str(name) == CONFIG_FILE and not config) or (inside and old.resolve().is_relative_to(own)):
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, new)


def copy_config(source: str | Path, target: str | Path, dtype: str) -> None:
    """Copy `config.json`, changed only in the dtype that it states for the weights.

    Raises:
        FileNotFoundError, ValueError: when it is missing or not a JSON object.
    """
    config = json.loads((Path(source) / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{Path(source) / CONFIG_FILE} must hold a JSON object, got {type(config).__name__}")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _DTYPE_KEYS:
            if key in part:
                part[key] = dtype
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (Path(target) / CONFIG_FILE).write_text(text, encoding="utf-8")


def prints_date(folder: str | Path) -> bool:
    """Return whether the chat template of a model folder asks for today's date."""
    root = Path(folder)
    texts = [root / "tokenizer_config.json", *root.glob("*chat_template*")]
    return any(_CLOCK in path.read_text(encoding="utf-8", errors="replace") for path in texts if path.is_file())
