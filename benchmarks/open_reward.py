"""`python -m benchmarks.open_reward`: CPU time of a sample's reward from named components, beside the plain reward.

Both forms settle the same verdict of the atlas judge, in turn, in one process: the plain reward, the same reward from
components, and components of three judges with a gate. With `--run`, the differences are also given as shares of the
wall-clock time that a sample took in a run, from the steps of its `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    key = SampleKey(step=0, request_id="r", sample=0)
    trajectory = Trajectory(key, "draw", TokenLedger(), Provenance(profile="p", engine="e"))
    started = time.process_time()
    for _ in range(samples):
        panel.settle(trajectory, await panel.judge(REQUEST, PICTURE, PROGRAM, ()))
    return (time.process_time() - started) / samples


def seconds_of_a_sample(run: Path) -> float:
    """Return the median wall-clock seconds of a run's steps, divided by the samples of a step."""
    import yaml

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loop = yaml.safe_load((run / "config.yaml").read_text())["loop"]
    steps = [row["seconds_step"] for row in rows if "seconds_step" in row]
    samples: int = loop["requests_per_step"] * loop["group_size"]
    return float(statistics.median(steps)) / samples


def main() -> None:
    """Measure and print one line for each form."""
    parser = argparse.ArgumentParser(prog="benchmarks.open_reward", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--run", type=Path, help="a run's folder, for the share of a sample's time")
    options = parser.parse_args()
    forms = panels()
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.repeats):
        for name, panel in forms.items():
            found[name].append(asyncio.run(cpu_seconds(panel, SAMPLES)))
    plain, sample = found["plain"], seconds_of_a_sample(options.run) if options.run else None
    for name, times in found.items():
        ratios = [mine / base for mine, base in zip(times, plain, strict=True)]
        more = statistics.median(mine - base for mine, base in zip(times, plain, strict=True))
        share = f", {more / sample:.4%} of a sample's {sample:.2f} s" if sample else ""
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}: {statistics.median(times) * 1e6:.1f} us of CPU a sample, x {spread}{share}")


if __name__ == "__main__":
    main()
