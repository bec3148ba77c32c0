"""A folder of a user's own modules, found as a command finds it; nothing of it stays on the import path of the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genevolve_ray.evolution import plugin_folders

PAINTER = """
from genevolve_ray.records.base import Config

class Painter:
    Config = Config
    where = {where!r}

    def __init__(self, config):
        self.identity = "painter/1"

    async def render(self, prompt, references, seed):
        return b""
"""


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Work in a folder, and forget afterwards where classes were looked for and what was imported."""
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir(parents=True, exist_ok=True)
        patch.chdir(folder)
        patch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
        patch.setattr(plugin_folders, "_beside", {})
        patch.setattr(plugin_folders, "_told", set())
        before = set(sys.modules)
        yield folder
        for name in set(sys.modules) - before:
            if not name.startswith("genevolve_ray"):
                del sys.modules[name]


def write_painter(file: Path, where: str = "") -> Path:
    """Write a module with a renderer that knows where it lies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAINTER.format(where=where), encoding="utf-8")
    return file
