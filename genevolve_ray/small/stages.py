"""A setup in stages: each makes one folder from known inputs, once, and is made again only where it has to be.

OUT/manifest.json records, for each stage, the hash of its inputs and every file that it wrote with size and SHA-256. The
inputs of a stage are its own (`SetupStage.inputs`) and the files of the stages that it needs. So:

- A stage whose inputs and files are unchanged is kept.
- A changed input makes the stage again. What depends on it follows only if the new files differ.
- A stage works in OUT/.work/NAME, and its folder appears whole. What a killed stage left there is used by the next try
  if the inputs are the same. What a stage has finished is never made again because it could not be recorded.
- What takes hours is made again only with permission, also where only a killed try would be lost.
- A folder that no setup recorded is never replaced, and files that were added to a recorded one are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import filelock

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.manifest import Document
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.suggestions import meant
from genevolve_ray.small.made_files import MadeStage, changes, damage, list_files
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
_OF_THE_SETUP = ("clipart", "made_files", "parts", "preset", "setup", "stages", "weights")
"""Modules that decide how things are made, and not what they hold."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class SetupFault(UserFault):
    """Report a setup that cannot be done as asked; the message names the stage or the folder."""


class SetupManifest(Document):
    """Record what the stages of a setup wrote: OUT/manifest.json."""

    from_nothing: bool = False
    """Whether renderer, image tower and cold start are trained here instead of taken from the package."""
    trainings: dict[str, Any] = {}
    """Settings of these trainings that were asked for, as keys and values; the others are the defaults."""
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
    trains: bool = False
    """Whether it may take hours. It is made again only with permission."""


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


Permit = Callable[[SetupStage, str], bool]
"""Returns whether a training may be made again, for its stage and the reason."""


class StagedSetup:
    """Hold the stages of a setup and their folder."""

    def __init__(
        self,
        stages: Sequence[SetupStage],
        root: Path,
        *,
        from_nothing: bool = False,
        trainings: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold stages in an order in which each comes after those that it needs.

        Args:
            stages: the stages.
            root: the folder of the setup.
            from_nothing: recorded in the manifest, so that a later call goes the same way.
            trainings: recorded with it: settings of the trainings.

        Raises:
            SetupFault: for a stage that needs one which does not come before it.
            StoreError: for a manifest that is corrupt or of another version.
        """
        self.stages = {stage.name: stage for stage in stages}
        self.root, self.from_nothing, self.trainings = root, from_nothing, dict(trainings or {})
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

    def run(
        self, screen: SetupScreen, names: Iterable[str] = (), *, check: bool = False, permit: Permit | None = None
    ) -> list[str]:
        """Make the stages that are missing, changed or damaged, and return their names; those that only check run always.

        Args:
            screen: shows the progress.
            names: only these stages, with those that they need.
            check: also compare every file with its hash; otherwise only with its size.
            permit: asked before a training is made again, or loses what an earlier call had trained; None: never made.

        Raises:
            SetupFault: for an unknown stage, another setup in the same folder, a folder that holds a run, or that no
                setup made, where a stage writes, and a training without permission.
        """
        wanted = self.wanted(names)
        if (self.root / _RUN).exists():
            raise SetupFault(f"small: {self.root} holds a run: name another folder by --out")
        done: list[str] = []
        with self._locked():
            self.manifest = read_manifest(self.root)  # Another setup may have ended since it was read.
            self._check_places(wanted)
            # Before anything is made, as far as it is known by then: the answer may be no.
            permitted = self._ask(self.settled(wanted), check, permit)
            if (self.manifest.from_nothing, self.manifest.trainings) != (self.from_nothing, self.trainings):
                self._record(self.manifest.stages)  # A call that continues a killed one goes the same way.
            for stage in wanted:
                if stage.always or (why := self.outdated(stage, check=check)):
                    if stage.name not in permitted:  # What it needs may have changed meanwhile.
                        self._ask([stage], check, permit)
                    screen.begin(stage, "at every call" if stage.always else why)
                    screen.end(stage, self._made(stage, screen))
                    done += [] if stage.always else [stage.name]
        return done

    def outdated(self, stage: SetupStage, *, check: bool = False) -> str:
        """Return why a stage has to be made, "" where what is there is right."""
        made = self.manifest.stages.get(stage.name)
        if made is None:
            return "not made yet"
        return changes(made.inputs, self._inputs(stage)) or damage(self.root / stage.name, made, hashes=check)

    def repeated(self, stage: SetupStage, *, check: bool = False) -> str:
        """Return why a training would be made again, or would lose what an earlier call had trained; "" where neither."""
        why = self.outdated(stage, check=check) if stage.trains else ""
        scratch = self.root / _WORK / stage.name
        if not why:
            return ""
        begun, made = _begun(scratch), self.manifest.stages.get(stage.name)
        if begun == (inputs := self._inputs(stage)):
            return ""  # It continues: what is repeated was permitted when it began.
        if made is not None:
            return why
        return changes(begun, inputs) if begun is not None else ""

    def _ask(self, stages: Iterable[SetupStage], check: bool, permit: Permit | None) -> set[str]:
        """Return the trainings that are made again with permission. Raises SetupFault for one without."""
        asked = {stage.name: why for stage in stages if (why := self.repeated(stage, check=check))}
        for name, why in asked.items():
            if permit is None or not permit(self.stages[name], why):
                raise SetupFault(
                    f"small: {name} would be trained again ({why}), and what was trained before would be lost: "
                    "undo the change, or permit it by --yes"
                )
        return set(asked)

    def settled(self, stages: Iterable[SetupStage]) -> list[SetupStage]:
        """Return the stages whose inputs are known before any stage is made: nothing that they need is made again."""
        open_stages: set[str] = set()
        settled = []
        for stage in stages:
            if open_stages.isdisjoint(stage.needs):
                settled.append(stage)
            if not open_stages.isdisjoint(stage.needs) or (not stage.always and self.outdated(stage)):
                open_stages.add(stage.name)
        return settled

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
            with _errors_of_the_disk():
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
        manifest = SetupManifest(from_nothing=self.from_nothing, trainings=self.trainings, stages=stages)
        write_bytes(self.root / MANIFEST, manifest.encode())
        self.manifest = manifest

    def _scratch(self, stage: SetupStage, inputs: Mapping[str, str]) -> Path:
        """Return the folder in which a stage works: that of an earlier try if it had the same inputs, otherwise empty."""
        scratch = self.root / _WORK / stage.name
        if _read_inputs(scratch) != inputs:
            shutil.rmtree(scratch, ignore_errors=True)
            write_bytes(scratch / _INPUTS, json.dumps(inputs, sort_keys=True).encode())
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


@cache
def world_code() -> str:
    """Return the hashes of the modules that decide what corpus, requests and rows hold, as an input of their stages.

    It covers every module beside those of the setup: making a corpus again takes minutes, and ends there if it is the same.
    """
    modules = [path for path in Path(__file__).parent.glob("*.py") if path.stem not in _OF_THE_SETUP]
    return json.dumps({path.name: file_sha256(path) for path in modules}, sort_keys=True)


@contextlib.contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """Raise what safetensors says about a full disk, inside of libraries that save models, as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if number := _OS_ERROR.search(str(error)):
            raise OSError(int(number[1]), f"{os.strerror(int(number[1]))} (safetensors)") from error
        raise


def _begun(scratch: Path) -> dict[str, str] | None:
    """Return the inputs of an earlier try that left something in its scratch folder, None where none did."""
    kept = scratch / "kept"
    left = (scratch / _MADE).exists() or (kept.is_dir() and any(kept.iterdir()))
    return _read_inputs(scratch) if left else None


def _read_inputs(scratch: Path) -> dict[str, str] | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        inputs: dict[str, str] = json.loads((scratch / _INPUTS).read_bytes())
        return inputs
    return None


def _finished(scratch: Path) -> MadeStage | None:
    """Return the record of a stage that was finished in its scratch folder, None where there is none that is whole."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return MadeStage.model_validate_json((scratch / _MADE).read_bytes())
    return None


def _replace(new: Path, place: Path, old: Path) -> None:
    """Put a folder into its place. A reader sees the old one, none for an instant, or the new one."""
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
