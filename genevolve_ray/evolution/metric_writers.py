"""Writers of a run's metrics besides `metrics.jsonl`, which the run store always writes."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config


class PrometheusConfig(Config):
    """Configure the endpoint at which Prometheus reads the metrics of a run while it runs."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. By default only this machine reaches it; `0.0.0.0` opens it to the network, without a
    password."""
    port: int = Field(default=9400, ge=0, le=65535)
    """Port; 0 takes a free one. It is printed, and written to `prometheus_targets.json` in the run's folder."""
    targets: str = ""
    """Folder that receives the same file under a name of the run's own while the run lasts. Prometheus finds every run there
    (`file_sd_configs`), which it cannot over several folders. Empty: none."""


class TracesConfig(Config):
    """Configure the export of traces: one for each trajectory, over OTLP (HTTP, protobuf)."""

    endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Address of a collector, such as `http://127.0.0.1:4318`; `/v1/traces` is appended where it has no path. Empty: the
    standard variables `OTEL_EXPORTER_OTLP_*` give it."""
    texts: bool = False
    """Export prompts, what the policy wrote, the arguments of tools and the reasons of failures as attributes."""
    queue_spans: int = Field(default=8192, ge=256)
    """Spans that wait for the collector at most; traces beyond are dropped and counted."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds that a request to the collector may take, and that the end of a run waits for the last spans."""


class MetricsConfig(Config):
    """Configure further metric writers; none by default."""

    tensorboard: str = ""
    """Folder for TensorBoard's event files; empty switches it off."""
    wandb_project: str = ""
    """Weights & Biases project; empty switches it off."""
    wandb_mode: str = Field(default="online", pattern="^(online|offline)$")
    """`online`, or `offline` to write local files only."""
    prometheus: PrometheusConfig | None = None
    """Live metrics for Prometheus; `{}` serves them with the defaults."""
    traces: TracesConfig | None = None
    """Traces for OpenTelemetry; `{}` exports them as the standard variables `OTEL_EXPORTER_OTLP_*` say."""


class MetricWriter(Protocol):
    """Write the metrics of committed steps."""

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write one step's metrics; values that the writer cannot show (text, missing values) are left out."""
        ...

    def close(self) -> None:
        """Write out buffered metrics; no call follows."""
        ...


class MetricWriterError(UserFault, RuntimeError):
    """Report that a configured metric writer is unavailable; the message states the remedy."""


class TensorBoardWriter:
    """Write scalars as TensorBoard event files, by TensorBoard's own writer (which needs no torch)."""

    def __init__(self, folder: str) -> None:
        """Write to a local folder. Raises MetricWriterError when TensorBoard is not installed."""
        summary = _import("tensorboard.summary", "tensorboard", "logging.tensorboard")
        self._writer = summary.Writer(folder)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write the numbers of one step; they are on disk when this returns."""
        for name, value in scalars(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbWriter:
    """Write scalars to Weights & Biases; a resumed run continues under the same id."""

    def __init__(self, config: MetricsConfig, name: str, run_id: str, resolved: Mapping[str, Any]) -> None:
        """Begin or resume a W&B run. Raises MetricWriterError when wandb is not installed."""
        wandb = _import("wandb", "wandb", "logging.wandb_project")
        self._run = wandb.init(
            project=config.wandb_project,
            mode=config.wandb_mode,
            id=run_id,
            name=name,
            config=dict(resolved),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Log the numbers of one step."""
        self._run.log(scalars(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MetricWriters:
    """Combine several writers into one."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        """Write to each of `writers`, in order."""
        self._writers = list(writers)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Pass a step's metrics to every writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Close every writer."""
        for writer in self._writers:
            writer.close()


def open_writers(config: MetricsConfig, name: str, run_id: str, resolved: Mapping[str, Any]) -> MetricWriters:
    """Open the configured writers.

    Args:
        config: the settings of the writers.
        name: name of the run.
        run_id: id of the run among all others, the same when it is resumed.
        resolved: the run's resolved configuration, for writers that show it.

    Raises:
        MetricWriterError: when a package is missing.
    """
    writers: list[MetricWriter] = []
    if config.tensorboard:
        writers.append(TensorBoardWriter(config.tensorboard))
    if config.wandb_project:
        writers.append(WandbWriter(config, name, run_id, resolved))
    return MetricWriters(writers)


def scalars(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the finite numbers among metrics; truth values count as 0 and 1."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _import(module: str, package: str, key: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MetricWriterError(
            f"{key} is set but {package} is not installed: pip install 'genevolve_ray[{package}]' or leave the key empty"
        ) from error
