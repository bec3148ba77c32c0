"""Index of a run's trajectories, in SQLite in a temporary file of the viewer; the run itself is only read.

Guided re-draws are a set of their own, so that no training group holds one.

The index follows a run that goes on. A file of a group never changes, so each is read once; a set of trajectories is read
again when its file has changed. A run that was wound back to an earlier step is indexed again.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.errors import GenevolveError
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.manifest import step_name
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.arrow import table_to_trajectories
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.site import queries
from genevolve_ray.viewer.site.columns import IndexedFile, read_columns, read_rows
from genevolve_ray.viewer.site.entries import (
    LARGEST_PAGE,
    PAGE_SIZE,
    REDRAWS,
    TRAINING,
    EntryFilter,
    EntryOrder,
    EntryPage,
    GroupEntry,
    TrajectoryEntry,
    group_address,
    is_address,
    trajectory_address,
)
from genevolve_ray.viewer.site.queries import StoredRow

_GROUP_FILE = re.compile(r"[^/]+\.parquet")
_STEP = re.compile(r"\d{6,}")


class UnknownAddress(GenevolveError, KeyError):
    """Report an address that no entry of the index has."""

    def __str__(self) -> str:
        """Return the message; KeyError would quote it."""
        return str(self.args[0])


@dataclass(frozen=True)
class IndexState:
    """Hold the progress of an index: files read so far, files found, trajectories, and files that could not be read."""

    read: int
    found: int
    trajectories: int
    damaged: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True once every file that was found is read."""
        return self.read >= self.found


class RunIndex:
    """Keep an index of the trajectories of a run: training groups, committed or not yet, guided re-draws, and named sets.

    `refresh` is called by one thread at a time; everything else from any.
    """

    def __init__(self, store_uri: str, folder: Path) -> None:
        """Open a run for reading and begin an empty index in a folder of the viewer.

        Raises:
            StoreError: where there is no run.
        """
        self.store = RunStore.read(store_uri)
        self.run_folder = Folder(store_uri)
        self._path = folder / "index.sqlite"
        self._write = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._damaged: dict[str, str] = {}
        self._found = 0
        self._last: tuple[int, Any] = (0, None)
        self._listed = 0
        self.revision = 0
        """Grows whenever the run or the index has changed."""
        self._clear()

    def close(self) -> None:
        """Close the index; its file stays for the owner of the folder to delete."""
        with self._lock:
            self._write.close()

    # --- following -----------------------------------------------------------------------------------------------------

    def refresh(self, seconds: float = 0.25) -> bool:
        """Read what is new, for about `seconds`; return whether more is left.

        Raises:
            StoreError: when the run cannot be read, or is gone.
        """
        end = time.monotonic() + seconds
        with self._lock:
            self._follow()
            known = dict(self._write.execute("SELECT path, stamp FROM files"))
            listed = list(self._files())
            self._drop_gone(known, {name for name, _, _ in listed})
            waiting = [(n, s, of_set) for n, s, of_set in listed if known.get(n) != s and n not in self._damaged]
            self._found = len(known) + sum(n not in known for n, _, _ in waiting)
            for done, (name, stamp, of_set) in enumerate(waiting):
                if time.monotonic() > end:
                    return done < len(waiting)
                self._add(name, stamp, of_set)
            self._mark_trained()
        return False

    def _follow(self) -> None:
        """Read the manifests of new steps; begin again when the last one that was read has changed."""
        step, stamp = self._last
        if step and self._stamp(step) != stamp:
            self.store = RunStore.read(self.run_folder.uri)
            self._clear()
            step = 0
        if step == 0 or self._stamp(step + 1) is not None:
            self.store.refresh()
        if (last := self.store.last_step) != step:
            self._last = (last, self._stamp(last))
            self.revision += 1

    def _stamp(self, step: int) -> Any:
        """Return what identifies the manifest of a step, None where there is none."""
        return _file_stamp(self.run_folder, f"steps/{step_name(step)}/manifest.json")

    def _files(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, stamp, set) of the files to index, newest step first; steps that are done are not listed again."""
        steps = sorted((int(n) for n in self.run_folder.entries("steps") if _STEP.fullmatch(n)), reverse=True)
        for step in steps:
            if step < self._listed:
                break
            for inner, of_set in (("groups", TRAINING), ("redraws", REDRAWS)):
                folder = f"steps/{step_name(step)}/{inner}"
                for name, size in self.run_folder.entries(folder).items():
                    if size is not None and _GROUP_FILE.fullmatch(name):
                        yield f"{folder}/{name}", str(size), of_set
        for name in current_sets(self.store.trajectory_names()):
            path = f"trajectories/{name}.parquet"
            if (stamp := _file_stamp(self.run_folder, path)) is not None:
                yield path, str(stamp), name

    def _drop_gone(self, known: dict[str, str], listed: set[str]) -> None:
        """Forget groups that were withdrawn, whose samples are drawn again; `known` loses them too."""
        first = f"steps/{step_name(self._listed)}/"
        gone = [name for name in known if name.startswith("steps/") and name >= first and name not in listed]
        with self._transaction() as connection:
            for name in gone:
                queries.forget(connection, name)
                del known[name]
        self.revision += bool(gone)

    def _add(self, name: str, stamp: str, of_set: str) -> None:
        try:
            file = read_columns(self.run_folder, name)
        except StoreError as error:
            if self.run_folder.size(name) is not None:  # A group that was withdrawn meanwhile is no damage.
                self._damaged[name] = str(error)
                self.revision += 1
            return
        with self._transaction() as connection:
            _insert(connection, name, stamp, of_set, file)
        self.revision += 1

    def _mark_trained(self) -> None:
        """Note in which step each group was trained on; called once all files that were found are read."""
        (marked,) = self._write.execute("SELECT coalesce(max(trained), 0) FROM files").fetchone()
        with self._transaction() as connection:
            for manifest in self.store.manifests():
                if manifest.step > marked:
                    paths = [group.path for group in manifest.groups]
                    paths += [str(file["path"]) for file in manifest.loop.get("redraws", ())]
                    rows = ((manifest.step, path) for path in paths)
                    connection.executemany("UPDATE files SET trained = ? WHERE path = ?", rows)
        # Groups may wait for later steps than the next, but none comes to a step before the last committed one.
        self._listed = self.store.last_step

    def _clear(self) -> None:
        self._damaged, self._found, self._last, self._listed = {}, 0, (0, None), 0
        self._write.executescript(queries.SCHEMA)
        self.revision += 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._write.execute("BEGIN")
        with self._write:
            yield self._write

    # --- reading -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that only reads; the tables are those of `queries.SCHEMA`."""
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection

    @property
    def state(self) -> IndexState:
        """The progress of the index."""
        with self.reading() as connection:
            (read,) = connection.execute("SELECT count(*) FROM files").fetchone()
            (rows,) = connection.execute("SELECT count(*) FROM trajectories").fetchone()
        return IndexState(read, max(self._found, read), rows, tuple(self._damaged.values()))

    def search(
        self,
        chosen: EntryFilter | None = None,
        order: EntryOrder = EntryOrder.NEWEST,
        page: int = 1,
        size: int = PAGE_SIZE,
    ) -> EntryPage[TrajectoryEntry]:
        """Return a page of the trajectories that a filter selects; pages beyond the last are empty."""
        size, page = min(max(1, size), LARGEST_PAGE), max(1, page)
        with self.reading() as connection:
            return queries.trajectories(connection, chosen or EntryFilter(), order, page, size)

    def groups(
        self,
        chosen: EntryFilter | None = None,
        order: EntryOrder = EntryOrder.NEWEST,
        page: int = 1,
        size: int = PAGE_SIZE,
    ) -> EntryPage[GroupEntry]:
        """Return a page of the groups of which a filter selects at least one trajectory."""
        size, page = min(max(1, size), LARGEST_PAGE), max(1, page)
        with self.reading() as connection:
            return queries.groups(connection, chosen or EntryFilter(), order, page, size)

    def entry(self, address: str) -> TrajectoryEntry:
        """Return the entry of a trajectory. Raises UnknownAddress."""
        with self.reading() as connection:
            found = queries.entry(connection, address) if is_address(address) else None
        if found is None:
            raise UnknownAddress(f"no trajectory has the address {address[:120]}")
        return found

    def group(self, address: str) -> GroupEntry:
        """Return a group by its address. Raises UnknownAddress."""
        if (found := self.find_group(address)) is None:
            raise UnknownAddress(f"no group has the address {address[:120]}")
        return found

    def find_group(self, address: str) -> GroupEntry | None:
        """Return a group by its address, None where there is none."""
        with self.reading() as connection:
            return queries.group(connection, address) if is_address(address) else None

    def trained_group(self, step: int, request_id: str) -> str:
        """Return the address of the group of a request that a step trained on; it may have been leased in an earlier round.

        Before that group is indexed, the address is that of a group of the step's own round.
        """
        with self.reading() as connection:
            found = queries.trained_group(connection, step, request_id, TRAINING)
        return found or group_address(TRAINING, step, request_id)

    def load(self, address: str) -> Trajectory:
        """Return a whole trajectory.

        Raises:
            UnknownAddress: for an address without an entry.
            StoreError: when its file is missing or corrupt.
        """
        with self.reading() as connection:
            place = queries.place(connection, address) if is_address(address) else None
        if place is None:
            raise UnknownAddress(f"no trajectory has the address {address[:120]}")
        return self._whole([place])[address]

    def load_group(self, address: str) -> dict[str, Trajectory]:
        """Return the whole trajectories of a group by their addresses, in its order; each file is read once.

        Raises:
            UnknownAddress: for an address without a group.
            StoreError: when a file is missing or corrupt.
        """
        with self.reading() as connection:
            places = queries.places(connection, address) if is_address(address) else []
        if not places:
            raise UnknownAddress(f"no group has the address {address[:120]}")
        return self._whole(places)

    def _whole(self, places: Sequence[StoredRow]) -> dict[str, Trajectory]:
        """Return trajectories by their addresses, in the order of `places`. Raises StoreError."""
        found: dict[str, Trajectory] = {}
        for path in {place.path for place in places}:
            stored = sorted((place for place in places if place.path == path), key=lambda place: place.row)
            table = read_rows(self.run_folder, path, [place.row for place in stored])
            try:
                read = table_to_trajectories(table)
            except (ValueError, TypeError, KeyError) as error:
                raise StoreError(f"{self.run_folder.path(path)} holds no trajectories: {error}") from error
            for place, trajectory in zip(stored, read, strict=True):
                if _address_of(trajectory, place.set) != place.address:
                    raise StoreError(f"{self.run_folder.path(path)} was written again: load the page again in a second")
                found[place.address] = trajectory
        return {place.address: found[place.address] for place in places}

    def choices(self) -> Mapping[str, list[Any]]:
        """Return what filters can choose from: `set`, `step`, `outcome` and `tool`, each in its order."""
        with self.reading() as connection:
            return queries.choices(connection)


def current_sets(names: list[str]) -> list[str]:
    """Return the sets of trajectories without the second copies of some: `heldout-final-000008` beside `heldout-final`.

    The newest numbered set is the same as the one without a number; earlier ones are states of the run before it was
    resumed with more steps.
    """
    numbered: dict[str, list[str]] = {}
    for name in names:
        base, _, number = name.rpartition("-")
        if base in names and _STEP.fullmatch(number):
            numbered.setdefault(base, []).append(name)
    copies = {max(found) for found in numbered.values()}
    return [name for name in names if name not in copies]


def _address_of(trajectory: Trajectory, of_set: str) -> str:
    key = trajectory.key
    return trajectory_address(group_address(of_set, key.step, key.request_id), key.sample, key.attempt)


def _file_stamp(folder: Folder, name: str) -> tuple[int, int] | None:
    return folder.stamp(name)


def _insert(connection: sqlite3.Connection, name: str, stamp: str, of_set: str, file: IndexedFile) -> None:
    """Add a file and all of its rows, in place of an earlier state of it."""
    queries.forget(connection, name)
    number = connection.execute("INSERT INTO files (path, stamp) VALUES (?, ?)", (name, stamp)).lastrowid
    for place, row in enumerate(file.rows):
        group = group_address(of_set, row.step, row.request_id)
        address = trajectory_address(group, row.sample, row.attempt)
        queries.add(connection, number, place, of_set, group, address, row)
    connection.executemany(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((number, service, *dict(usage).values()) for service, usage in file.usage.items()),
    )
    connection.executemany("INSERT INTO tokens VALUES (?, ?, ?)", ((number, *pair) for pair in file.tokens.items()))
    connection.executemany(
        "INSERT INTO timings VALUES (?, ?, ?, ?, ?)", ((number, part, *sums) for part, sums in file.timings.items())
    )
