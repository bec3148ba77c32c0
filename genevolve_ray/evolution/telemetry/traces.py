"""Export of traces over OTLP, by OpenTelemetry's SDK: in batches, by a thread, and never at the expense of the run."""

from __future__ import annotations

import importlib
import logging
import os
import random
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genevolve_ray import __version__
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.telemetry.config import TracesConfig
from genevolve_ray.evolution.telemetry.spans import PlannedSpan, trajectory_spans
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_PATH = "/v1/traces"
_BATCH = 512


def wanted_traces(config: TracesConfig | None, environment: Mapping[str, str] = os.environ) -> TracesConfig | None:
    """Return the settings of the export, None where nothing is exported.

    Only the run's own key switches it on: a variable that a machine sets for other programs exports no run, and ends none
    for a missing package. `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none` switch it off.
    """
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return None if off or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none" else config


def check_traces(config: TracesConfig | None) -> None:
    """Check that traces can be exported where a run is to do so. Raises UserFault naming the key and the remedy."""
    if wanted_traces(config) is not None:
        _import("opentelemetry.sdk.trace")
        _import(_HTTP)


class TraceCounts:
    """Count the spans that were planned, sent, refused by the collector, and dropped; safe in several threads."""

    def __init__(self) -> None:
        """Start at 0."""
        self._lock = threading.Condition()
        self.waiting = self.exported = self.failed = self.dropped = 0

    def admit(self, spans: int, most: int) -> bool:
        """Return whether so many spans more may wait; those that may not are counted as dropped."""
        with self._lock:
            if self.waiting + spans > most:
                self.dropped += spans
                return False
            self.waiting += spans
            return True

    def sent(self, spans: int, *, arrived: bool) -> None:
        """Count a batch that the collector has taken, or has not."""
        with self._lock:
            self.waiting -= spans
            if arrived:
                self.exported += spans
            else:
                self.failed += spans
            self._lock.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until no span waits, for some seconds at most; return whether that is so."""
        with self._lock:
            return self._lock.wait_for(lambda: self.waiting == 0, seconds)

    def by_result(self) -> dict[str, int]:
        """Return the spans by their result."""
        with self._lock:
            return {"exported": self.exported, "failed": self.failed, "dropped": self.dropped}


class CountingExporter:
    """Count what an exporter of the SDK sends; the SDK itself only logs what it could not send."""

    def __init__(self, exporter: SpanExporter, counts: TraceCounts) -> None:
        """Count the spans of an exporter."""
        self._exporter, self._counts = exporter, counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        arrived = False
        try:
            result = self._exporter.export(spans)
            arrived = result.name == "SUCCESS"
            return result
        finally:
            self._counts.sent(len(spans), arrived=arrived)

    def shutdown(self) -> None:
        """Send nothing more; a request that waits for another try gives up."""
        self._exporter.shutdown()


class Traces:
    """Export one trace for each trajectory.

    A trajectory whose spans find no room in the queue is dropped as a whole and counted, so a collector that is slow or
    down costs neither time nor memory. The SDK sends batches of up to 512 spans, whose borders may lie inside of a trace:
    where a batch fails, the traces at its borders lack spans at the collector.
    """

    def __init__(self, config: TracesConfig, run: str, exporter: SpanExporter | None = None) -> None:
        """Start the thread of the export.

        Args:
            config: the settings.
            run: name of the run.
            exporter: sends spans; by default over HTTP to the collector of the settings.

        Raises:
            UserFault: when OpenTelemetry is not installed.
        """
        sdk, self._trace = _import("opentelemetry.sdk.trace"), _import("opentelemetry.trace")
        resource = _import("opentelemetry.sdk.resources").Resource
        self._config, self.counts = config, TraceCounts()
        self._exporter = CountingExporter(exporter or _exporter(config), self.counts)
        processor = _import("opentelemetry.sdk.trace.export").BatchSpanProcessor(
            self._exporter, max_queue_size=config.queue_spans, max_export_batch_size=min(_BATCH, config.queue_spans)
        )
        named = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or "genevolve", "genevolve.run": run}
        # The SDK adds OTEL_RESOURCE_ATTRIBUTES, and takes the sampler of OTEL_TRACES_SAMPLER.
        self._provider = sdk.TracerProvider(
            resource=resource.create(named), id_generator=_ids(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("genevolve_ray", __version__)
        self._nothing = _import("opentelemetry.context").Context()
        # The SDK writes a line for each batch that it could not send; `close` says how many spans these were.
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())

    def export(self, trajectory: Trajectory) -> None:
        """Hand the trace of a trajectory with its final outcome to the thread that sends it."""
        spans = trajectory_spans(trajectory, texts=self._config.texts)
        if not spans:
            return
        root = self._start(spans[0], self._nothing)
        if not root.is_recording() or not self.counts.admit(len(spans), self._config.queue_spans):
            return  # The sampler leaves this trace out, or the queue is full.
        under = self._trace.set_span_in_context(root, self._nothing)
        for part in spans[1:]:
            self._end(self._start(part, under), part)
        self._end(root, spans[0])

    def close(self) -> str:
        """Send what waits, within `timeout` seconds, and return the result in words; no call follows."""
        threading.Thread(target=self._provider.force_flush, name="traces-flush", daemon=True).start()
        in_time = self.counts.settle(self._config.timeout)
        self._exporter.shutdown()
        if in_time:
            self._provider.shutdown()
        else:  # The SDK would wait for the request in flight.
            threading.Thread(target=self._provider.shutdown, name="traces-shutdown", daemon=True).start()
        said = self.counts.by_result()
        said["dropped"] += self.counts.waiting
        return "traces: " + ", ".join(f"{count} spans {result}" for result, count in said.items())

    def _start(self, planned: PlannedSpan, context: Any) -> Any:
        return self._tracer.start_span(
            planned.name, context, start_time=_nanoseconds(planned.start), attributes=planned.attributes
        )

    def _end(self, span: Any, planned: PlannedSpan) -> None:
        if planned.error:
            span.set_attribute("error.type", planned.error)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, planned.error))
        span.end(_nanoseconds(planned.end))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _ids() -> Any:
    """Return a source of ids with random numbers of its own.

    The SDK's own draws from `random`, whose state belongs to the run: a seeded run must not depend on its traces.
    """
    own = random.SystemRandom()

    class OwnIds(_import("opentelemetry.sdk.trace.id_generator").IdGenerator):  # type: ignore[misc]
        def generate_span_id(self) -> int:
            return own.randrange(1, 1 << 64)

        def generate_trace_id(self) -> int:
            return own.randrange(1, 1 << 128)

        def is_trace_id_random(self) -> bool:
            return True

    return OwnIds()


def _exporter(config: TracesConfig) -> Any:
    http = _import(_HTTP)
    endpoint = config.endpoint.rstrip("/")
    if endpoint and endpoint.count("/") == 2:
        endpoint += _PATH
    return http.OTLPSpanExporter(endpoint=endpoint or None, timeout=config.timeout)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserFault(
            "logging.traces is set, but OpenTelemetry is not installed: pip install 'genevolve_ray[otel]', or leave the key "
            "empty"
        ) from error
