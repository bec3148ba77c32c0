"""What `genevolve plugins swap` does: ask for another renderer, and tell what became of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.files import Folder
from genevolve_ray.evolution.plugins import RendererSpec, Role
from genevolve_ray.evolution.swaps import Swap, Swaps, SwapState
from genevolve_ray.plugins_check import settings_of, spec_of

_POLL_SECONDS = 0.5


def swap_renderer(
    run: Path, type_: str, overrides: Sequence[str], file: Path | None, runtime_env: str | None, wait: float
) -> bool:
    """Ask a run for another renderer and wait for the outcome; returns False when it was refused.

    What has no environment of its own is loaded here first, with its settings, so that a slip is told at once.

    Raises:
        UserFault, PluginFault: naming the value at fault; nothing was asked then.
    """
    spec = spec_of(Role.RENDERER, type_, settings_of(file, overrides), _environment(runtime_env))
    assert isinstance(spec, RendererSpec)
    if not spec.isolated:
        spec.settings(spec.resolve())
    swaps = swaps_of(run)
    swap = swaps.ask(spec)
    print(f"swap {swap.number} of {run}: {type_} is asked for", flush=True)
    ended = _wait(swaps, swap.number, wait)
    print(_told(ended, run), flush=True)
    return ended.state is not SwapState.REFUSED


def print_swaps(run: Path) -> None:
    """Print the swaps of a run."""
    table = Table("swap", "asked", "renderer", "state", "identity or reason", title=escape(str(run)))
    for swap in swaps_of(run).all():
        said = escape(swap.identity or swap.message)
        table.add_row(str(swap.number), swap.asked, escape(swap.renderer.type), swap.state, said)
    Console().print(table if table.row_count else f"{run}: the renderer was never swapped")


def swaps_of(run: Path) -> Swaps:
    """Return the swaps of a run. Raises UserFault when there is no run."""
    if not (run / "run.json").is_file():
        raise UserFault(f"there is no run at {run}")
    return Swaps(Folder(str(run)))


def _environment(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserFault(f"--runtime-env {text!r} is no YAML") from error
    if not isinstance(value, dict) or not value:
        raise UserFault(f"--runtime-env {text!r}: write a mapping such as {{pip: [diffusers]}}")
    return value


def _wait(swaps: Swaps, number: int, seconds: float) -> Swap:
    """Return a swap once it has ended, or as it is after `seconds`."""
    end = time.monotonic() + seconds
    while (swap := swaps.get(number)).state is SwapState.ASKED and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return swap


def _told(swap: Swap, run: Path) -> str:
    if swap.state is SwapState.DONE:
        return f"swap {swap.number} is done: groups that begin now draw with {swap.identity}"
    if swap.state is SwapState.REFUSED:
        return f"swap {swap.number} was refused, the renderer stays: {swap.message}"
    return (
        f"swap {swap.number} is not carried out yet: the renderer is still coming up, or the run is not going on. "
        f"`genevolve plugins swap {run}` tells what became of it"
    )
