"""Live metrics of one run for Prometheus: rewards, latencies, queues, usage and the last committed step.

The names follow those of the gateway (`gateway/meters.py`): `genevolve_...` in base units. No label holds an id of a
request, and a label with names from outside has at most `MOST_NAMES` values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from genevolve_ray import __version__
from genevolve_ray.evolution.telemetry.step_gauges import StepCollector
from genevolve_ray.evolution.telemetry.watching import WatchedRun
from genevolve_ray.evolution.trackers.port import scalars
from genevolve_ray.records.trajectory import Outcome, Trajectory, TurnKind
from genevolve_ray.records.usage import Usage
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS

MOST_NAMES = 64
"""Values of a label that holds names of tools or services; further ones count as `other`."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets of latencies, in seconds: from a look-up in memory to a large generator."""
REWARDS = tuple(tenths / 10 for tenths in range(11))
PHASES = ("rollouts", "experience", "learning", "publishing", "validating")


class RunMeters:
    """Count what happens in a run of this process since it began; a resumed run begins at 0 again.

    Each run has a registry of its own, so that several runs in one process do not share any number.
    """

    def __init__(self, run: WatchedRun, spans: Callable[[], Mapping[str, int]] | None = None) -> None:
        """Begin after the last committed step of a run, whose metrics are exported from the start.

        Args:
            run: the run.
            spans: returns the spans of traces by result, where traces are exported.
        """
        self.registry = registry = CollectorRegistry()
        self._last = StepCollector()
        self._last.metrics, self._last.validation = scalars(run.metrics), scalars(run.validation)
        registry.register(self._last)
        if spans is not None:
            registry.register(_Spans(spans))
        Info("genevolve_run", "The run", registry=registry).info({"name": run.name, "version": __version__})
        now = time.time()
        self._gauge("genevolve_start_timestamp_seconds", "Unix time at which this process began the run").set(now)
        self._gauge("genevolve_steps_planned", "Steps that the run is to have").set(run.steps)
        self._step = self._gauge("genevolve_step", "Last committed step, 0 before the first")
        self._step.set(run.step)
        self._committed = self._gauge(
            "genevolve_last_step_timestamp_seconds", "Unix time of the last committed step; before one, of the start"
        )
        self._committed.set(now)
        self._phase = Gauge("genevolve_phase", "1 for the current phase of the step", ["phase"], registry=registry)
        self.phase("")
        self._trajectories = self._counter(
            "genevolve_trajectories", "Attempts that ended, by split and outcome", "split", "outcome"
        )
        self._turns = self._counter("genevolve_turns", "Turns of the policy, by their kind", "kind")
        self._tokens = self._counter("genevolve_policy_tokens", "Tokens that the policy sampled")
        self._outages = self._counter("genevolve_tool_outages", "Tool calls that met an outage, by tool", "tool")
        self._rewards = self._histogram("genevolve_reward", "Rewards, by split", "split", buckets=REWARDS)
        self._policy = self._histogram("genevolve_policy_turn_seconds", "Seconds of a turn of the policy")
        self._tool = self._histogram("genevolve_tool_call_seconds", "Seconds of a tool call, by tool", "tool")
        self._parts = {
            "render": self._histogram("genevolve_render_seconds", "Seconds of the rendering of a program"),
            "judge": self._histogram("genevolve_judge_seconds", "Seconds until the judges of a picture answered"),
            "judge_group": self._histogram(
                "genevolve_group_judge_seconds", "Seconds until the judges of a group answered, once for each sample"
            ),
            "outside": self._histogram(
                "genevolve_outside_sample_seconds", "Seconds until a worker outside the cluster had played a sample"
            ),
        }
        self._usage = {
            "calls": self._counter("genevolve_service_calls", "Requests sent, counting every try", "service"),
            "failed_calls": self._counter("genevolve_service_failures", "Tries without a result", "service"),
            "cached": self._counter("genevolve_service_cached_answers", "Answers from a cache", "service"),
            "seconds": self._counter("genevolve_service_busy_seconds", "Seconds that calls took together", "service"),
            "images": self._counter("genevolve_service_images", "Pictures that a service drew", "service"),
            "prompt_tokens": self._counter("genevolve_service_input_tokens", "Tokens read", "service"),
            "completion_tokens": self._counter("genevolve_service_output_tokens", "Tokens written", "service"),
            "money": self._counter(
                "genevolve_service_cost", "Cost in the currency of the configured prices", "service"
            ),
        }
        self._names: dict[str, set[str]] = {"tool": set(), "service": set()}

    def phase(self, name: str) -> None:
        """Record the phase that begins; phases without a label of their own are `other`."""
        current = name if name in PHASES else "other"
        for phase in (*PHASES, "other"):
            self._phase.labels(phase).set(phase == current)

    def count(self, trajectory: Trajectory) -> None:
        """Count an attempt that ended, with everything that it took."""
        # The split of a re-draw names its bundle, and labels must be few.
        split = trajectory.provenance.split.partition(":")[0]
        self._trajectories.labels(split, trajectory.outcome.value).inc()
        if trajectory.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE):
            self._rewards.labels(split).observe(trajectory.score)
        self._tokens.inc(trajectory.ledger.policy_tokens)
        for turn in trajectory.turns:
            self._turns.labels(turn.kind.value).inc()
            called = turn.kind is TurnKind.TOOL_CALL
            if called and turn.error:
                self._outages.labels(self._bounded("tool", turn.tool)).inc()
            # The gateway plays the turns of a worker outside again, in no time.
            if not trajectory.provenance.outside:
                self._policy.observe(turn.seconds_policy)
                if called:
                    self._tool.labels(self._bounded("tool", turn.tool)).observe(turn.seconds_tool)
        for part, histogram in self._parts.items():
            if (seconds := trajectory.timings.get(part)) is not None:
                histogram.observe(seconds)
        for service, used in trajectory.usage.items():
            if service != CUT_PROMPTS:
                self._use(self._bounded("service", service), used)

    def queue(self, samples: Mapping[str, int]) -> None:
        """Record the samples of the run by state, such as `running` and `buffered`."""
        self._last.samples = dict(samples)

    def commit(self, step: int, metrics: Mapping[str, float], validation: Mapping[str, float] | None) -> None:
        """Record a committed step."""
        # The counts of the step replace those of before it, which the next change of a sample replaces in turn.
        self._last.metrics, self._last.samples = scalars(metrics), {}
        if validation:
            self._last.validation = scalars(validation)
        self._step.set(step)
        self._committed.set(time.time())

    def _use(self, service: str, used: Usage) -> None:
        for field, counter in self._usage.items():
            counter.labels(service).inc(max(0, getattr(used, field)))

    def _bounded(self, label: str, name: str) -> str:
        known = self._names[label]
        if name not in known and len(known) >= MOST_NAMES:
            return "other"
        known.add(name)
        return name

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


class _Spans(Collector):
    """Return the spans of traces by what became of them."""

    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def collect(self) -> list[Metric]:
        """Return the one family."""
        family = CounterMetricFamily(
            "genevolve_trace_spans",
            "Spans that a collector took, did not take, or that were dropped",
            labels=["result"],
        )
        for result, count in self._count().items():
            family.add_metric([result], count)
        return [family]
