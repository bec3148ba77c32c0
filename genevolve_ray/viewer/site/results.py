"""JSON files of results in the folder of a run or beside runs, read within bounds on any filesystem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genevolve_ray.evolution.status import STATUS_FILE
from genevolve_ray.evolution.store.documents import ROWS_FILE
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.viewer.calibration import read_calibration
from genevolve_ray.viewer.outputs import OutputKind, kind_of, object_of

LARGEST_RESULT = 8 << 20
"""Bytes of a result that are read: one has some tens of thousands."""
_OWN = frozenset({"run.json", "summary.json", STATUS_FILE, ROWS_FILE, "prometheus_targets.json"})
_OWN_PREFIX = "bundle-lift-"
"""Files of a run itself, and those that an ablation keeps in its runs; its own page shows them."""
_MEMORY = "experience"


@dataclass(frozen=True)
class StoredResult:
    """Hold a JSON file.

    Attributes:
        name: its name in the folder.
        kind: the result that it holds, None for none that can be shown.
        content: its object as a dict; for a calibration the record; None where there is no result.
        fault: why there is none to show, as a sentence about the file; "" for a result.
        large: whether it was not read because of its size.
        keys: the keys of an object that is no result.
    """

    name: str
    kind: OutputKind | None
    content: Any
    fault: str = ""
    large: bool = False
    keys: frozenset[str] = frozenset()


def is_json(name: str) -> bool:
    """Return whether a name is that of a JSON file, and not of a hidden one."""
    return name.lower().endswith(".json") and not name.startswith(".")


def read_result(folder: Folder, name: str) -> StoredResult:
    """Return what a JSON file holds. Raises StoreError when it cannot be read at all."""
    size = folder.size(name)
    if size is not None and size > LARGEST_RESULT:
        fault = f"it has {size:,} bytes; a result has at most {LARGEST_RESULT:,}"
        return StoredResult(name, None, None, fault, large=True)
    data = folder.get(name, "result", LARGEST_RESULT)
    try:
        values = object_of(data)
        kind = kind_of(values)
        content = read_calibration(values) if kind is OutputKind.CALIBRATION else values
    except ValueError as error:
        return StoredResult(name, None, None, str(error))
    if kind is None:
        return StoredResult(name, None, None, "it holds no result that has a page", keys=frozenset(values))
    return StoredResult(name, kind, content)


class RunResults:
    """Follow the results that lie in the folder of a run; it is only read, and each file again when it has changed."""

    def __init__(self, folder: Folder) -> None:
        """Name the folder of the run; nothing is read yet."""
        self._folder = folder
        self._known: dict[str, tuple[object, StoredResult]] = {}
        self.memory = False
        """Whether the run has an experience memory, so that its guides can be measured."""
        self.found: tuple[StoredResult, ...] = ()
        """The files, by name."""

    @property
    def shown(self) -> bool:
        """True where there is a result, or a memory whose guides can be measured."""
        return self.memory or any(one.kind is not None for one in self.found)

    def refresh(self) -> bool:
        """Read what is new; return whether anything is. Raises StoreError when the folder cannot be listed."""
        listed = self._folder.entries()
        known: dict[str, tuple[object, StoredResult]] = {}
        for name, size in listed.items():
            if size is not None and is_json(name) and name not in _OWN and not name.startswith(_OWN_PREFIX):
                known[name] = self._look_at(name)
        memory, found = _MEMORY in listed, tuple(one for _, one in known.values())
        new = (memory, found) != (self.memory, self.found)
        self._known, self.memory, self.found = known, memory, found
        return new

    def _look_at(self, name: str) -> tuple[object, StoredResult]:
        """Return the state of a file and what it holds, from the last look where the state is the same."""
        try:
            stamp = self._folder.stamp(name)
            earlier = self._known.get(name)
            if earlier is not None and earlier[0] == stamp:
                return earlier
            return stamp, read_result(self._folder, name)
        except StoreError as error:  # The next look tries again.
            return None, StoredResult(name, None, None, f"it could not be read: {error.__cause__ or error}")
