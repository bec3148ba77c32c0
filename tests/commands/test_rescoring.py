"""A run's stored rollouts judged again elsewhere: the run is not touched, and both scores stand side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ensemble_members import Critic, member
from played_bench import write_config
from played_world import World, playing, png

from genevolve_ray.config import load_config
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Termination, Trajectory
from genevolve_ray.records.verdict import ImageScores, RewardConfig, ScoreFormula, Sufficiency, Verdict, combine_reward

BEFORE = ImageScores(faithfulness=0, visual_correctness=0.5, text_accuracy=None, aesthetics=1)


def play(store: RunStore, key: SampleKey, shade: int, *, judged: bool = True) -> Trajectory:
    """A rollout with pictures of its own; one that was not judged has no program."""
    ledger = TokenLedger()
    ledger.append_context([1, 2], SpanKind.PROMPT)
    trajectory = Trajectory(
        key=key,
        prompt="p",
        ledger=ledger,
        provenance=Provenance(profile="release", engine="e", renderer="painter/1", judge="old/1"),
        outcome=Outcome.POLICY_FAILURE,
        termination=Termination.ANSWER,
        reason="no program",
    )
    if judged:
        picture, reference = (store.images.put(png(i), width=16, height=16) for i in (shade + 50, shade + 99))
        trajectory.images = {"IMG_001": ImageHit(title="h", url="u", image=reference)}
        trajectory.program = Program(
            gen_prompt="the first reference image", reference_images=(ReferenceImage(img_id="IMG_001"),)
        )
        trajectory.rendered, trajectory.outcome, trajectory.reason = picture, Outcome.SCORED, ""
        trajectory.verdict = Verdict(
            image=BEFORE,
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=False),
            judge="old/1",
            formula=ScoreFormula.RELEASE_SUMMARY,
        )
        trajectory.reward = combine_reward(trajectory.verdict, 1, RewardConfig())
    return trajectory


def write_run(root: Path, config: Path) -> Path:
    """A run with three held-out rollouts, two judged and one without a program, and one step of two rollouts."""
    run, resolved = root / "run", load_config(str(config))
    with RunStore.open(str(run), resolved, run_seed=1) as store:
        truths = [store.images.put(png(n), width=16, height=16) for n in range(3)]
        requests = [
            Request(id=f"t-{n}", prompt=f"p {n}", eval_type=EvalType.QUALITY, truth_image=truth)
            for n, truth in enumerate(truths)
        ]
        keys = [SampleKey(step=0, request_id=request.id, sample=0) for request in requests]
        store.put_requests("heldout", requests)
        store.put_trajectories("heldout-final", [play(store, key, n, judged=n < 2) for n, key in enumerate(keys)])
        trained = resolved.requests.build(store.images).train(0)
        samples = [SampleKey(step=1, request_id=trained.id, sample=n) for n in range(2)]
        group = Group(trained.id, 1, [play(store, key, 10 + n) for n, key in enumerate(samples)])
        store.put_group(group, 0)
        store.commit_step(1, [group], {}, "state")
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


MEASURED = "{type: 'genevolve_ray.commands.plugin_templates.judge:MyJudge'}"


def test_a_judge_without_a_kscore_scores_the_pictures_beside_the_stored_scores(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    with playing(World()) as world:
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        ended = genevolve("rescore", run, "--output", out, "--in-process", "--set", f"judge={MEASURED}")
        assert ended.code == 0, ended.err
        assert genevolve("rescore", run, "--output", out, "--in-process", "--set", f"judge={MEASURED}").code == 0
    assert not world.calls
    rows = json.loads((out / "rescore_rows.json").read_text())
    # A picture of one gray has no contrast and no saturation.
    assert [row["after"] for row in rows] == [{"judge.contrast": 0.0, "judge.saturation": 0.0}] * 2
    assert {row["before"]["judge.visual_correctness"] for row in rows} == {0.5}
    found = json.loads((out / "rescore.json").read_text())
    assert found["components"] == {}
    assert found["with_reward"]["judge.contrast"] == {"rows": 2, "rank_correlation": None}
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert verdicts[0]["genevolve_ray"]["verdicts"]["judge"]["judge"] == "my-judge/1:256"
    assert not (out / "results_eval.json").exists()


def test_several_judges_score_the_same_pictures_and_shared_components_are_compared(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    with playing(World()) as world:
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        ended = genevolve("rescore", run, "--output", out, "--in-process", "--set", f"judges={{mine: {MEASURED}}}")
    assert ended.code == 0, ended.err
    assert world.calls == {"judge": 2}
    found = json.loads((out / "rescore.json").read_text())
    assert (found["before"], found["after"], found["difference"]) == (0.5, 0.75, 0.25)
    assert found["components"]["judge.faithfulness"]["difference"] == 1.0
    # The requests had no text before, so that its score has nothing to be compared with.
    assert set(found["with_reward"]) == {"judge.text_accuracy", "mine.contrast", "mine.saturation"}
    assert "KScore 0.5 before, 0.75 now" in ended.err


def test_an_ensemble_in_the_open_form_scores_the_pictures(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    members = {"a": member(Critic), "b": member(Critic, grade=0.5)}
    judge = json.dumps({"type": "ensemble", "config": {"form": "open", "members": members}})
    with playing(World()) as world:
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        refused = genevolve("rescore", run, "--output", out, "--formula", "release-summary", "--set", f"judge={judge}")
        ended = genevolve(
            "rescore", run, "--output", out, "--in-process", "--formula", "paper", "--set", f"judge={judge}"
        )
    assert refused.code == 2 and "which reward.formula=release-summary cannot alter" in refused.err
    assert ended.code == 0, ended.err
    [after, _] = [row["after"] for row in json.loads((out / "rescore_rows.json").read_text())]
    assert (after["judge.aesthetics"], after["judge.sufficiency"]) == (0.75, 1.0) and "judge.agreement" in after


def test_judges_of_groups_are_left_out(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    judges = json.dumps({"pairs": {"type": "ensemble_members:Ranker"}, "mine": yaml.safe_load(MEASURED)})
    with playing(World()) as world:
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        ended = genevolve("rescore", run, "--output", out, "--in-process", "--set", f"judges={judges}")
    assert ended.code == 0, ended.err
    assert "judges.pairs is left out: it judges groups, which only a run has" in ended.err
    after = json.loads((out / "rescore_rows.json").read_text())[0]["after"]
    assert {name.partition(".")[0] for name in after} == {"judge", "mine"}


def test_a_judge_that_fails_leaves_the_scores_of_the_others_and_is_asked_again(
    genevolve: Callable[..., Any], tmp_path: Path
) -> None:
    world = World(fault=lambda service, body: 500 if body["id"] == "t-0" else 0)
    with playing(world):
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        arguments = ("rescore", run, "--output", out, "--in-process", "--set", f"judges={{mine: {MEASURED}}}")
        assert genevolve(*arguments).code == 1
        first, second = json.loads((out / "rescore_rows.json").read_text())
        assert set(first["after"]) == {"mine.contrast", "mine.saturation"} and "judge.kscore" in second["after"]
        world.fault = lambda service, body: 0
        assert genevolve(*arguments).code == 0
    assert "judge.kscore" in json.loads((out / "rescore_rows.json").read_text())[0]["after"]


def test_the_rollouts_of_training_are_judged_again(genevolve: Callable[..., Any], tmp_path: Path) -> None:
    with playing(World()) as world:
        run, out = write_run(tmp_path, write_config(tmp_path / "my.yaml", world)), tmp_path / "again"
        ended = genevolve("rescore", run, "--output", out, "--rollouts", "steps", "--in-process")
    assert ended.code == 0, ended.err
    assert world.calls == {"judge": 2}
    found = json.loads((out / "rescore.json").read_text())
    assert (found["rows"], found["rollouts"], found["after"]) == (2, "steps", pytest.approx(0.75))
    rows = json.loads((out / "results_eval.json").read_text())
    assert [(out / row["output_path"]).read_bytes() for row in rows[:2]] == [png(60), png(61)]


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
        (("--output", "run/again"), "is inside the run"),
        (("--output", "o", "--rollouts", "nothing"), "the run has heldout-final, steps"),
        (("--output", "o", "--stored", "--set", "judge.config.version=2"), "omit it to use another judge"),
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
