"""The folder of a fine-tuning: one training, its states while it runs, and the model once it has ended.

While a training runs, `training/` holds its settings, its rows as digests, and its newest state. A state appears
completely or not at all. The result is moved into place at the end, `sft.json` last: a folder with that file holds a
finished training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from genevolve_ray.errors import UserFault
from genevolve_ray.models.companions import CONFIG_FILE
from genevolve_ray.records.published.files import write_object

PROVENANCE_FILE = "sft.json"
TRAINING_FOLDER = "training"
_SETTINGS, _ROWS, _PROGRESS, _STATE, _RESULT = "settings.json", "rows.json", "progress.json", "state-", "result"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
_HELD = (PROVENANCE_FILE, "provenance.json", CONFIG_FILE, "adapter_config.json")
"""Files that show that a folder holds a model."""
_OVERWRITE = "--overwrite replaces it, or name another --out"
FREE = frozenset(
    {
        *("threads", "device", "token_budget", "packed_rows", "gradient_checkpointing", "offload", "ranks"),
        *("checkpoint_every", "exclude_paths", "heldout_paths", "lora.publish"),
    }
)
"""Settings that may change when a training resumes: they change memory, speed or form, and rows are compared as such."""
_SHOWN = 60
"""Most characters of a value in a message."""


class OccupiedFolder(UserFault):
    """Report that a folder holds another training or a finished model, which is not overwritten unasked."""


def check_unfinished(out: Path) -> None:
    """Check that a folder holds no model. Raises OccupiedFolder naming what shows that it does."""
    if found := next((name for name in _HELD if (out / name).is_file()), None):
        finished = f"a finished training ({found})" if found != CONFIG_FILE else f"a model ({found})"
        raise OccupiedFolder(f"--out {out} holds {finished}: {_OVERWRITE}")


class TrainingFolder:
    """Read and write the folder of one training."""

    def __init__(self, out: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Name the folder and the settings of the training that may resume in it; nothing is written."""
        self.out, self._settings, self._overwrite = out, _flat(settings), overwrite
        self._training = out / TRAINING_FOLDER
        self._lock: filelock.BaseFileLock | None = None

    def check(self) -> None:
        """Check that the folder is free, or holds this training unfinished.

        Raises:
            OccupiedFolder: naming the difference in settings, or the finished model.
        """
        if not self._overwrite:
            self._compare()

    def _compare(self) -> None:
        if not (self._training / _SETTINGS).is_file() or (self.out / PROVENANCE_FILE).is_file():
            check_unfinished(self.out)
            return
        before = _flat(_read(self._training / _SETTINGS))
        for key in sorted(before.keys() | self._settings.keys()):
            old, new = before.get(key), self._settings.get(key)
            if old != new and key not in FREE:
                raise OccupiedFolder(
                    f"--out {self.out} holds another training: {key} was {_short(old)}, now {_short(new)}; {_OVERWRITE}"
                )

    def begin(self, rows: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take the folder for writing, and return the rows of the training that resumes in it, None for a new one.

        With `overwrite` anything but this same training is removed.

        Args:
            rows: a description of the rows, which a new training keeps.

        Raises:
            OccupiedFolder: as `check`, or when another process writes to it.
        """
        self.check()
        self._training.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self._training / ".lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise OccupiedFolder(f"--out {self.out} is being written by another process; stop it first") from error
        if self._overwrite:
            try:
                self._compare()
            except UserFault:
                self._clear()
        if (self._training / _SETTINGS).is_file():
            return self.rows()
        write_object(self._training / _ROWS, rows)
        write_object(self._training / _SETTINGS, self._settings)  # The last of the two: it marks a training.
        return None

    def rows(self) -> dict[str, Any]:
        """Return the rows that the training began with. Raises UserFault naming a file that cannot be read."""
        return _read(self._training / _ROWS)

    def date(self) -> str:
        """Return the day that the templates of this unfinished training print, "" for a new one. Raises as `rows`."""
        if not (self._training / _SETTINGS).is_file():
            return ""
        try:
            self._compare()
        except OccupiedFolder:
            return ""
        return str(self.rows().get("date") or "")

    def _clear(self) -> None:
        """Remove a training or a model, its mark first."""
        names = _written(self.out / PROVENANCE_FILE)
        (self.out / PROVENANCE_FILE).unlink(missing_ok=True)
        (self._training / _SETTINGS).unlink(missing_ok=True)
        for state in self._states():
            shutil.rmtree(state)
        for file in [*(self.out / name for name in names), *(f for p in _WEIGHTS for f in self.out.glob(p))]:
            if file.is_file():
                file.unlink()

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the folder of the newest state and the progress that belongs to it, None before the first.

        Raises:
            UserFault: naming a file that cannot be read.
        """
        states = self._states()
        return (states[-1], _read(states[-1] / _PROGRESS)) if states else None

    def _states(self) -> list[Path]:
        return sorted(path for path in self._training.glob(f"{_STATE}*") if path.suffix != ".new")

    @contextmanager
    def state(self, step: int, progress: Mapping[str, Any]) -> Iterator[Path]:
        """Provide an empty folder for the state after a step, which replaces the last one when the block succeeds."""
        older = self._states()
        target = self._training / f"{_STATE}{step:08d}"
        new = target.with_suffix(".new")
        for left in self._training.glob(f"{_STATE}*.new"):
            shutil.rmtree(left)
        new.mkdir()
        yield new
        write_object(new / _PROGRESS, progress)
        os.rename(new, target)
        _sync(self._training)
        for state in older:
            shutil.rmtree(state)

    @contextmanager
    def result(self) -> Iterator[Path]:
        """Provide an empty folder for the model, whose content is moved into place when the block succeeds."""
        new = self._training / _RESULT
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        for file in sorted(path for path in new.rglob("*") if path.is_file()):
            target = self.out / file.relative_to(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)

    def finish(self, provenance: Mapping[str, Any], name: str = PROVENANCE_FILE) -> None:
        """Write the mark of a finished training, and remove its states."""
        write_object(self.out / name, provenance)
        _sync(self.out)
        self.release()
        shutil.rmtree(self._training, ignore_errors=True)

    def release(self) -> None:
        """Let other processes write to the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()


def model_identity(model_dir: Path) -> str:
    """Return a model folder and a digest of its configuration and of the sizes of its weights.

    Raises FileNotFoundError for a folder without configuration.
    """
    sizes = sorted((file.name, file.stat().st_size) for file in model_dir.glob("*.safetensors"))
    return f"{model_dir.resolve()} ({digest_of((model_dir / CONFIG_FILE).read_bytes(), sizes)})"


def digest_of(*parts: object) -> str:
    """Return a short digest of values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _written(provenance: Path) -> list[str]:
    """Return the files that a finished training names as its own, inside its folder."""
    try:
        names = json.loads(provenance.read_bytes()).get("files", [])
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    names = names if isinstance(names, list) else []
    return [name for name in names if isinstance(name, str) and ".." not in name and not name.startswith("/")]


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object. Raises UserFault naming the file."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserFault(f"{file} cannot be read ({reason}): remove {file.parent} to start again") from error
    if not isinstance(found, dict):
        raise UserFault(f"{file} must hold a JSON object: remove {file.parent} to start again")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _sync(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
