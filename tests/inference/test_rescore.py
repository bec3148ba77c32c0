"""A run's stored rollouts judged again elsewhere: the run is not touched, and both scores stand side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played_bench import write_config
from played_world import World, playing, png

from genevolve_ray.config import load_config
from genevolve_ray.evolution.store import RunStore
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Termination, Trajectory
from genevolve_ray.records.verdict import ImageScores, RewardConfig, ScoreFormula, Sufficiency, Verdict, combine_reward

BEFORE = ImageScores(faithfulness=0, visual_correctness=0.5, text_accuracy=None, aesthetics=1)


def write_run(root: Path, config: Path) -> Path:
    """A run with three held-out rollouts: two judged, one without a program."""
    run = root / "run"
    with RunStore.open(str(run), load_config(str(config)), run_seed=1) as store:
        requests, trajectories = [], []
        for n in range(3):
            truth, picture, reference = (store.images.put(png(i), width=16, height=16) for i in (n, n + 50, n + 99))
            requests.append(Request(id=f"t-{n}", prompt=f"p {n}", eval_type=EvalType.QUALITY, truth_image=truth))
            ledger = TokenLedger()
            ledger.append_context([1, 2], SpanKind.PROMPT)
            trajectory = Trajectory(
                key=SampleKey(step=0, request_id=f"t-{n}", sample=0),
                prompt=f"p {n}",
                ledger=ledger,
                provenance=Provenance(profile="release", engine="e", renderer="painter/1", judge="old/1"),
                outcome=Outcome.POLICY_FAILURE,
                termination=Termination.ANSWER,
                reason="no program",
            )
            if n < 2:
                trajectory.images = {"IMG_001": ImageHit(title="h", url="u", image=reference)}
                trajectory.program = Program(
                    gen_prompt="the first reference image", reference_images=(ReferenceImage(img_id="IMG_001"),)
                )
                trajectory.rendered, trajectory.outcome, trajectory.reason = picture, Outcome.SCORED, ""
                trajectory.verdict = Verdict(
                    image=BEFORE,
                    text=Sufficiency(
                        facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=False
                    ),
                    judge="old/1",
                    formula=ScoreFormula.RELEASE_SUMMARY,
                )
                trajectory.reward = combine_reward(trajectory.verdict, 1, RewardConfig())
            trajectories.append(trajectory)
        store.put_requests("heldout", requests)
        store.put_trajectories("heldout-final", trajectories)
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_another_judge_scores_the_same_pictures(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World()) as world:
        run = write_run(tmp_path, write_config(tmp_path / "my.yaml", world))
        before, out = files(run), tmp_path / "again"
        ended = genevolve("rescore", run, "--output", out, "--in-process")
        assert ended.code == 0, ended.err
        assert genevolve("rescore", run, "--output", out, "--in-process").code == 0
    assert files(run) == before
    assert world.calls == {"judge": 2}
    found = json.loads((out / "rescore.json").read_text())
    assert (found["rows"], found["before"], found["after"]) == (2, pytest.approx(0.5), pytest.approx(0.75))
    assert found["interval"] == [0.25, 0.25]
    rows = json.loads((out / "results_eval.json").read_text())
    assert rows[0]["genevolve_ray"]["judge"] == "loopback-judge/1"
    assert (out / rows[0]["reference_images"][0]["local_path"]).read_bytes() == png(99)


def test_stored_verdicts_are_scored_under_another_formula_without_a_judge(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    with playing(World()) as world:
        run = write_run(tmp_path, write_config(tmp_path / "my.yaml", world))
        ended = genevolve("rescore", run, "--output", tmp_path / "paper", "--stored", "--formula", "paper")
    assert ended.code == 0, ended.err
    assert not world.calls
    summary = json.loads((tmp_path / "paper" / "summary.json").read_text())
    # Without text the other three dimensions count alone: (0.1 * 0 + 0.4 * 0.5 + 0.1 * 1) / 0.6.
    assert (summary["formula"], summary["all"]["overall"]) == ("paper", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "run/again"), "lies inside the run"),
        (("--output", "o", "--rollouts", "nothing"), "the run has heldout-final, steps"),
        (("--output", "o", "--stored", "--set", "judge.config.version=2"), "leave it out to ask another one"),
    ],
)
def test_what_cannot_be_rescored_is_told(
    arguments: tuple[str, ...],
    message: str,
    genevolve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with playing(World()) as world:
        write_run(tmp_path, write_config(tmp_path / "my.yaml", world))
        ended = genevolve("rescore", "run", "--in-process", *arguments)
    assert ended.code == 2 and message in ended.err
