"""Traces: the tree of a trajectory, what it keeps to itself, and collectors that are slow, down or absent."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from collector import attributes, collecting
from loop_fakes import make_trajectory
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from genevolve_ray.config import load_config
from genevolve_ray.doctor import machine
from genevolve_ray.doctor.parts import traces as examined_traces
from genevolve_ray.doctor.preflight import model_folder, preflight
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.telemetry.config import TracesConfig
from genevolve_ray.evolution.telemetry.spans import trajectory_spans
from genevolve_ray.evolution.telemetry.traces import Traces, wanted_traces
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory, timed

KEY = SampleKey(step=3, request_id="r7", sample=2, attempt=1)


async def play() -> Trajectory:
    config = load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.01, tool_calls: 2}",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
        ],
    )
    images = MemoryImages()
    rollouts, engine = await start_rollouts(config, model_folder(config.policy.model), images)
    request = config.requests.build(images).train(0)
    task = RolloutTask(request=request, key=KEY, seed=5, render_seed=6, sampling=SamplingParams())
    try:
        return await rollouts.rollout(task)
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def played() -> Trajectory:
    """A trajectory that a script played, and that was rendered and judged."""
    return asyncio.run(play())


def ended(part: str = "", outcome: Outcome = Outcome.SCORED, engine: str = "fake") -> Trajectory:
    """A trajectory without turns whose episode, and one further part, have run."""
    trajectory = make_trajectory(KEY, outcome)
    trajectory.provenance = trajectory.provenance.model_copy(update={"engine": engine})
    for name in ("episode", part):
        with timed(trajectory.timings, name):
            pass
    return trajectory


def test_a_collector_receives_the_spans_of_a_trajectory_as_one_tree(played: Trajectory) -> None:
    assert played.outcome is Outcome.SCORED and played.tool_calls == 2, played.reason
    with collecting() as received:
        traces = Traces(TracesConfig(endpoint=received.url), "demo")
        traces.export(played)
        said = traces.close()
    spans = received.spans
    assert (
        received.paths == ["/v1/traces"]
        and said == f"traces: {len(spans)} spans exported, 0 spans failed, 0 spans dropped"
    )
    (root,) = [span for span in spans if not span.parent_span_id]
    parts = sorted((span for span in spans if span.parent_span_id), key=lambda span: span.start_time_unix_nano)
    assert {span.trace_id for span in spans} == {root.trace_id}
    assert {span.parent_span_id for span in parts} == {root.span_id}
    tools = [turn.tool for turn in played.turns if turn.tool]
    expected = ["chat", f"execute_tool {tools[0]}", "chat", f"execute_tool {tools[1]}", "chat", "render", "judge"]
    assert [span.name for span in parts] == expected and root.name == "invoke_agent genevolve"
    for span in parts:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    of_root = attributes(root)
    assert (of_root["genevolve.group.request"], of_root["genevolve.sample"], of_root["genevolve.attempt"]) == (
        "r7",
        2,
        1,
    )
    assert of_root["genevolve.reward"] == played.score
    turns = [attributes(span) for span in parts if span.name == "chat"]
    assert sum(int(str(turn["gen_ai.usage.output_tokens"])) for turn in turns) == played.ledger.policy_tokens
    resource = {
        entry.key: entry.value.string_value for entry in received.requests[0].resource_spans[0].resource.attributes
    }
    assert (resource["service.name"], resource["genevolve.run"]) == ("genevolve", "demo")


@pytest.mark.parametrize("texts", [False, True])
def test_texts_are_exported_where_the_run_says_so(played: Trajectory, texts: bool) -> None:
    with collecting() as received:
        traces = Traces(TracesConfig(endpoint=f"{received.url}/v1/traces", texts=texts), "demo")
        traces.export(played)
        traces.close()
    (body,) = received.bodies
    assert received.paths == ["/v1/traces"]
    for text in (played.prompt, next(iter(played.turns[0].arguments.values()))):
        assert (str(text).encode() in body) is texts


@pytest.mark.parametrize(
    ("part", "engine", "names"),
    [
        ("judge_group", "fake", ["invoke_agent genevolve", "judge_group"]),
        # The moments of its turns would be those of the gateway's check.
        ("outside", "gateway:ann", ["invoke_agent genevolve", "outside"]),
        ("unknown", "fake", ["invoke_agent genevolve"]),
    ],
)
def test_parts_beside_the_episode(part: str, engine: str, names: list[str]) -> None:
    assert [span.name for span in trajectory_spans(ended(part, engine=engine))] == names


def test_a_failure_from_outside_is_the_error_of_the_trajectory_and_of_the_part_that_met_it() -> None:
    with collecting() as received:
        traces = Traces(TracesConfig(endpoint=received.url), "demo")
        traces.export(ended("render", Outcome.INFRA_FAILURE))
        traces.close()
    assert {span.name for span in received.spans if span.status.code == Status.STATUS_CODE_ERROR} == {
        "invoke_agent genevolve",
        "render",
    }
    assert {attributes(span)["error.type"] for span in received.spans} == {"infra_failure"}


def test_a_trajectory_without_moments_has_no_trace() -> None:
    assert trajectory_spans(make_trajectory(KEY)) == []


class Stuck(SpanExporter):
    """Takes batches and answers only when it is shut down."""

    def __init__(self) -> None:
        self.asked, self.over = threading.Event(), threading.Event()

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        self.asked.set()
        self.over.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.over.set()


def test_a_slow_collector_costs_whole_traces_and_no_time() -> None:
    stuck, size = Stuck(), 256
    traces = Traces(TracesConfig(queue_spans=size, timeout=0.2), "demo", stuck)
    for _ in range(size):
        traces.export(ended("render"))  # Two spans each.
    assert (traces.counts.waiting, traces.counts.dropped) == (size, size)
    assert stuck.asked.wait(30)
    began = time.monotonic()
    said = traces.close()
    assert time.monotonic() - began < 10
    assert "0 spans exported" in said
    assert traces.counts.failed + traces.counts.waiting + traces.counts.dropped == 2 * size


def test_a_collector_that_refuses_is_counted() -> None:
    with collecting(status=400) as received:
        traces = Traces(TracesConfig(endpoint=received.url), "demo")
        traces.export(ended("render"))
        assert traces.close() == "traces: 0 spans exported, 2 spans failed, 0 spans dropped"


@pytest.mark.parametrize(
    ("config", "environment", "on"),
    [
        (None, {}, False),
        (TracesConfig(), {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        (TracesConfig(), {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (TracesConfig(), {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_only_the_key_of_the_run_switches_traces_on(
    config: TracesConfig | None, environment: dict[str, str], on: bool
) -> None:
    assert (wanted_traces(config, environment) is not None) is on


def test_without_an_endpoint_the_standard_variable_names_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        traces = Traces(TracesConfig(), "demo")
        traces.export(ended("render"))
        traces.close()
    assert len(received.spans) == 2


def test_a_text_that_utf_8_cannot_hold_is_exported_with_a_question_mark() -> None:
    trajectory = ended("render")
    trajectory.prompt, trajectory.reason = "draw \ud800", "half \udc00"
    trajectory.key = SampleKey(step=3, request_id="r\ud800", sample=2)
    with collecting() as received:
        traces = Traces(TracesConfig(endpoint=received.url, texts=True), "demo")
        traces.export(trajectory)
        assert traces.close() == "traces: 2 spans exported, 0 spans failed, 0 spans dropped"
    (root,) = [attributes(span) for span in received.spans if not span.parent_span_id]
    assert root["genevolve.reason"] == "half ?" and root["genevolve.group.request"] == "r?"
    assert json.loads(str(root["gen_ai.input.messages"]))[0]["parts"][0]["content"] == "draw ?"


def test_ids_leave_the_random_numbers_of_the_run_alone() -> None:
    traces, before = Traces(TracesConfig(), "demo", Stuck()), random.getstate()
    traces.export(ended("render"))
    assert random.getstate() == before
    traces.close()


def test_a_missing_package_is_named_before_the_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    config = load_config("atlas", ["logging.traces={}"])
    with pytest.raises(UserFault, match=r"genevolve_ray\[otel\]"):
        preflight(config, model=False)
    [check] = examined_traces(config)
    assert (check.status, examined_traces(load_config("atlas"))) == (machine.Status.PROBLEM, [])
