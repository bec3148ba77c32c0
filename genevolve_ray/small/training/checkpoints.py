"""State of a training on disk: tensors as safetensors and a few numbers as JSON, replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_bytes

if TYPE_CHECKING:
    import torch

_HEADER = "state"
_UNRECORDED = "(unrecorded)"
"""Stands for a value that a checkpoint does not hold, as one that an earlier version began."""


@dataclass
class SmallCheckpoint:
    """Hold what a training needs to go on as if it had not stopped."""

    step: int
    model: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    """The moving average of the model's weights, which is what ships."""
    optimizer: dict[str, Any]
    """The state dict of an AdamW with one group: `state` by parameter number."""
    settings: Mapping[str, Any]
    """What the training was started with; a checkpoint of other settings is refused."""

    def save(self, path: Path) -> None:
        """Write to a file, in one step. Raises OSError where the disk is full; an older checkpoint is then unchanged."""
        tensors = {f"model/{name}": value.contiguous() for name, value in self.model.items()}
        tensors |= {f"average/{name}": value.contiguous() for name, value in self.average.items()}
        for number, moments in self.optimizer["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value.contiguous() for name, value in moments.items()}
        header = {"step": self.step, "settings": dict(self.settings)}
        write_tensors(tensors, path, {_HEADER: json.dumps(header, sort_keys=True)})

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, Any]) -> SmallCheckpoint | None:
        """Return the checkpoint of a file, None where there is none.

        Raises:
            UserFault: if it belongs to a training with other settings, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        kept: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()[_HEADER])
                for name in file.keys():  # noqa: SIM118  the file is no mapping
                    part, _, rest = name.partition("/")
                    kept[part][rest] = file.get_tensor(name)
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise _damaged(path, error) from error
        asked = json.loads(json.dumps(dict(settings)))
        if header["settings"] != asked:
            found = _differences(header["settings"], asked)
            raise UserFault(f"{path}: a training with {found}; remove it to start anew")
        moments: dict[int, dict[str, Any]] = {}
        for name, value in kept["optimizer"].items():
            number, _, rest = name.partition("/")
            moments.setdefault(int(number), {})[rest] = value
        return cls(header["step"], kept["model"], kept["average"], {"state": moments}, header["settings"])


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write tensors as safetensors in one step, so that a file of this name is always whole; return its path.

    safetensors writes files itself, but reports a full disk as an error of its own, and does not sync what it wrote.

    Raises:
        OSError: when it cannot be written.
    """
    from safetensors.torch import save

    return write_bytes(path, save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that a training keeps. Raises UserFault where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _differences(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return what a checkpoint holds and what is asked for, where they differ, as `steps=1, not 2`."""
    names = sorted(name for name in kept.keys() | asked.keys() if kept.get(name) != asked.get(name))
    sides = [[repr(side[name]) if name in side else _UNRECORDED for side in (kept, asked)] for name in names]
    return "; ".join(f"{name}={had}, not {wanted}" for name, (had, wanted) in zip(names, sides, strict=True))


def _damaged(path: Path, error: Exception) -> UserFault:
    return UserFault(f"{path} is damaged ({error}): remove it to make it again")
