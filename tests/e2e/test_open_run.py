"""Open rewards and open tools in one run on Ray: processes die on the way, nothing is lost, and no failure becomes a 0."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from head_node import head_node
from mcp_servers import free_port, http_server
from open_run import CALLS, HELDOUT, HERE, LINES, REQUESTS, SAMPLES, STEPS, build_policy, settings
from open_run_plugins import merit
from scripted_server import Call, Reply, serving

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.trajectory import Outcome, Trajectory, TurnKind
from genevolve_ray.records.usage import Usage

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
COMPONENTS = {
    "judge.faithfulness",
    "judge.visual_correctness",
    "judge.aesthetics",
    "judge.kscore",
    "judge.sufficiency",
    "craft.line",
    "taste.reward",
}
PARTS = ("kscore", "judge.sufficiency", "craft.line", "taste.reward")
BAD = {2: Reply(status=503), 5: Reply({"rewards": [None]}), 9: Reply(drop=True)}
"""Answers of the reward over HTTP that are none, by the number of the call."""


def taste(number: int, call: Call) -> Reply:
    """Answer with a bare number."""
    [row] = call.body["rows"]
    return BAD.get(number, Reply({"rewards": [merit(row["program"]["gen_prompt"], "taste")]}))


@dataclass
class Run:
    """The run, when it has ended."""

    root: Path
    policy: Path
    store: RunStore
    asked: int
    """Calls of the reward over HTTP."""

    @property
    def trained(self) -> list[Trajectory]:
        """Every attempt at a sample of the training."""
        return [t for step in range(1, STEPS + 1) for g in self.store.groups(step) for t in g.trajectories]

    @property
    def attempts(self) -> list[Trajectory]:
        """Those, and the held-out samples before and after."""
        return [
            *self.trained,
            *(t for side in ("sft", "final") for t in self.store.get_trajectories(f"heldout-{side}")),
        ]

    @property
    def scored(self) -> list[Trajectory]:
        return [t for t in self.attempts if t.outcome is Outcome.SCORED]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root, port = tmp_path_factory.mktemp("open"), free_port()
    places = (str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))
    with (
        http_server("open_run_server.py", port, HERE),
        serving(taste) as server,
        head_node(cpus=4, environment={"PYTHONPATH": os.pathsep.join(filter(None, places))}) as head,
    ):
        where = (f"http://127.0.0.1:{port}/mcp", server.url, f"cluster.address={head.address}")
        policy = build_policy(root / "policy", settings(root, root, *where).protocol)
        evolve_run(settings(root, policy, *where), root / "run", in_process=False)
    return Run(root, policy, RunStore.read(str(root / "run")), len(server.calls))


def test_nothing_is_lost(run: Run) -> None:
    assert run.store.committed_steps() == list(range(1, STEPS + 1))
    for step in run.store.committed_steps():
        groups = run.store.groups(step)
        assert len({g.request_id for g in groups}) == len(groups) == REQUESTS
        for group in groups:
            ended = [t.key.sample for t in group.trajectories if t.outcome is not Outcome.INFRA_FAILURE]
            assert sorted(ended) == list(range(SAMPLES))
    for row in run.store.metrics():
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[part] for part in parts)
        assert row["parity"] <= 1e-4
    assert len(run.scored) >= 0.75 * (STEPS * REQUESTS * SAMPLES + 2 * HELDOUT), "the policy knows its episode"


def test_a_component_is_what_its_judge_measured(run: Run) -> None:
    for trajectory in run.scored:
        assert trajectory.program is not None and trajectory.reward is not None
        grades = {what: merit(trajectory.program.gen_prompt, what) for what in ("image", "line", "taste")}
        found = trajectory.components()
        assert found.keys() == COMPONENTS
        values = grades["image"], 0.75, grades["line"], grades["taste"]
        parts = dict(zip(PARTS, values, strict=True))
        assert trajectory.reward.parts == pytest.approx(parts)
        assert [found[name].scaled for name in ("judge.kscore", *PARTS[1:])] == pytest.approx(values)
        assert found["craft.line"].value == pytest.approx(10 * grades["line"])
        share = 0.4 * grades["image"] + 0.2 * (0.75 + grades["line"] + grades["taste"])
        assert trajectory.reward.total == pytest.approx(share - trajectory.reward.cost)
    assert len({t.reward.total for t in run.scored if t.reward}) > 2, "the learner has something to compare"


def test_a_failed_judgment_has_no_grade_and_is_drawn_again(run: Run) -> None:
    failed = [t for t in run.trained if t.outcome is Outcome.INFRA_FAILURE]
    assert len(failed) == len(BAD) == sum(row["infra_failures"] for row in run.store.metrics())
    for trajectory in failed:
        assert trajectory.reward is None and trajectory.reason
        assert trajectory.components().keys() == COMPONENTS - {"taste.reward"}
    assert {t.outcome for t in run.attempts} <= {Outcome.SCORED, Outcome.POLICY_FAILURE, Outcome.INFRA_FAILURE}
    assert all(component.value > 0 for t in run.attempts for component in t.components().values())


def test_the_judge_that_died_was_replaced(run: Run) -> None:
    dead = (run.root / "craft").read_text(encoding="utf-8")
    judged = {t.verdicts["craft"].components["line"].rationale for t in run.attempts if "craft" in t.verdicts}
    assert judged - {f"judged by process {dead}"}


def test_every_call_is_answered_once(run: Run) -> None:
    chat, answered = load_chat(run.policy), 0
    for trajectory in run.attempts:
        ledger, spoken, heard = trajectory.ledger, [""], [""]
        ledger.check()
        for before, span in pairwise([None, *ledger.spans]):
            assert span is not None
            text = chat.decode(ledger.tokens[span.start : span.end])
            if span.kind in (SpanKind.PROMPT, SpanKind.OBSERVATION):
                assert before is None or before.kind is not span.kind
                heard.append(text)
                spoken.append("")
            else:
                spoken[-1] += text
        assert len(spoken) == len(heard) == len(trajectory.turns) + 1
        for turn, said, reply in zip(trajectory.turns, spoken[1:], [*heard[2:], ""], strict=True):
            assert turn.text in said
            if turn.tool:
                assert (said.count("<tool_call>"), reply.count("<tool_response>")) == (1, 1)
                assert turn.observation and turn.observation in reply
                answered += 1
    assert answered >= 0.75 * len(run.attempts) * len(CALLS)


def test_a_sketch_holds_the_lines_of_its_own_episode(run: Run) -> None:
    whole = 0
    for trajectory in run.attempts:
        expected = [f"sketch of {trajectory.key}"]
        for turn in trajectory.turns:
            if turn.tool == "sketch" and turn.kind is TurnKind.TOOL_CALL:
                expected.append(f"{len(expected)} {turn.arguments['line']}")
                assert turn.observation.split("\n")[1:-1] == expected
        whole += len(expected) > len(LINES)
    assert whole >= 0.75 * len(run.attempts)


def test_the_server_that_was_killed_was_started_again(run: Run) -> None:
    dead = (run.root / "studio").read_text(encoding="utf-8")
    drawn = {found for t in run.attempts for u in t.turns for found in re.findall(r"by process (\d+)", u.observation)}
    assert drawn - {dead}
    assert not any(str(HERE / "open_run_server.py") in line for line in command_lines()), "none is left"


def command_lines() -> Iterator[str]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            yield " ".join(process.cmdline())


def test_usage_has_the_names_of_judges_and_servers(run: Run) -> None:
    used: dict[str, Usage] = {}
    for trajectory in run.attempts:
        for service, usage in trajectory.usage.items():
            used[service] = used.get(service, Usage()) + usage
    turns = [u.tool for t in run.attempts for u in t.turns if u.kind is TurnKind.TOOL_CALL]
    assert used["mcp:studio"].calls == turns.count("studio_picture")
    assert used["mcp:notes"].calls == turns.count("notes_palette")
    assert used["judge.craft"].calls == sum("craft" in t.verdicts for t in run.attempts)
    assert (used["judge.taste"].calls, used["judge.taste"].failed_calls) == (run.asked, len(BAD))
    assert "judge" not in used


def test_metrics_hold_the_mean_of_each_component(run: Run) -> None:
    for step, row in enumerate(run.store.metrics(), 1):
        values: dict[str, list[float]] = {}
        for trajectory in (t for g in run.store.groups(step) for t in g.trajectories):
            for name, component in trajectory.components().items():
                values.setdefault(name, []).append(component.value)
        found = {name.removeprefix("component_"): row[name] for name in row if name.startswith("component_")}
        assert found == pytest.approx({name: sum(many) / len(many) for name, many in values.items()})
        assert found.keys() == COMPONENTS and "reward_image" not in row


def test_parquet_holds_verdicts_and_parts(run: Run) -> None:
    files = sorted((run.root / "run").glob("steps/*/groups/*.parquet"))
    assert len(files) == STEPS * REQUESTS
    for row in (row for file in files for row in pq.read_table(file).to_pylist()):
        measured = {(v["name"], c["name"]): c["value"] for v in row["verdicts"] for c in v["components"]}
        assert all(value > 0 for value in measured.values())
        if row["outcome"] == Outcome.SCORED.value:
            assert measured.keys() == {("craft", "line"), ("taste", "reward")}
            assert dict(row["reward"]["parts"]).keys() == set(PARTS) and row["verdict"] is not None
        else:
            assert row["reward"] is None and ("taste", "reward") not in measured


def test_the_report_shows_components(run: Run) -> None:
    page = (run.root / "run" / "report.html").read_text(encoding="utf-8")
    for name in COMPONENTS:
        assert f"<td>component {name.replace('_', ' ')}</td>" in page, "before and after"
    for name in ("craft", "taste"):
        assert f"<th>{name}</th>" in page, "of an attempt"
    assert re.search(r"reward 0\.\d+: kscore 0\.\d+, judge\.sufficiency 0\.750?, craft\.line 0\.\d+", page)
