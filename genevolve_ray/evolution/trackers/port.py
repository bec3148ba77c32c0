"""The port of trackers: what the run store's steps become on a page that people watch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.telemetry.config import PrometheusConfig, TracesConfig
from genevolve_ray.records.base import Config

COLUMNS = ("request", "best", "best reward", "worst", "worst reward", "truth", "rationale")
"""The columns of a picture table."""
COMMITTED = "committed_step"
"""Metric that every tracker has of every step: the step itself, by which a tracker knows what it has."""


class LoggingConfig(Config):
    """Configure what shows a run besides its own folder: trackers, Prometheus and traces; none by default.

    None of them ends or delays a run.
    """

    tensorboard: str = ""
    """Folder for TensorBoard's event files, each run in a subfolder of its own; empty switches it off."""
    wandb_project: str = ""
    """Weights & Biases project; empty switches it off. The key is read from `WANDB_API_KEY`, or from `wandb login`."""
    wandb_mode: str = Field(default="online", pattern="^(online|offline)$")
    """`online`, or `offline` to write local files only, below the run's folder (`WANDB_DIR` changes that)."""
    mlflow_experiment: str = ""
    """MLflow experiment; empty switches it off. `MLFLOW_TRACKING_TOKEN`, or `_USERNAME` and `_PASSWORD`, sign in."""
    mlflow_uri: str = ""
    """Address of MLflow's server or store; empty: `MLFLOW_TRACKING_URI`, or MLflow's own default."""
    trackio_project: str = ""
    """trackio project; empty switches it off. It is local, or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` say."""
    pictures_every: int = Field(default=10, ge=0)
    """Steps between tables of best and worst pictures; 0: none."""
    pictures: int = Field(default=8, ge=1, le=64)
    """Groups of a table, the first ones of the step."""
    picture_side: int = Field(default=256, ge=32, le=1024)
    """Longer side of a table's pictures in pixels; larger ones are scaled down."""
    close_seconds: float = Field(default=15.0, ge=0)
    """Seconds that the end of a run waits for all trackers together; what is not written then is counted."""

    prometheus: PrometheusConfig | None = None
    """Live metrics for Prometheus; `{}` serves them with the defaults."""
    traces: TracesConfig | None = None
    """Traces for OpenTelemetry; `{}` exports them as the standard variables `OTEL_EXPORTER_OTLP_*` say."""

    @field_validator("mlflow_uri")
    @classmethod
    def _without_password(cls, value: str) -> str:
        if "@" in urlsplit(value).netloc:
            raise ValueError(
                "logging.mlflow_uri holds a user or a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return value

    @property
    def chosen(self) -> dict[str, str]:
        """The trackers that are switched on, by name, with the key that does so."""
        keys = {
            "tensorboard": "tensorboard",
            "wandb": "wandb_project",
            "mlflow": "mlflow_experiment",
            "trackio": "trackio_project",
        }
        return {name: f"logging.{key}" for name, key in keys.items() if getattr(self, key)}


@dataclass(frozen=True)
class TrackedRun:
    """Describe a run to its trackers.

    Attributes:
        name: its name, which other runs may have.
        id: its id, which no other run has and which stays when it is resumed.
        config: its resolved configuration without secrets.
        folder: a local folder for files of trackers, None where the run is stored elsewhere.
    """

    name: str
    id: str
    config: Mapping[str, Any]
    folder: Path | None = None


@dataclass(frozen=True)
class Tracked:
    """Say where a tracker shows a run.

    Attributes:
        id: the tracker's own id of the run.
        address: where it is shown, as text.
        last_step: the last step that the tracker has, None where it cannot tell.
    """

    id: str
    address: str = ""
    last_step: int | None = None


@dataclass(frozen=True)
class PictureRow:
    """Hold the best and the worst attempt at a request; pictures are small PNG files, None where there is none."""

    request: str
    best: bytes | None
    best_reward: float
    worst: bytes | None
    worst_reward: float
    truth: bytes | None
    rationale: str

    @property
    def cells(self) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        return (
            self.request,
            self.best,
            self.best_reward,
            self.worst,
            self.worst_reward,
            self.truth,
            self.rationale,
        )


class Tracker(Protocol):
    """Adapt a tracker. One thread calls it, and any error of a call is counted there (`background`).

    Attributes:
        name: its name, the one of its extra and of its file in a run.
        target: where it writes, as text: what it wrote elsewhere before does not count.
    """

    name: str
    target: str

    def begin(self, run: TrackedRun) -> Tracked:
        """Begin a run, or continue it; the id of the run finds it again."""
        ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the finite numbers of a committed step; steps come in order, each once."""
        ...

    def pictures(self, step: int, rows: Sequence[PictureRow]) -> None:
        """Show a picture table of a step that was written."""
        ...

    def alert(self, step: int, title: str, text: str) -> None:
        """Show a text that needs attention."""
        ...

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """End with the run's summary, or without one where the run is to be resumed; no call follows."""
        ...

    def abandon(self) -> None:
        """End at once what would keep the process from ending; called from another thread when time is up."""
        ...


class TrackerError(UserFault, RuntimeError):
    """Report that a configured tracker is unavailable; the message states the remedy."""


class TrackerFailure(InfraFailure):
    """Name what a tracker failed at. It is noted and counted, and ends nothing."""


def scalars(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the finite numbers among metrics; truth values count as 0 and 1."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings or summaries by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def imported(module: str, package: str, key: str) -> Any:
    """Return a tracker's module. Raises TrackerError naming the setting and the extra when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(package, key) from error


def missing(package: str, key: str) -> TrackerError:
    """Return the error about a tracker's package that is not installed."""
    return TrackerError(
        f"{key} is set but {package} is not installed: pip install 'genevolve_ray[{package}]' or leave the key empty"
    )
