"""Settings of live metrics and traces. Importing this module is cheap."""

from __future__ import annotations

from pydantic import Field

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
