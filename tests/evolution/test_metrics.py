"""Numbers about groups and evaluations."""

from __future__ import annotations

import pytest
from loop_fakes import make_trajectory

from genevolve_ray.evolution import metrics as measures
from genevolve_ray.evolution.metrics import (
    Clock,
    ParityError,
    check_parity,
    component_metrics,
    evaluation_metrics,
    group_metrics,
    verdict_parts,
    warnings_of,
)
from genevolve_ray.records.components import Component, OpenVerdict
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import ImageScores, Reward, RewardConfig, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS

NO_TEXT = ImageScores(faithfulness=0, visual_correctness=0, text_accuracy=None, aesthetics=0)


def attempt(outcome: Outcome = Outcome.SCORED, score: float = 0.5, sample: int = 0) -> Trajectory:
    return make_trajectory(SampleKey(step=1, request_id="r", sample=sample), outcome, score)


def test_failures_of_the_policy_count_as_zero_and_of_the_world_not_at_all() -> None:
    outcomes = [Outcome.SCORED, Outcome.SCORED, Outcome.POLICY_FAILURE, Outcome.INFRA_FAILURE]
    metrics = evaluation_metrics([attempt(outcome, 0.6) for outcome in outcomes])
    assert metrics["reward_mean"] == pytest.approx(1.2 / 3)
    assert metrics["reward_image"] == metrics["reward_text"] == pytest.approx(1.2 / 3)
    assert metrics["valid_fraction"] == pytest.approx(2 / 3)
    assert (metrics["policy_failures"], metrics["infra_failures"]) == (1, 1)
    assert metrics["response_tokens_mean"] == 2


def test_the_parts_add_up_to_the_mean_reward() -> None:
    trajectories = [attempt(), attempt(Outcome.POLICY_FAILURE), attempt()]
    for trajectory, image, text in zip(trajectories[::2], (0.4, 0.8), (1.0, 0.5), strict=True):
        trajectory.reward = Reward(total=0.5 * image + 0.5 * text - 0.01, image=image, text=text, cost=0.01)
    m = evaluation_metrics(trajectories)
    assert m["reward_mean"] == pytest.approx(0.5 * m["reward_image"] + 0.5 * m["reward_text"] - m["reward_cost"])


def test_components_have_means_over_the_trajectories_in_which_they_were_measured() -> None:
    made = [attempt(), attempt(), attempt(Outcome.POLICY_FAILURE)]
    for trajectory, value in zip(made, (0.25, 0.75), strict=False):
        trajectory.verdicts = {"ocr": OpenVerdict(components={"overlap": Component(value=value)}, judge="ocr/1")}
        trajectory.reward = Reward(
            total=0, image=0, text=0, parts={"overlap": value}, closed="" if value < 0.5 else "x"
        )
    made[1].verdicts["clip"] = OpenVerdict(components={"near": Component(value=9, high=10)}, judge="clip/1")
    expected = {"component_ocr.overlap": 0.5, "component_clip.near": 9.0, "gates_closed": 0.5}
    assert component_metrics(made) == verdict_parts(made) == expected
    assert expected.items() <= group_metrics([Group("r", 1, made)]).items()
    assert component_metrics([attempt()]) == {}


def test_a_judge_that_failed_takes_no_component_of_another_from_the_mean() -> None:
    made = [judged(), judged()]
    made[0].verdicts = {"ocr": OpenVerdict(components={"overlap": Component(value=0.5)}, judge="ocr/1")}
    made[1].verdict = made[1].verdict and made[1].verdict.model_copy(update={"image": NO_TEXT})
    found = component_metrics(made)
    assert (found["component_judge.faithfulness"], found["component_ocr.overlap"]) == (0.5, 0.5)


def test_the_components_of_a_kscore_are_under_the_formula_of_the_reward() -> None:
    trajectory = judged()
    trajectory.verdict = trajectory.verdict and trajectory.verdict.model_copy(update={"image": NO_TEXT})
    trajectory.reward = Reward(total=0.2, image=0.2, text=1.0, parts={"kscore": 0.2})
    reward = RewardConfig(components={"kscore": 1.0}, formula=ScoreFormula.RELEASE_SUMMARY)
    assert component_metrics([trajectory], reward)["component_judge.kscore"] == pytest.approx(0.2)
    assert component_metrics([trajectory])["component_judge.kscore"] == 0.0


@pytest.mark.parametrize(("gates", "expected"), [({"a": 0.5}, 0.0), ({}, None)])
def test_a_step_in_which_no_gate_closed_counts_0_of_them(gates: dict[str, float], expected: float | None) -> None:
    trajectory = attempt()
    trajectory.reward = Reward(total=1, image=0, text=0, parts={"a": 1.0})
    reward = RewardConfig(components={"a": 1.0}, gates=gates)
    assert group_metrics([Group("r", 1, [trajectory])], reward).get("gates_closed") == expected
    assert "gates_closed" not in group_metrics([Group("r", 1, [attempt()])], reward)


def test_an_open_reward_has_no_image_and_text_that_nobody_measured() -> None:
    trajectory = attempt()
    trajectory.reward = Reward(total=0.5, image=0, text=0, parts={"ocr.overlap": 0.5})
    metrics = evaluation_metrics([trajectory, attempt(Outcome.POLICY_FAILURE)])
    assert not {"reward_image", "reward_text"} & metrics.keys()
    assert metrics["reward_mean"] == 0.25


def test_a_step_of_failures_alone_has_the_parts_of_the_reward_of_its_run() -> None:
    failed, reward = [attempt(Outcome.POLICY_FAILURE)], RewardConfig(components={"a": 1.0})
    assert "reward_image" not in evaluation_metrics(failed, reward)
    assert evaluation_metrics(failed, RewardConfig())["reward_image"] == 0


@pytest.mark.parametrize("outcomes", [[], [Outcome.INFRA_FAILURE]])
def test_nothing_scored_is_zero_and_no_error(outcomes: list[Outcome]) -> None:
    metrics = evaluation_metrics([attempt(outcome) for outcome in outcomes])
    assert metrics["reward_mean"] == metrics["valid_fraction"] == 0
    assert metrics["infra_failures"] == len(outcomes)


def test_groups_that_teach_nothing_are_counted() -> None:
    groups = [
        Group("spread", 1, [attempt(score=0.2, sample=0), attempt(score=0.6, sample=1)]),
        Group("equal", 1, [attempt(score=0.5, sample=0), attempt(score=0.5, sample=1)]),
        Group("short", 1, [attempt(sample=0), attempt(Outcome.INFRA_FAILURE, sample=1)]),
        Group("gone", 1, [attempt(Outcome.INFRA_FAILURE)]),
    ]
    metrics = group_metrics(groups)
    assert (metrics["zero_variance_groups"], metrics["short_groups"]) == (1, 2)
    assert metrics["reward_std"] == pytest.approx((0.2 + 0 + 0) / 3)
    assert (metrics["tokens_total"], metrics["policy_tokens"]) == (7 * 5, 7 * 2)


def test_verdict_parts_are_means_over_what_was_judged() -> None:
    trajectories = [attempt(), attempt(), attempt(Outcome.POLICY_FAILURE)]
    for trajectory, text, facts in zip(trajectories[:2], (0.5, None), (True, False), strict=True):
        trajectory.verdict = Verdict(
            image=ImageScores(faithfulness=1, visual_correctness=0.5, text_accuracy=text, aesthetics=0),
            text=Sufficiency(facts=facts, reference_binding=True, skill_knowledge=False, executable_constraints=True),
            judge="fake",
            formula=ScoreFormula.PAPER,
        )
    assert verdict_parts(trajectories) == {
        "faithfulness": 1,
        "visual_correctness": 0.5,
        "text_accuracy": 0.5,
        "aesthetics": 0,
        "facts": 0.5,
        "reference_binding": 1,
        "skill_knowledge": 0,
        "executable_constraints": 1,
    }


def test_the_clock_splits_a_step_into_its_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.0, 15.0, 16.0])
    monkeypatch.setattr(measures, "perf_counter", lambda: next(ticks))
    clock = Clock()
    clock.lap("a")
    clock.lap("b")
    assert clock.seconds() == {"a": 2.0, "b": 3.0, "seconds_step": 6.0}


def test_usage_is_added_up_and_a_cache_has_a_hit_rate() -> None:
    one, two = attempt(), attempt(Outcome.INFRA_FAILURE)
    one.usage = {
        "policy": Usage(calls=3, prompt_tokens=300, completion_tokens=30, seconds=2.0),
        "search": Usage(calls=3, failed_calls=1, cached=2, seconds=1.0, money=0.5),
    }
    two.usage = {"search": Usage(cached=4, money=0.25)}
    metrics = measures.usage_metrics([one, two])
    assert metrics == {
        "service_calls": 3,
        "service_failed_calls": 1,
        "service_cached": 6,
        "service_cached_fraction": 6 / 8,
        "prompt_tokens": 300,
        "completion_tokens": 30,
        "money": 0.75,
        "seconds_services": 1.0,
    }
    assert "service_cached_fraction" not in measures.usage_metrics([attempt()])


def judged(*flags: str) -> Trajectory:
    trajectory = attempt()
    trajectory.verdict = Verdict(
        image=ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=1, aesthetics=1),
        text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True),
        judge="j",
        formula=ScoreFormula.PAPER,
        flags=flags,
    )
    return trajectory


def test_a_judge_on_another_scale_shows_as_clipped_verdicts() -> None:
    trajectories = [
        judged("clipped:faithfulness", "clipped:aesthetics"),
        judged("off-grid:aesthetics"),
        judged(),
        attempt(),
    ]
    metrics = evaluation_metrics(trajectories)
    assert metrics["judge_clipped_fraction"] == pytest.approx(1 / 3)
    [note] = warnings_of(metrics).values()
    assert note.startswith("33% of the verdicts have a value that was clipped") and "out_of_range=refuse" in note


def test_the_note_on_clipped_verdicts_fits_a_judge_that_measures_as_well() -> None:
    [note] = warnings_of(evaluation_metrics([judged("clipped:likeness")])).values()
    assert "(likeness, alignment)" in note and "`low`" in note and "`high`" in note


def test_cut_prompts_are_counted() -> None:
    trajectories = [attempt(), attempt(), attempt()]
    for trajectory in trajectories[:2]:
        trajectory.usage = {CUT_PROMPTS: Usage(images=1), "renderer": Usage(calls=1, images=1)}
    metrics = group_metrics([Group("r", 1, trajectories)])
    assert (metrics["prompts_cut"], metrics["service_calls"]) == (2, 2)
    [note] = warnings_of(metrics).values()
    assert note.startswith("2 prompts are longer than the generator's text encoder reads")


def test_nothing_doubtful_is_no_note() -> None:
    assert warnings_of(group_metrics([Group("r", 1, [judged(), attempt()])])) == {}


def test_parity_holds_for_trajectories_with_pictures_by_themselves() -> None:
    check_parity(3, {"parity": 1e-5, "parity_images": 1e-4}, 1e-4)
    check_parity(3, {}, 1e-4)
    with pytest.raises(ParityError, match=r"step 3: .* over trajectories with pictures is 0\.02, .* is 0\.0001"):
        check_parity(3, {"parity": 1e-5, "parity_images": 0.02}, 1e-4)
