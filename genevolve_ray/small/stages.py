"""A setup in stages: each makes one folder from known inputs, once, and is made again only where it has to be.

OUT/manifest.json records, for each stage, the hash of its inputs and every file that it wrote with size and SHA-256. The
inputs of a stage are its own (`SetupStage.inputs`) and the files of the stages that it needs. So:

- A stage whose inputs and files are unchanged is kept.
- A changed input makes the stage again. What depends on it follows only if the new files differ.
- A stage works in OUT/.work/NAME, and its folder appears whole. What a killed stage left there is used by the next try
  if the inputs are the same. What a stage has finished is never made again because it could not be recorded.
- A folder that no setup recorded is never replaced, and files that were added to a recorded one are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Protocol

import filelock

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.manifest import Document
from genevolve_ray.records.base import Record
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.suggestions import meant
from genevolve_ray.small.parts import file_sha256

PRESET_FOLDER = Path("runs/small")
"""The folder of the setup that the preset `small` names."""
MANIFEST = "manifest.json"
_WORK = ".work"
_LOCK = ".lock"
_INPUTS = "inputs.json"
_MADE = "made.json"
_RUN = "run.json"
"""What a folder of a run holds."""
_OF_THE_SETUP = ("parts", "preset", "setup", "stages", "weights")
"""Modules that decide how things are made, and not what they hold."""
_SHOWN = 5
"""Files that a message lists."""


class SetupFault(UserFault):
    """Report a setup that cannot be done as asked; the message names the stage or the folder."""


class MadeFile(Record):
    """Describe a file that a stage wrote."""

    sha256: str
    bytes: int


class MadeStage(Record):
    """Record a finished stage."""

    inputs: dict[str, str]
    """What it was made from, by name: hashes, versions, settings."""
    files: dict[str, MadeFile]
    """Its files by path relative to its folder."""
    seconds: float
    """Time of the try that finished it."""
    finished: str
    """When, ISO 8601 in UTC."""

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> str:
        """The hash of the names and hashes of its files."""
        return _digest({name: file.sha256 for name, file in self.files.items()})


class SetupManifest(Document):
    """Record what the stages of a setup wrote: OUT/manifest.json."""

    from_nothing: bool = False
    """Whether renderer, image tower and cold start are trained here instead of taken from the package."""
    stages: dict[str, MadeStage] = {}


@dataclass(frozen=True)
class StageWork:
    """Give a stage its places and its progress."""

    root: Path
    """The folder of the setup: what the stages that it needs wrote is in `root / NAME`."""
    out: Path
    """What the stage must write, a folder that does not exist yet."""
    kept: Path
    """A place for what a killed stage finds again, unless its inputs changed: checkpoints, or what becomes `out`."""
    progress: Callable[[str, int, int], None]
    """Reports (what, done, total)."""


@dataclass(frozen=True)
class SetupStage:
    """Define one stage."""

    name: str
    """Its name, and that of its folder below the folder of the setup."""
    title: str
    """What it makes, for tables."""
    make: Callable[[StageWork], None]
    """Writes `StageWork.out`; a stage that only checks writes nothing."""
    needs: tuple[str, ...] = ()
    """Stages whose folders it reads; they come before it."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What else it is made from, by name. A change makes the stage again."""
    license: str = ""
    """License of what it makes."""
    always: bool = False
    """Whether it runs at every call: it checks, and writes nothing."""


class SetupScreen(Protocol):
    """Show a setup while it runs."""

    def begin(self, stage: SetupStage, why: str) -> None:
        """Show that a stage begins, and why it is not kept."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the stage."""
        ...

    def end(self, stage: SetupStage, made: MadeStage) -> None:
        """Show a finished stage."""
        ...


class StagedSetup:
    """Hold the stages of a setup and their folder."""

    def __init__(self, stages: Sequence[SetupStage], root: Path, *, from_nothing: bool = False) -> None:
        """Hold stages in an order in which each comes after those that it needs.

        Raises:
            SetupFault: for a stage that needs one which does not come before it.
            StoreError: for a manifest that is corrupt or of another version.
        """
        self.stages = {stage.name: stage for stage in stages}
        self.root, self.from_nothing = root, from_nothing
        seen: set[str] = set()
        for stage in stages:
            if missing := [need for need in stage.needs if need not in seen]:
                raise SetupFault(f"small: stage {stage.name} needs {missing[0]}, which does not come before it")
            seen.add(stage.name)
        self.manifest = read_manifest(root)

    def wanted(self, names: Iterable[str] = ()) -> list[SetupStage]:
        """Return stages with all that they need, in order; no names: every stage. Raises SetupFault for an unknown name."""
        chosen: set[str] = set()
        waiting = list(names) or list(self.stages)
        while waiting:
            name = waiting.pop()
            if name not in self.stages:
                known = list(self.stages)
                raise SetupFault(f"--stage {name}: no such stage{meant(name, known)}; known: {', '.join(known)}")
            chosen.add(name)
            waiting += self.stages[name].needs
        return [stage for stage in self.stages.values() if stage.name in chosen]

    def run(self, screen: SetupScreen, names: Iterable[str] = (), *, check: bool = False) -> list[str]:
        """Make the stages that are missing, changed or damaged, and return their names; those that only check run always.

        Args:
            screen: shows the progress.
            names: only these stages, with those that they need.
            check: also compare every file with its hash; otherwise only with its size.

        Raises:
            SetupFault: for an unknown stage, another setup in the same folder, and a folder that holds a run, or that no
                setup made, where a stage writes.
        """
        wanted = self.wanted(names)
        if (self.root / _RUN).exists():
            raise SetupFault(f"small: {self.root} holds a run: name another folder by --out")
        done: list[str] = []
        with self._locked():
            self.manifest = read_manifest(self.root)  # Another setup may have ended since it was read.
            self._check_places(wanted)
            if self.manifest.from_nothing != self.from_nothing:
                self._record(self.manifest.stages)  # A call that continues a killed one goes the same way.
            for stage in wanted:
                if stage.always or (why := self.outdated(stage, check=check)):
                    screen.begin(stage, "at every call" if stage.always else why)
                    screen.end(stage, self._made(stage, screen))
                    done += [] if stage.always else [stage.name]
        return done

    def outdated(self, stage: SetupStage, *, check: bool = False) -> str:
        """Return why a stage has to be made, "" where what is there is right."""
        made = self.manifest.stages.get(stage.name)
        if made is None:
            return "not made yet"
        inputs = self._inputs(stage)
        if changed := sorted(name for name in {*inputs, *made.inputs} if inputs.get(name) != made.inputs.get(name)):
            return f"changed: {', '.join(changed)}"
        return damage(self.root / stage.name, made, hashes=check)

    def _inputs(self, stage: SetupStage) -> dict[str, str]:
        """Return the inputs of a stage: its own, and the files of the stages that it needs, as far as they are made."""
        made = self.manifest.stages
        return dict(stage.inputs) | {f"stage {need}": made[need].sha256 for need in stage.needs if need in made}

    def _check_places(self, stages: Iterable[SetupStage]) -> None:
        """Check that nothing lies where a stage writes unless a setup made it. Raises SetupFault naming it."""
        foreign = [stage.name for stage in stages if self._is_foreign(stage.name)]
        if foreign:
            raise SetupFault(
                f"small: {self.root} holds {', '.join(foreign)}, which no setup has recorded: "
                "move it away, or name another folder by --out"
            )

    def _is_foreign(self, name: str) -> bool:
        place = self.root / name
        if name in self.manifest.stages or not (place.is_file() or (place.is_dir() and any(place.iterdir()))):
            return False
        made = _finished(self.root / _WORK / name)  # Killed after its folder was moved, before it was recorded.
        return made is None or bool(damage(place, made, hashes=False))

    def _made(self, stage: SetupStage, screen: SetupScreen) -> MadeStage:
        started, inputs = monotonic(), self._inputs(stage)
        scratch = self._scratch(stage, inputs)
        out, place = scratch / "out", self.root / stage.name
        made = None if stage.always else _finished(scratch)
        if made is None or damage(out if out.exists() else place, made, hashes=True):
            shutil.rmtree(out, ignore_errors=True)
            stage.make(StageWork(self.root, out, scratch / "kept", screen.progress))
            made = MadeStage(
                inputs=inputs,
                files=list_files(out),
                seconds=round(monotonic() - started, 1),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            write_bytes(scratch / _MADE, made.model_dump_json().encode())
        if made.files and out.exists():
            self._keep_added(stage.name, out)
            _replace(out, place, scratch / "old")
        old = self.manifest.stages.get(stage.name)
        if not (stage.always and old is not None and old.inputs == made.inputs):
            self._record({**self.manifest.stages, stage.name: made})
        shutil.rmtree(scratch, ignore_errors=True)
        return made

    def _keep_added(self, name: str, out: Path) -> None:
        """Copy files that were added to the folder of a stage into the one that replaces it. Raises SetupFault."""
        place, made = self.root / name, self.manifest.stages.get(name)
        for path in sorted(place.rglob("*")):
            inner = path.relative_to(place)
            if made is None or inner.as_posix() in made.files or not (path.is_file() or path.is_symlink()):
                continue
            if (out / inner).exists():
                raise SetupFault(
                    f"small: {path} was not made by the setup, which now makes a file of this name: move it away"
                )
            (out / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / inner, follow_symlinks=False)

    def _record(self, stages: dict[str, MadeStage]) -> None:
        manifest = SetupManifest(from_nothing=self.from_nothing, stages=stages)
        write_bytes(self.root / MANIFEST, manifest.encode())
        self.manifest = manifest

    def _scratch(self, stage: SetupStage, inputs: Mapping[str, str]) -> Path:
        """Return the folder in which a stage works: that of an earlier try if it had the same inputs, otherwise empty."""
        scratch = self.root / _WORK / stage.name
        encoded = json.dumps(inputs, sort_keys=True).encode()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if (scratch / _INPUTS).read_bytes() == encoded:
                return scratch
        shutil.rmtree(scratch, ignore_errors=True)
        write_bytes(scratch / _INPUTS, encoded)
        return scratch

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.root / _LOCK, timeout=0):
                yield
        except filelock.Timeout as error:
            raise SetupFault(
                f"small: another setup works in {self.root}: wait for it, or name another folder"
            ) from error


def read_manifest(root: Path) -> SetupManifest:
    """Return the manifest of a setup, an empty one where there is none.

    Raises:
        StoreError: for a manifest that is corrupt or of another version.
    """
    try:
        return SetupManifest.decode((root / MANIFEST).read_bytes(), str(root / MANIFEST))
    except FileNotFoundError:
        return SetupManifest()
    except StoreError as error:
        raise StoreError(f"{error}; remove this file and the folders of its stages to make everything again") from error


def list_files(folder: Path) -> dict[str, MadeFile]:
    """Return the files of a folder with size and hash, in the order of their paths; none where there is no folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): MadeFile(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in paths
    }


@cache
def world_code() -> str:
    """Return the hash of the modules that decide what corpus, requests and rows hold, as an input of their stages.

    It covers every module beside those of the setup: making a corpus again takes minutes, and ends there if it is the same.
    """
    modules = [path for path in Path(__file__).parent.glob("*.py") if path.stem not in _OF_THE_SETUP]
    return _digest({path.name: file_sha256(path) for path in modules})


def damage(folder: Path, made: MadeStage, *, hashes: bool) -> str:
    """Return which files of a stage are missing, or have another size or hash, "" where none is."""
    damaged = [name for name, file in made.files.items() if not _same(folder / name, file, hashes)]
    if not damaged:
        return ""
    more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    return f"damaged: {', '.join(damaged[:_SHOWN])}{more}"


def _finished(scratch: Path) -> MadeStage | None:
    """Return the record of a stage that was finished in its scratch folder, None where there is none that is whole."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return MadeStage.model_validate_json((scratch / _MADE).read_bytes())
    return None


def _same(path: Path, file: MadeFile, hashes: bool) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return not hashes or file_sha256(path) == file.sha256


def _replace(new: Path, place: Path, old: Path) -> None:
    """Put a folder into its place. A reader sees the old one, none for an instant, or the new one."""
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
