"""Weights & Biases, online or offline."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from genevolve_ray.evolution.trackers.pictures import opened
from genevolve_ray.evolution.trackers.port import (
    COLUMNS,
    PictureRow,
    Tracked,
    TrackedRun,
    TrackerError,
    flat,
    imported,
    scalars,
)

_SERVICE = "wandb-core"
"""Name of the process that W&B starts for its uploads."""
_QUIET = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
}
"""Nothing is sent but what a tracker is given: the command line and the console may hold secrets."""


class WandbTracker:
    """Show a run under an id of its own; W&B itself continues it and drops steps that it has."""

    name = "wandb"

    def __init__(self, project: str, mode: str, close_seconds: float) -> None:
        """Name the project and the mode, `online` or `offline`; a start or an end takes `close_seconds` at most."""
        self._project, self._mode = project, mode
        seconds = max(1.0, close_seconds)
        self._limits = {"init_timeout": seconds, "finish_timeout": seconds}
        self.target = f"{mode} {project}"
        self._before: set[psutil.Process] = set()
        self._own: set[psutil.Process] | None = set()

    def begin(self, run: TrackedRun) -> Tracked:
        """Begin or resume a run."""
        self._wandb = imported("wandb", "wandb", "logging.wandb_project")
        self._before, self._own = _services(), None
        folder = {"dir": str(run.folder)} if run.folder is not None and "WANDB_DIR" not in os.environ else {}
        self._run = self._wandb.init(
            project=self._project,
            mode=self._mode,
            id=run.id,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(**_QUIET, **self._limits),
            **folder,
        )
        # W&B has one such process for all its runs of this process: only who started it may kill it.
        self._own = _services() - self._before
        last = max(0, self._run.starting_step - 1) if self._mode == "online" and self._run.resumed else None
        return Tracked(id=self._run.id, address=(self._mode == "online" and self._run.url) or "", last_step=last)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self._run.log(dict(metrics), step=step)

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        """Log a table."""
        cells = [[self._cell(cell) for cell in row.cells] for row in rows]
        self._run.log({"pictures": self._wandb.Table(columns=list(COLUMNS), data=cells)}, step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """Send an alert, which W&B passes on as its user chose."""
        self._run.alert(title=title, text=f"step {step}: {text}")

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Finish the run; without a summary it counts as failed until it is resumed."""
        if summary is not None:
            self._run.summary.update({f"summary/{name}": value for name, value in scalars(flat(summary)).items()})
        self._run.finish(exit_code=0 if summary is not None else 1)

    def abandon(self) -> None:
        """Kill the process of W&B that this run started, for which its exit handler would wait.

        That handler may still need a minute. Of a start that hangs, the processes since its begin are this run's.
        """
        own = self._own if self._own is not None else _services() - self._before
        for service in own:
            with suppress(psutil.NoSuchProcess):
                service.kill()

    def _cell(self, value: Any) -> Any:
        return self._wandb.Image(opened(value)) if isinstance(value, bytes) else value


def _services() -> set[psutil.Process]:
    """Return the processes of W&B below this one."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == _SERVICE:
                found.add(child)
    return found


def check_wandb(mode: str) -> None:
    """Check that W&B can sign in without asking at the terminal. Raises TrackerError naming the variable."""
    if mode != "online" or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = path.is_file() and netrc.netrc(path).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise TrackerError(
            "logging.wandb_project is set with wandb_mode=online, but the environment variable WANDB_API_KEY is not: set "
            "it, or run `wandb login`, or choose logging.wandb_mode=offline"
        )
