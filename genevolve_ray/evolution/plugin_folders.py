"""Classes of a user's own folders: beside the configuration file or in the working folder, without an installation.

Installed packages and the standard library come first: a folder is appended to the import path, and only when a class that
a configuration names lies in it. From then on, other files in it can be imported as well, as the class may do.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_LOG = logging.getLogger(__name__)
VARIABLE = "GENEVOLVE_PLUGIN_FOLDERS"
"""Environment variable with the folders that another process of the run found classes in."""
_beside: dict[Path, None] = {}
_told: set[str] = set()
ELSEWHERE = (
    "on a cluster of several machines, install the package on each of them, or send it: "
    "runtime_env: {py_modules: [FOLDER]}"
)


def look_beside(layers: Iterable[object]) -> None:
    """Look for classes also in the folders of the YAML files among the layers of a configuration, in their order."""
    for layer in layers:
        if isinstance(layer, str) and layer.endswith((".yaml", ".yml")):
            _beside.setdefault(Path(layer).expanduser().resolve().parent)


def folders() -> list[Path]:
    """Return where classes are looked for after the installed packages: beside configuration files, then here."""
    given = [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    return list(dict.fromkeys([*_beside, *given, Path.cwd()]))


def folder_of(module: str) -> Path | None:
    """Return the folder that holds a module, None where none does. Nothing is imported.

    A project folder with a package of its own name counts as well: `painter/painter.py` is found as `painter`.
    """
    top, dot, _ = module.partition(".")
    places = folders()
    for folder in [*places, *(folder / top for folder in places)]:
        if (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file():
            return folder
    # A package without __init__.py.
    return next((folder for folder in places if dot and (folder / top).is_dir()), None)


def classes_in(type_: str, settings: Any) -> Iterator[str]:
    """Yield the class of a plug-in, and those that its settings name by `type`, such as the members of an ensemble."""
    yield type_
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name == "type" and isinstance(value, str) and ":" in value:
                yield value
            else:
                yield from (path for path in classes_in("", value) if path)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from (path for path in classes_in("", value) if path)


def folders_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the environment variable with which another process finds classes, {} where all are installed.

    Args:
        paths: the classes, as `package.module:Class`; registered names belong to installed packages.
    """
    found = [folder_of(path.partition(":")[0]) for path in paths if ":" in path]
    used = dict.fromkeys(str(folder) for folder in found if folder is not None)
    return {VARIABLE: os.pathsep.join(used)} if used else {}


def import_named(module: str) -> ModuleType:
    """Import a module that a configuration names; an installed one comes before one in the folders.

    Raises:
        ImportError: when neither exists, or its own imports fail. Its code may raise anything.
    """
    top = module.partition(".")[0]
    folder, installed = folder_of(module), _spec(top)
    if folder is not None and (installed is None or installed.origin is None) and str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    elif (hidden := shadowed(module)) and top not in _told:
        _told.add(top)
        _LOG.warning("%s", hidden)
    return importlib.import_module(module)


def shadowed(module: str) -> str:
    """Return which file is not used because an installed module has its name, "" where none is."""
    top = module.partition(".")[0]
    folder, spec = folder_of(module), _spec(top)
    if folder is None or spec is None or spec.origin is None:
        return ""
    if spec.has_location and Path(spec.origin).resolve().is_relative_to(folder.resolve()):
        return ""
    own = folder / f"{top}.py"
    return f"{own if own.is_file() else folder / top} is not used: the module {top} of {spec.origin} comes first; rename yours"


def not_found(module: str, error: Exception) -> str:
    """Return where a module that does not exist was looked for, "" for another error."""
    top = module.partition(".")[0]
    if not (isinstance(error, ModuleNotFoundError) and error.name == top):
        return ""
    named = ", ".join(str(folder) for folder in folders())
    return f" (looked in the installed packages, then in {named}; {ELSEWHERE})"


def _spec(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except ValueError:  # A module that was not imported from a file, such as __main__.
        return getattr(sys.modules.get(top), "__spec__", None)
