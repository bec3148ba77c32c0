"""Outputs of commands that have a page, recognized by the files they consist of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from genevolve_ray.data.build.publishing import SUMMARY
from genevolve_ray.errors import UserFault

ROLLED, JUDGED = ("results.json", "results.jsonl"), ("results_eval.json", "results_eval.jsonl")
"""Files of rows that were rolled out or rendered, and that were judged."""
STAGES = ("judge", "render", "agent")
"""Folders of a benchmark's stages, the last stage first."""
_MAX_BYTES = 256 << 20


class OutputKind(StrEnum):
    """Name the outputs that `genevolve report` shows."""

    RUN = "run"
    """The folder of a run (`run.json`)."""
    DATA = "data set"
    """A published data set (`summary.json` with parts)."""
    BENCH = "benchmark"
    """The folder of a benchmark, with one folder for each stage."""
    JUDGMENTS = "judgments"
    """Judged rows (`results_eval.json`) of `genevolve judge` or `rescore`."""
    PICTURES = "rendered rows"
    """Rendered rows (`results.json`)."""
    ROLLOUTS = "rollouts"
    """Rows that the agent answered (`results.json`)."""
    ABLATION = "ablation"
    """The JSON file of `genevolve ablate`."""
    LIFT = "lifts of guides"
    """The JSON file of `genevolve experience lift`."""
    CALIBRATION = "calibration"
    """The JSON file of `genevolve experience calibrate`."""
    SUITE = "suite result"
    """The JSON file of `genevolve bench atlas`."""


@dataclass(frozen=True)
class Output:
    """Describe an output: its kind, its place, and the files of its rows, the one with the last stage first."""

    kind: OutputKind
    path: Path
    rows: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the output."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def stages(self) -> tuple[Path, ...]:
        """Folders that paths of rows may be relative to."""
        return (*(folder for name in STAGES if (folder := self.folder / name).is_dir()), self.folder)


def recognize(path: Path) -> Output:
    """Return which output a path holds.

    Raises:
        UserFault: when it does not exist, is none of them, or is a JSON file that cannot be read.
    """
    if not path.exists():
        raise UserFault(f"genevolve report: {path} does not exist")
    if path.is_file() and path.name in (*ROLLED, *JUDGED):
        return _of_rows(path, path)
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise UserFault(
            f"genevolve report: {path} is no output that has a page. It takes the folder of a run (run.json), of a data "
            "set (summary.json with parts), of a benchmark (folders agent, render, judge), of rollouts, renderings or "
            "judgments (results.json, results_eval.json), or the JSON file of an ablation, of lifts, of a calibration or of a suite"
        )
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises UserFault for a file that is too large, broken, or no object."""
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise UserFault(f"genevolve report: {path} has {size:,} bytes; an output has at most {_MAX_BYTES:,}")
    try:
        return object_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserFault(f"genevolve report: {path} cannot be shown: {error}") from error


def object_of(data: bytes) -> dict[str, Any]:
    """Return the object that JSON holds. Raises ValueError for anything else, with a sentence about the file."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not an object")
    return found


def kind_of(found: Mapping[str, Any]) -> OutputKind | None:
    """Return which result an object of a JSON file is, None for none that has a page."""
    kinds: dict[OutputKind, Callable[[Mapping[str, Any]], bool]] = {
        OutputKind.ABLATION: lambda found: isinstance(found.get("arms"), dict),
        OutputKind.LIFT: lambda found: isinstance(found.get("policies"), dict) and "step" in found,
        OutputKind.CALIBRATION: lambda found: isinstance(found.get("rows"), list) and "recommended" in found,
        OutputKind.SUITE: lambda found: "reward_mean" in found and isinstance(found.get("rewards"), dict),
    }
    return next((kind for kind, fits in kinds.items() if fits(found)), None)


def _of_folder(path: Path) -> Output | None:
    if (path / "run.json").is_file():
        return Output(OutputKind.RUN, path)
    if (path / SUMMARY).is_file() and "parts" in read_object(path / SUMMARY):
        return Output(OutputKind.DATA, path)
    stages = [file for name in STAGES for kinds in (JUDGED, ROLLED) if (file := _first(path / name, kinds))]
    if stages:
        return Output(OutputKind.BENCH, path, tuple(stages))
    if file := _first(path, (*JUDGED, *ROLLED)):
        return _of_rows(path, file)
    return None


def _of_rows(path: Path, file: Path) -> Output:
    if file.name in JUDGED:
        return Output(OutputKind.JUDGMENTS, path, (file,))
    # A renderer states the result of every row; an agent does not.
    rendered = b'"image_status"' in _start(file)
    return Output(OutputKind.PICTURES if rendered else OutputKind.ROLLOUTS, path, (file,))


def _of_file(path: Path) -> Output | None:
    if path.suffix != ".json":
        return None
    kind = kind_of(read_object(path))
    return None if kind is None else Output(kind, path)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _start(file: Path, size: int = 1 << 20) -> bytes:
    with file.open("rb") as opened:
        return opened.read(size)
