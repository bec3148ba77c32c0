"""What the files in deploy/ and the pages about them say, read by more than one test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml

from genevolve_ray.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())
MANIFESTS = sorted(path for path in DEPLOY.glob("ray*.yaml") if "kind: Ray" in path.read_text())
IMAGES = sorted(path for path in DEPLOY.glob("Dockerfile.*") if not path.name.endswith(".dockerignore"))

_COMMAND = re.compile(r"(?<![\w./-])(?:/[\w./-]+/)?genevolve ((?:[a-z]+ ?)+.*)")


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a manifest."""
    return list(yaml.safe_load_all(path.read_text()))


def ray_document(path: Path) -> dict[str, Any]:
    """Return the RayJob or RayCluster of a manifest."""
    (found,) = [document for document in documents(path) if document["kind"].startswith("Ray")]
    return found


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of the cluster in a RayJob or RayCluster."""
    spec: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
    return spec


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the head group and the worker groups."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `genevolve` command in a file, comments included."""
    if path in MANIFESTS and (entrypoint := ray_document(path)["spec"].get("entrypoint")):
        yield shlex.split(entrypoint)[1:]
    text = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        # A block scalar's entrypoint is read above; a name between backquotes is prose.
        if "entrypoint:" in line or "--run /runs/paper" in line or "`" in line or "pkill" in line:
            continue
        if found := _COMMAND.search(re.sub(r'"\$@"', "", line)):
            try:
                words = shlex.split(found[1], comments=True)
            except ValueError:
                continue
            yield list(_until_operator(words))


def _until_operator(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word in ("&", "&&", "|", ";"):
            return
        yield word.rstrip(",")


def parse(arguments: Sequence[str]) -> Any:
    """Parse a command line with the real command line interface, run nothing, and return its context.

    Typer carries a click of its own, so nothing here names click's classes. Raises its UsageError.
    """
    context = typer.main.get_command(app).make_context("genevolve", list(arguments))
    while hasattr(context.command, "resolve_command"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context
