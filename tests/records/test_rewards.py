"""Rewards from components of several judges: names, formulas, gates, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.records.components import KSCORE_SCALES, Component, ComponentRange, OpenVerdict, components_of
from genevolve_ray.records.rewards import OpenReward, resolve_names
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    ImageScores,
    Reward,
    RewardConfig,
    ScoreFormula,
    Sufficiency,
    Verdict,
    combine_reward,
)

OCR = {"overlap": ComponentRange(), "letters": ComponentRange(low=0, high=20)}
DECLARED = {"judge": KSCORE_SCALES, "ocr": OCR}


def graded(text: float | None = 0.5, *, examined: bool = True, visual: float = 0.5) -> Verdict:
    scores = ImageScores(faithfulness=1, visual_correctness=visual, text_accuracy=text, aesthetics=0.5)
    checks = Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=False)
    return Verdict(
        image=scores,
        text=checks if examined else NOT_EXAMINED,
        judge="k/1",
        formula=ScoreFormula.PAPER,
        flags=() if examined else (UNEXAMINED, EXAMINATION_FAILED),
    )


def read(**values: float) -> OpenVerdict:
    components = {n: Component(value=v, low=OCR[n].low, high=OCR[n].high) for n, v in values.items()}
    return OpenVerdict(components=components, judge="ocr/1")


def reward(config: dict[str, object], **verdicts: Verdict | OpenVerdict) -> Reward:
    return OpenReward(RewardConfig.model_validate(config), DECLARED).reward(verdicts, 2)


def harmonic(components: Mapping[str, Component]) -> float:
    return 2 / sum(1 / max(one.scaled, 1e-9) for one in components.values())


def not_a_number(components: Mapping[str, Component]) -> float:
    return math.nan


def unit(components: Mapping[str, Component]) -> float:
    return 1.0 + components["overlap"].value


def needs_text(components: Mapping[str, Component]) -> float:
    return components["text_accuracy"].value


def picky(components: Mapping[str, Component]) -> float:
    if components["overlap"].value > 0.9:
        raise RuntimeError("too good")
    return 1.0


@pytest.mark.parametrize("text", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("formula", ScoreFormula)
@pytest.mark.parametrize("visual", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_the_reward_of_the_paper_in_the_open_form_is_bit_equal(
    text: float | None, formula: ScoreFormula, visual: float
) -> None:
    verdict, plain = graded(text, visual=visual), RewardConfig(formula=formula, call_cost=0.03)
    expected = combine_reward(verdict, 2, plain)
    values = {"components": {"kscore": 0.5, "sufficiency": 0.5}, "formula": formula, "call_cost": 0.03}
    found = reward(values, judge=verdict)
    assert (found.total, found.image, found.text, found.cost) == (
        expected.total, expected.image, expected.text, expected.cost
    )  # fmt: skip


def test_a_verdict_of_kscore_has_components_and_no_value_for_what_was_not_judged() -> None:
    assert set(components_of(graded())) == set(KSCORE_SCALES)
    assert set(KSCORE_SCALES) - set(components_of(graded(None, examined=False))) == {"text_accuracy", "sufficiency"}


def test_names_are_resolved_in_full_or_where_one_judge_has_them() -> None:
    assert resolve_names(("judge.kscore", "overlap"), DECLARED) == {
        "judge.kscore": ("judge", "kscore"),
        "overlap": ("ocr", "overlap"),
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kscor", "no judge has 'kscor'; components are judge.faithfulness, "),
        ("overlap", "write ocr.overlap or b.overlap"),
    ],
)
def test_a_name_that_is_unknown_or_ambiguous_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserFault, match=said):
        resolve_names((name,), {**DECLARED, "b": {"overlap": ComponentRange()}})


@pytest.mark.parametrize(
    ("combine", "total"),
    [
        ("weighted_sum", 2 * 0.75 + 0.5),
        ("product", 0.75**2 * 0.5),
        ("minimum", 0.5),
        ("test_rewards:harmonic", 2 / (1 / 0.75 + 1 / 0.5)),
    ],
)
def test_components_are_combined_on_one_scale(combine: str, total: float) -> None:
    config = {"components": {"sufficiency": 2.0, "letters": 1.0}, "combine": combine}
    found = reward(config, judge=graded(), ocr=read(overlap=0.2, letters=10))
    assert found.total == pytest.approx(total)
    assert found.parts == {"sufficiency": 0.75, "letters": 0.5}


@pytest.mark.parametrize(("letters", "total", "closed"), [(4.9, 0.0, "letters"), (5.0, 0.75, "")])
def test_a_gate_makes_the_reward_0_below_its_value(letters: float, total: float, closed: str) -> None:
    config = {"components": {"sufficiency": 1.0}, "gates": {"letters": 5.0}}
    found = reward(config, judge=graded(), ocr=read(overlap=0.2, letters=letters))
    assert (found.total, found.closed) == (total, closed)


def test_a_missing_component_is_an_infrastructure_failure_that_names_the_cause() -> None:
    config = RewardConfig(components={"kscore": 1.0, "overlap": 1.0})
    with pytest.raises(InfraFailure, match="judge 'ocr' gave no component 'overlap'"):
        OpenReward(config, DECLARED).reward({"judge": graded(), "ocr": read(letters=2)}, 0)
    with pytest.raises(InfraFailure, match="^the server is down$"):
        failures = {"ocr": InfraFailure("the server is down")}
        OpenReward(config, DECLARED).reward({"judge": graded()}, 0, failures)


@pytest.mark.parametrize("combine", ["weighted_sum", "product"])
def test_a_component_that_is_left_out_gives_its_weight_to_the_others(combine: str) -> None:
    config = {"components": {"sufficiency": 1.0, "overlap": 3.0}, "missing": "leave_out", "combine": combine}
    found = reward(config, judge=graded())
    assert found.total == pytest.approx(4 * 0.75 if combine == "weighted_sum" else 0.75**4)
    assert found.parts == {"sufficiency": 0.75}


def test_a_value_stands_in_for_a_missing_component() -> None:
    config = {"components": {"sufficiency": 1.0, "letters": 1.0}, "missing": {"value": 0.25}}
    assert reward(config, judge=graded()).total == 1.0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_value_that_stands_in_has_the_unit_of_its_component(share: float) -> None:
    declared = {**DECLARED, "ocr": {"overlap": ComponentRange(low=-0.1, high=0.3)}}
    config = RewardConfig.model_validate(
        {"components": {"kscore": 1.0, "overlap": 1.0}, "missing": {"value": share}, "combine": "test_rewards:unit"}
    )
    found = OpenReward(config, declared).reward({"judge": graded()}, 0)
    assert found.total == pytest.approx(1 - 0.1 + share * 0.4)
    assert found.parts["overlap"] == pytest.approx(share)


def test_a_function_is_tried_without_what_some_requests_lack() -> None:
    components = {"components": {"kscore": 1.0, "text_accuracy": 1.0}, "combine": "test_rewards:needs_text"}
    OpenReward(RewardConfig.model_validate(components | {"missing": {"value": 0.5}}), DECLARED)
    with pytest.raises(UserFault, match=r"needs_text fails on a trial without text_accuracy: KeyError"):
        OpenReward(RewardConfig.model_validate(components | {"missing": "leave_out"}), DECLARED)


@pytest.mark.parametrize("missing", ["leave_out", {"value": 0.9}])
def test_nothing_stands_in_for_all_components_or_for_a_gate(missing: object) -> None:
    config = {"components": {"overlap": 1.0}, "missing": missing}
    with pytest.raises(InfraFailure, match="overlap"):
        reward(config, judge=graded())
    gated = {"components": {"sufficiency": 1.0}, "gates": {"overlap": 0.5}, "missing": missing}
    with pytest.raises(InfraFailure, match="overlap"):
        reward(gated, judge=graded())


def test_a_value_stands_in_where_the_judge_had_nothing_to_judge_but_not_where_it_failed() -> None:
    config = RewardConfig.model_validate({"components": {"text": 1.0}, "missing": {"value": 0.25}})
    open_reward = OpenReward(config, {"ocr": {"text": ComponentRange(sometimes=True)}})
    assert open_reward.reward({"ocr": read()}, 0).total == 0.25
    with pytest.raises(InfraFailure, match="^the reader is away$"):
        open_reward.reward({}, 0, {"ocr": InfraFailure("the reader is away")})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"components": {"text_accuracy": 1.0}, "missing": "leave_out"},
            "some requests may have no value of text_accuracy, .* set reward.missing to {value: X}, or `alone`",
        ),
        ({"components": {"text_accuracy": 1.0}}, "'text_accuracy' has no value for some requests"),
        ({"components": {"kscore": 1.0}, "gates": {"letters": 30}}, "letters=30 is outside"),
        ({"components": {"kscore": 1.0}, "combine": "nowhere:f"}, "reward.combine=nowhere:f cannot be loaded"),
        ({"components": {"kscore": 1.0}, "combine": "math:pi"}, "is a float, not a function"),
        ({"components": {"kscore": 1.0}, "combine": "test_rewards:not_a_number"}, "returned nan, not a finite number"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_at_the_start(config: dict[str, object], said: str) -> None:
    with pytest.raises(UserFault, match=said):
        OpenReward(RewardConfig.model_validate(config), DECLARED)


def test_a_function_that_fails_later_is_an_infrastructure_failure() -> None:
    config = {"components": {"overlap": 1.0}, "combine": "test_rewards:picky"}
    assert reward(config, judge=graded(), ocr=read(overlap=0.5)).total == 1.0
    with pytest.raises(InfraFailure, match=r"test_rewards:picky: RuntimeError: too good"):
        reward(config, judge=graded(), ocr=read(overlap=1.0))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"gates": {"a": 1}}, "reward.gates={'a': 1.0} needs reward.components"),
        ({"components": {"a": -1.0}}, "one of them must be positive"),
        (
            {"components": {"a": 1.0, "b": -1.0}, "combine": "product"},
            "each must be positive for reward.combine=product",
        ),
        ({"components": {"a": 1.0, "b": 0.0}, "missing": "leave_out"}, "leave_out needs positive weights"),
        ({"components": {"a": 1.0}, "normalise": "rank", "call_cost": 0.1}, "needs reward.combine=weighted_sum and"),
        ({"components": {"a": 1.0, "b": -1.0}, "normalise": "zscore"}, "normalise=zscore needs positive weights"),
        ({"components": {"a": 1.0}, "missing": {"value": 2}}, "less than or equal to 1"),
        ({"components": {"a": 1.0}, "combine": "mean"}, "should match pattern"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig.model_validate(config)
