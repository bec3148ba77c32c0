"""Sources of the site, found by their paths: runs, outputs of jobs, data builds, results, and gateways by their addresses."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, cast

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.status import STATUS_FILE, RunStatus, read_status
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.secrets import redacted
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.pictures import PictureFiles
from genevolve_ray.viewer.site.results import RunResults, StoredResult, is_json, read_result

_LARGEST_STATUS = 1 << 20
"""Bytes of the state of a run that are read: it has 50 notes, and is read every second."""
_RESERVED = frozenset({"static"})
"""First parts of addresses that belong to the site itself."""
_FILES = "the JSON file of an ablation, of lifts, of a calibration or of a suite, or, on a local disk, a trajectory_structured.json"
_TRAJECTORY = frozenset({"case_id", "user_prompt", "steps"})
"""Fields of which a trajectory file has some, and no other file."""
T = TypeVar("T")


class SourceKind(StrEnum):
    """Name the kinds of what can be looked at."""

    RUN = "run"
    """A run of `genevolve evolve`, going or done."""
    JOB = "job output"
    """Results of `genevolve rollout`, `render`, `judge`, `score`, `rescore` or `bench`."""
    BUILD = "data build"
    """A folder of `genevolve data build`."""
    GATEWAY = "gateway"
    """A gateway, by its address."""
    RESULT = "result"
    """The JSON file of an ablation, of lifts, of a calibration or of a suite."""
    STRUCTURED = "trajectory file"
    """A `trajectory_structured.json`, in the form of the authors' page."""


class SourceFault(UserFault, ValueError):
    """Report a path that holds nothing that can be shown; the message names it and says what can be."""


class ViewSource(ABC):
    """Represent something to look at; it is only read."""

    kind: SourceKind

    def __init__(self, name: str, place: str) -> None:
        """Keep the name that pages show, and the path or address without its secrets; `slug` is the name in addresses."""
        self.name, self.place, self.fault = name, redacted(place), ""
        self.slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:60] or "run"

    @property
    def what(self) -> str:
        """The kind as the list of sources shows it."""
        return self.kind.value

    @property
    @abstractmethod
    def revision(self) -> int:
        """A number that changes whenever a page about it may have changed."""

    @abstractmethod
    def refresh(self) -> bool:
        """Read what is new, for a fraction of a second; return whether more is left. Called by one thread at a time."""

    def look(self) -> bool:
        """Call `refresh`, and keep why it cannot read in `fault`; return as it, False where it cannot."""
        try:
            more, fault = self.refresh(), ""
        except (StoreError, OSError, sqlite3.Error) as error:
            more, fault = False, redacted(str(error))
        self.fault = fault
        return more

    def picture(self, sha256: str) -> bytes:
        """Return the encoded bytes of a picture, from a stranger. Raises FileNotFoundError where it has none such."""
        raise FileNotFoundError(f"{self.name} has no picture {sha256[:12]}")

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Release what it holds."""


class RunSource(ViewSource):
    """Represent a run."""

    kind = SourceKind.RUN

    def __init__(self, uri: str, scratch: Path) -> None:
        """Open a run for reading; `scratch` is a folder of its own for the index. Raises StoreError."""
        self.index = RunIndex(uri, scratch)
        super().__init__(self.index.store.root.rstrip("/").rsplit("/", 1)[-1], uri)
        self._pictures = PictureFiles(self.index.run_folder)
        self.results = RunResults(self.index.run_folder)
        self._status: RunStatus | None = None
        self._news = 0
        self._kept: dict[str, tuple[object, object]] = {}

    @property
    def revision(self) -> int:
        """Grows with the index, with what the run says that it does, and with the results in its folder."""
        return self.index.revision + self._news

    @property
    def status(self) -> RunStatus | None:
        """The state that the run has written, None where it has written none."""
        return self._status

    def kept(self, name: str, key: object, make: Callable[[], T]) -> T:
        """Return what `make` returns, from the last call of this name where its `key` was the same."""
        found = self._kept.get(name)
        if found is None or found[0] != key:
            found = self._kept[name] = (key, make())
        return cast("T", found[1])

    def refresh(self) -> bool:
        """Follow the run."""
        folder, status = self.index.run_folder, None
        if folder.size(STATUS_FILE) is not None:
            status = read_status(folder.get(STATUS_FILE, "status", _LARGEST_STATUS))
        if status != self._status:
            self._status = status
            self._news += 1
        self._news += self.results.refresh()
        return self.index.refresh()

    def picture(self, sha256: str) -> bytes:
        """Return a picture of the run."""
        return self._pictures.read(sha256)

    def close(self) -> None:
        """Close the index."""
        self.index.close()


def open_sources(places: Sequence[str], scratch: Path) -> list[ViewSource]:
    """Open what the paths and addresses hold, each once; `scratch` is a folder for the indices.

    Raises:
        SourceFault: for a path that holds nothing that can be shown.
        StoreError: for a run that cannot be read.
    """
    sources: list[ViewSource] = []
    with ExitStack() as undo:
        for place in dict.fromkeys(places):
            for source in _opened(place, scratch):
                undo.callback(source.close)
                sources.append(source)
        undo.pop_all()
    taken = set(_RESERVED)
    for source in sources:
        first, number = source.slug, 2
        # Without regard to case: in a copy they are folders, and some disks do not tell them apart.
        while source.slug.casefold() in taken:
            source.slug, number = f"{first}-{number}", number + 1
        taken.add(source.slug.casefold())
    return sources


def _opened(place: str, scratch: Path) -> list[ViewSource]:
    """Return what a path or an address holds, and for a folder without anything itself, what the folders inside hold."""
    from genevolve_ray.viewer.site.gateway_status import GatewaySource
    from genevolve_ray.viewer.site.outputs import BuildSource, JobSource
    from genevolve_ray.viewer.site.result_file import ResultSource

    if place.startswith(("http://", "https://")):
        return [GatewaySource(place)]
    if (file := _file_at(place)) is not None:
        return [_opened_file(place, *file)]
    folder, kind = Folder(place), _kind_at(place)
    chosen, results = {place: kind}, list[StoredResult]()
    if kind is None or kind is SourceKind.JOB:
        entries = folder.entries()
        found = {folder.address(name): _kind_at(folder.address(name)) for name, size in entries.items() if size is None}
        results = _results_in(folder, [name for name, size in entries.items() if size is not None])
        # Stages of a job lie in folders beside one another and are one output; runs and builds are each their own.
        if {SourceKind.RUN, SourceKind.BUILD} & set(found.values()):
            chosen = found
    sources: list[ViewSource] = []
    for each, of_kind in chosen.items():
        if of_kind is SourceKind.RUN:
            sources.append(RunSource(each, Path(tempfile.mkdtemp(dir=scratch))))
        elif of_kind is not None:
            sources.append((BuildSource if of_kind is SourceKind.BUILD else JobSource)(Path(each)))
    sources += [ResultSource(folder, one) for one in results]
    if not sources:
        raise SourceFault(
            f"{place} holds nothing to show: name the folder of a run (it has a run.json), of a job (NAME.job.json) or of a "
            f"data build (summary.json or stages), a folder of several of them, the address of a gateway, or {_FILES}"
        )
    return sources


def _file_at(place: str) -> tuple[Folder, str] | None:
    """Return the folder and the name of a file at a path, or of a JSON file at a URI, None where there is none."""
    if "://" not in place:
        path = Path(place)
        return (Folder(str(path.parent)), path.name) if path.is_file() else None
    address, mark, options = place.partition("?")
    parent, _, name = address.rpartition("/")
    if not is_json(name):
        return None
    folder = Folder(f"{parent}{mark}{options}")
    return (folder, name) if folder.size(name) is not None else None


def _opened_file(place: str, folder: Folder, name: str) -> ViewSource:
    from genevolve_ray.viewer.site.result_file import ResultSource
    from genevolve_ray.viewer.site.structured_file import StructuredSource

    found = read_result(folder, name)
    if found.kind is not None:
        return ResultSource(folder, found)
    if folder.is_local and _TRAJECTORY & found.keys:
        return StructuredSource(folder.local(name))
    if folder.is_local and found.large:
        with suppress(DataError):  # A trajectory may have more bytes than a result.
            return StructuredSource(folder.local(name))
    raise SourceFault(f"{place} cannot be shown: {found.fault}; of single files, genevolve view shows {_FILES}")


def _results_in(folder: Folder, names: Sequence[str]) -> list[StoredResult]:
    """Return the results among the files of a folder; others are left out, as are those that cannot be read."""
    found = []
    for name in filter(is_json, names):
        with suppress(StoreError):
            found.append(read_result(folder, name))
    return [one for one in found if one.kind is not None]


def _kind_at(address: str) -> SourceKind | None:
    """Return what a folder holds itself, None for nothing that is known."""
    from genevolve_ray.viewer.site.outputs import BuildSource, JobSource

    folder = Folder(address)
    if folder.size("run.json") is not None:
        return SourceKind.RUN
    if not folder.is_local:
        return None
    local = folder.local()
    return next((kind.kind for kind in (BuildSource, JobSource) if kind.holds(local)), None)
