"""CPU time of a sample's reward from named components, beside the plain reward.

Both forms settle the same verdict of the atlas judge, in turn, in one process: the plain reward, the same reward from
components, and components of three judges with a gate. With `--run`, the differences are also given as shares of the
wall-clock time that a sample took in a run, from the steps of its `metrics.jsonl`.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Options, Row, Spread, Stopwatch, paired_ratio
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.records.components import AnyVerdict, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageRef, reference
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import ImageScores, RewardConfig, ScoreFormula, Sufficiency, Verdict

SAMPLES = 500
"""Samples of one measurement."""
REQUEST = Request(id="r", prompt="draw", eval_type=EvalType.QUALITY)
PICTURE, PROGRAM = reference(b"p", width=8, height=8), Program(gen_prompt="a heron", reference_images=())
PAPER = {"kscore": 0.5, "sufficiency": 0.5}


class Graded:
    """Return one KScore verdict."""

    identity = "graded/1"
    verdict = Verdict(
        image=ImageScores(faithfulness=1, visual_correctness=0.5, text_accuracy=None, aesthetics=0.5),
        text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=False, executable_constraints=True),
        judge=identity,
        formula=ScoreFormula.PAPER,
    )

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Return the verdict."""
        return self.verdict


class Number:
    """Return one number."""

    identity = "number/1"
    components: Mapping[str, ComponentRange] = {"score": ComponentRange()}

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Return the number."""
        return OpenVerdict(components={"score": Component(value=0.5)}, judge=self.identity)


def run(options: Options) -> list[Row]:
    """Measure every form, in turns in each repetition."""
    forms, cpu = panels(), Stopwatch()
    for _ in range(options.repeats + 1):
        for name, panel in forms.items():
            cpu.add(name, asyncio.run(cpu_seconds(panel, 10 if options.quick else SAMPLES)))
    plain, rows = cpu.seconds("plain"), []
    sample = seconds_of_a_sample(options.run) if options.run else None
    for name in forms:
        times = cpu.seconds(name)
        ratio = paired_ratio(times, plain) if name != "plain" else None
        spent = Spread.of([1e6 * s for s in times])
        rows.append(Row(f"reward of a sample, {name}", spent, "CPU us", ratio, "the plain reward" if ratio else ""))
        if sample and ratio:
            more = [100 * (mine - base) / sample for mine, base in zip(times, plain, strict=True)]
            rows.append(Row(f"{name}: more CPU time than the plain reward", Spread.of(more), "% of a sample's time"))
    return rows


def panels() -> dict[str, Panel]:
    """Return the forms that are compared, the plain one first."""
    three = {"one.score": 0.2, "two.score": 0.2, **PAPER}
    gated = RewardConfig(components=three, gates={"one.score": 0.1})
    return {
        "plain": Panel(Graded(), {}, RewardConfig()),
        "components": Panel(Graded(), {}, RewardConfig(components=PAPER)),
        "three judges": Panel(Graded(), {"one": Number(), "two": Number()}, gated),
    }


async def cpu_seconds(panel: Panel, samples: int) -> float:
    """Return the CPU seconds of one sample: its judges, which do nothing, and its reward."""
    trajectory, started = unjudged(), time.process_time()
    for _ in range(samples):
        await settle(panel, trajectory)
    return (time.process_time() - started) / samples


def unjudged() -> Trajectory:
    """Return the trajectory that is settled."""
    key = SampleKey(step=0, request_id="r", sample=0)
    return Trajectory(key, "draw", TokenLedger(), Provenance(profile="p", engine="e"))


async def settle(panel: Panel, trajectory: Trajectory) -> None:
    """Judge the sample and set its reward."""
    panel.settle(trajectory, await panel.judge(REQUEST, PICTURE, PROGRAM, ()))


def seconds_of_a_sample(run: Path) -> float:
    """Return the median wall-clock seconds of a run's steps, divided by the samples of a step."""
    import yaml

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loop = yaml.safe_load((run / "config.yaml").read_text())["loop"]
    steps = [row["seconds_step"] for row in rows if "seconds_step" in row]
    samples: int = loop["requests_per_step"] * loop["group_size"]
    return float(statistics.median(steps)) / samples
