"""Several judges that give one verdict: means and medians, agreement, members that fail, and what is declared before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from ensemble_members import Critic, Number, Ranker, member
from pydantic import ValidationError
from vlm_judge_helpers import HIT, IMAGE, PROGRAM, REQUEST, TRUTH

from genevolve_ray.config import load_config
from genevolve_ray.contracts.judge import check_judge
from genevolve_ray.doctor.preflight import check_kscore, check_reward
from genevolve_ray.doctor.settings_tree import tokens
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.ensemble_judge import EnsembleJudge, EnsembleJudgeConfig
from genevolve_ray.evolution.patience import time_limit
from genevolve_ray.evolution.plugins import JudgeSpec, PluginFault
from genevolve_ray.judges.protocol import declared_components, gives_kscore, needs_truth
from genevolve_ray.records.components import AnyVerdict
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.plugin_results import PluginResultFault
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    UNEXAMINED,
    ImageScores,
    ScoreFormula,
    SufficiencyBin,
    Verdict,
)

ENSEMBLE = "genevolve_ray.evolution.ensemble_judge:EnsembleJudge"


def config_of(members: Mapping[str, Any], **settings: Any) -> EnsembleJudgeConfig:
    return EnsembleJudgeConfig.model_validate({"members": members, **settings})


def ensemble(members: Mapping[str, Any], **settings: Any) -> EnsembleJudge:
    return EnsembleJudge(config_of(members, **settings))


async def asked(judge: EnsembleJudge) -> Any:
    return await judge.judge(REQUEST, IMAGE, TRUTH, PROGRAM, [HIT])


NUMBERS = {"a": member(Number, value=2), "b": member(Number, value=4), "c": member(Number, weight=2, value=8)}
CRITICS = {"a": member(Critic, grade=1), "b": member(Critic, grade=0.5, text=0, sufficiency=0.5)}


async def test_a_component_is_the_weighted_mean_of_the_members() -> None:
    verdict = await asked(ensemble(NUMBERS))
    component = verdict.components["score"]
    assert component.value == pytest.approx((2 + 4 + 2 * 8) / 4) and component.high == 10
    assert component.rationale == "a 2: why; b 4: why; c 8: why"
    assert [one.label for one in component.artefacts] == ["2", "4", "8"]


async def test_or_the_median() -> None:
    odd = {name: {**spec, "weight": 1} for name, spec in NUMBERS.items()}
    assert (await asked(ensemble(odd, combine="median"))).components["score"].value == 4
    even = {name: odd[name] for name in ("a", "c")}
    assert (await asked(ensemble(even, combine="median"))).components["score"].value == 5


async def test_agreement_is_one_less_the_range_of_the_members_on_the_common_scale() -> None:
    verdict = await asked(ensemble(NUMBERS))
    assert verdict.components["agreement"].value == pytest.approx(1 - (8 - 2) / 10)
    same = await asked(ensemble({"a": NUMBERS["a"], "b": NUMBERS["a"]}))
    assert same.components["agreement"].value == 1


async def test_agreement_is_the_mean_over_the_components_that_are_named() -> None:
    # The critics differ by 0.5 in three grades and the sufficiency, by 1 in the letters; PAPER gives 1 and 0.3.
    spreads = {"faithfulness": 0.5, "visual_correctness": 0.5, "aesthetics": 0.5, "sufficiency": 0.5}
    spreads |= {"text_accuracy": 1, "kscore": 0.7}
    verdict = await asked(ensemble(CRITICS, form="open"))
    assert verdict.components["agreement"].value == pytest.approx(1 - sum(spreads.values()) / len(spreads))
    for name, spread in spreads.items():
        one = await asked(ensemble(CRITICS, agreement=[name]))
        assert one.components["agreement"].value == pytest.approx(1 - spread)


async def test_members_with_different_components_are_put_side_by_side() -> None:
    judge = ensemble({"a": CRITICS["a"], "n": NUMBERS["a"]})
    verdict = await asked(judge)
    assert (verdict.components["kscore"].value, verdict.components["score"].value) == (1, 2)
    assert "agreement" not in verdict.components and "agreement" not in declared_components(judge)


async def test_kscore_judges_give_one_kscore() -> None:
    judge = ensemble(CRITICS)
    verdict = await asked(judge)
    assert isinstance(verdict, Verdict) and gives_kscore(judge)
    assert verdict.image == ImageScores(faithfulness=0.75, visual_correctness=0.75, text_accuracy=0.5, aesthetics=0.75)
    assert (verdict.text, verdict.formula) == (SufficiencyBin(score=0.75), ScoreFormula.PAPER)
    assert (verdict.rationale, verdict.text_rationale) == ("a 1: seen; b 0.3: seen", "a 1; b 0.5")
    assert verdict.judge == judge.identity and verdict.flags == ()


async def test_the_sufficiency_between_two_bins_is_the_lower_one_and_flagged() -> None:
    between = {**CRITICS, "b": member(Critic, sufficiency=0.75, flags=["off-grid:aesthetics"])}
    verdict = await asked(ensemble(between))
    assert (verdict.text, verdict.flags) == (SufficiencyBin(score=0.75), ("off-grid:aesthetics", "snapped:sufficiency"))
    opened = await asked(ensemble(between, form="open"))
    assert opened.components["sufficiency"].value == 0.875


async def test_half_of_the_members_decide_whether_there_is_a_text() -> None:
    none, some = member(Critic, text=None), member(Critic, text=0.5)
    half = await asked(ensemble({"a": none, "b": some}))
    assert (half.image.text_accuracy, half.flags) == (0.5, ("split:text_accuracy",))
    most = await asked(ensemble({"a": none, "b": some, "c": none}))
    assert (most.image.text_accuracy, most.flags) == (None, ("split:text_accuracy",))
    assert (await asked(ensemble({"a": none, "b": none}))).flags == ()


async def test_an_examination_that_failed_is_left_out_and_without_any_the_verdict_says_so() -> None:
    failed = member(Critic, sufficiency=None)
    for form in ("kscore", "open"):
        one = await asked(ensemble({"a": failed, "b": CRITICS["b"]}, form=form))
        none = await asked(ensemble({"a": failed, "b": failed}, form=form))
        assert (one.flags, none.flags) == ((), (UNEXAMINED, EXAMINATION_FAILED))
        if form == "kscore":
            assert (one.text.score, none.examined) == (0.5, False)
        else:
            assert one.components["sufficiency"].value == 0.5 and "sufficiency" not in none.components


async def test_a_member_that_failed_is_no_zero() -> None:
    members = {**NUMBERS, "b": member(Number, fails=True)}
    with pytest.raises(InfraFailure, match=r"2 of 3 needed members gave a verdict; b: the number is lost"):
        await asked(ensemble(members))
    verdict = await asked(ensemble(members, min_members=2))
    assert verdict.components["score"].value == pytest.approx((2 + 2 * 8) / 3)
    assert verdict.flags == ("no-verdict:b",)
    critics = {**CRITICS, "c": member(Critic, fails=True)}
    kscore = await asked(ensemble(critics, min_members=1))
    assert isinstance(kscore, Verdict) and kscore.flags == ("no-verdict:c",)


async def test_other_errors_of_a_member_are_not_hidden() -> None:
    judge = ensemble(NUMBERS)

    async def broken(*_: object) -> AnyVerdict:
        raise ZeroDivisionError

    judge._members["b"].judge = broken
    with pytest.raises(ExceptionGroup) as raised:
        await asked(judge)
    assert raised.group_contains(ZeroDivisionError)


@pytest.mark.parametrize("given", [None, 0.5])
async def test_a_member_that_returns_no_verdict_is_named(given: object) -> None:
    judge = ensemble(NUMBERS)

    async def wrong(*_: object) -> object:
        return given

    judge._members["b"].judge = wrong  # type: ignore[assignment]
    with pytest.raises(ExceptionGroup) as raised:
        await asked(judge)
    said = r"^members\.b: judge ensemble_members:Number: judge returned (None|float)\. Legal: "
    assert raised.group_contains(PluginResultFault, match=said)


async def test_a_component_that_was_not_declared_is_a_failure() -> None:
    members = {"a": NUMBERS["a"], "b": member(Number, sent="other")}
    with pytest.raises(InfraFailure, match=r"b gives other in \[0, 10\], which it did not declare"):
        await asked(ensemble(members))


async def test_members_judge_at_the_same_time_and_their_use_is_counted_by_name() -> None:
    judge, meeting = ensemble({"a": CRITICS["a"], "n": NUMBERS["a"]}), asyncio.Barrier(2)
    for one in judge._members.values():

        async def met(*arguments: Any, ask: Any = one.judge) -> AnyVerdict:
            await meeting.wait()
            verdict: AnyVerdict = await ask(*arguments)
            return verdict

        one.judge = met
    with metered() as meter:
        await asked(judge)
    assert {name: use.calls for name, use in meter.by_service.items()} == {"judge.a": 1, "judge.n": 2}


async def test_only_members_that_need_the_truth_get_it() -> None:
    judge = ensemble({"a": CRITICS["a"], "n": NUMBERS["a"]})
    await asked(judge)
    critic, number = judge._members.values()
    assert (critic.truths, number.truths) == ([TRUTH], [b""])
    assert needs_truth(judge) and not needs_truth(EnsembleJudge, config_of(NUMBERS))


def test_what_may_be_missing_is_declared() -> None:
    def sometimes(members: Mapping[str, Any], **settings: Any) -> dict[str, bool]:
        return {n: s.sometimes for n, s in declared_components(EnsembleJudge, config_of(members, **settings)).items()}

    assert sometimes(NUMBERS) == {"score": False, "agreement": False}
    assert sometimes(NUMBERS, min_members=2) == {"score": False, "agreement": False}
    assert sometimes(NUMBERS, min_members=1) == {"score": False, "agreement": True}
    mixed = {"a": NUMBERS["a"], "b": member(Number, sometimes=True)}
    assert sometimes(mixed) == {"score": False, "agreement": True}
    assert sometimes(mixed, min_members=1) == {"score": True, "agreement": True}
    assert sometimes(CRITICS)["text_accuracy"] and not sometimes(CRITICS)["kscore"]


def test_the_strictest_limits_of_truths_count() -> None:
    members = {"a": member(Critic, max_bytes=900), "b": member(Critic, max_bytes=700), "n": NUMBERS["a"]}
    limits = EnsembleJudge.truth_limits(config_of(members))
    assert limits is not None and (limits.max_bytes, limits.min_side) == (700, 9)
    assert EnsembleJudge.truth_limits(config_of(NUMBERS)) is None


@pytest.mark.parametrize("members", [NUMBERS, CRITICS])
@pytest.mark.parametrize("form", ["auto", "open"])
async def test_it_keeps_the_contract_of_a_judge(members: dict[str, Any], form: str) -> None:
    judge = ensemble(members, form=form)
    for one in judge._members.values():

        async def opened(*arguments: Any, ask: Any = one.judge) -> AnyVerdict:
            if not all(data.startswith(b"\x89PNG") for data in arguments[1:3] if data or needs_truth(judge)):
                raise InfraFailure("no picture")
            verdict: AnyVerdict = await ask(*arguments)
            return verdict

        one.judge = opened
    assert judge.deterministic
    await check_judge(judge)


async def test_it_passes_on_the_images_and_the_end() -> None:
    judge, images = ensemble({**CRITICS, "n": NUMBERS["a"]}), MemoryImages()
    judge.use_images(images)
    judge.check_health()
    await judge.aclose()
    critics = [one for one in judge._members.values() if isinstance(one, Critic)]
    assert [(one.images, one.closed) for one in critics] == [(images, True)] * 2


def test_the_identity_names_the_members_and_whatever_alters_the_verdict() -> None:
    judge = ensemble(CRITICS)
    assert judge.identity.startswith("ensemble/1:mean:") and judge.identity.endswith(":a=critic/1.0,b=critic/0.5")
    heavier = {**CRITICS, "a": {**CRITICS["a"], "weight": 3}}
    others = [ensemble(heavier), ensemble(CRITICS, combine="median"), ensemble(CRITICS, form="open")]
    assert len({one.identity for one in (judge, *others)}) == 4
    assert not ensemble(CRITICS, min_members=1).deterministic


def test_an_ensemble_may_be_a_member() -> None:
    judge = ensemble({"a": CRITICS["a"], "more": {"type": ENSEMBLE, "config": {"members": CRITICS}}})
    assert gives_kscore(judge) and "more=ensemble/1:mean:" in judge.identity


async def test_the_agreement_of_an_open_ensemble_is_that_of_its_own_members() -> None:
    inner = {"type": ENSEMBLE, "config": {"members": {"b": NUMBERS["b"], "c": NUMBERS["c"]}}}
    judge = ensemble({"a": NUMBERS["a"], "more": inner})
    # The inner members say 4 and 8 with weights 1 and 2.
    verdict, within = await asked(judge), (4 + 2 * 8) / 3
    assert verdict.components["score"].value == pytest.approx((2 + within) / 2)
    assert verdict.components["agreement"].value == pytest.approx(1 - (within - 2) / 10)
    assert set(verdict.components) == set(declared_components(judge))


@pytest.mark.parametrize(
    ("members", "settings", "said"),
    [
        (
            {"a": NUMBERS["a"], "b": member(Number, high=5)},
            {},
            r"score different ranges: \[0, 10\] of a, \[0, 5\] of b",
        ),
        ({"a": NUMBERS["a"], "b": member(Number, name="agreement")}, {}, "members.b has a component 'agreement'"),
        ({"a": CRITICS["a"], "b": NUMBERS["a"]}, {"form": "kscore"}, "members that give KScores, and b gives none"),
        (NUMBERS, {"agreement": ["kscore"]}, "'kscore' is no component of two members; those are score"),
        ({"a": CRITICS["a"], "b": member(Critic, formula="release-summary")}, {}, "paper of a, release-summary of b"),
        ({"a": CRITICS["a"], "b": member(Critic, grad=1)}, {}, "members.b: judge.config.grad: unknown key"),
        (
            {"a": CRITICS["a"], "b": member(Ranker)},
            {},
            "members.b: judge ensemble_members:Ranker judges groups: name it under judges of the run",
        ),
        (
            {"a": CRITICS["a"], "b": {"type": "nowhere:Judge"}},
            {},
            "members.b: plug-in 'nowhere:Judge' cannot be loaded",
        ),
    ],
)
def test_members_that_do_not_fit_are_named(members: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    for use in (EnsembleJudge.check, EnsembleJudge):
        with pytest.raises(PluginFault, match=said):
            use(config_of(members, **settings))


@pytest.mark.parametrize(
    ("members", "settings", "said"),
    [
        ({"a": NUMBERS["a"]}, {}, "at least 2 items"),
        (NUMBERS, {"min_members": 4}, "min_members=4, but there are 3 members"),
        (NUMBERS, {"combine": "median"}, "combine=median has no weights, but members.c.weight is set"),
        (CRITICS, {"form": "kscore", "agreement": ["kscore"]}, "agreement is a component of form=open"),
        ({"a": NUMBERS["a"], "b.c": NUMBERS["b"]}, {}, "'b.c': a name has lower-case letters"),
        ({"a": NUMBERS["a"], "b": {**NUMBERS["b"], "runtime_env": {"pip": ["x"]}}}, {}, r"runtime_env \(pip\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(members: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config_of(members, **settings)


def test_a_member_of_the_base_can_be_removed() -> None:
    assert set(config_of({**NUMBERS, "c": None}).members) == set(NUMBERS) - {"c"}
    with pytest.raises(ValidationError, match="at least 2 items"):
        config_of({"a": NUMBERS["a"], "b": None})


def endpoint(port: int) -> dict[str, Any]:
    model = {"url": f"http://127.0.0.1:{port}", "model": "m", "timeout_s": 100, "token_env": f"TOKEN_{port}"}
    return {"type": "endpoint", "config": {"kscore": model}}


def test_the_services_of_members_are_those_of_the_run() -> None:
    spec = JudgeSpec(type="ensemble", config={"members": {"a": endpoint(1), "b": endpoint(2)}})
    # Two members of three rounds of four tries.
    assert time_limit(spec) > 2 * 3 * 4 * 100
    run = load_config("atlas", [f"judge={spec.model_dump_json()}"])
    keys = {token.variable: token.key for token in tokens(run)}
    assert keys == {f"TOKEN_{n}": f"judge.config.members.{name}.config.kscore" for n, name in ((1, "a"), (2, "b"))}
    assert (
        JudgeSpec(type="ensemble", config=spec.config).settings(EnsembleJudge).formula is ScoreFormula.RELEASE_SUMMARY
    )


def test_an_open_ensemble_needs_a_reward_of_components() -> None:
    def run(form: str, *more: str) -> Any:
        spec = JudgeSpec(type=ENSEMBLE, config={"members": CRITICS, "form": form})
        return load_config("atlas", [f"judge={spec.model_dump_json()}", *more])

    check_reward(run("kscore"))
    check_kscore(run("kscore").judge)
    check_reward(run("open", "reward.components={kscore: 1}", "reward.gates={agreement: 0.5}"))
    with pytest.raises(UserFault, match="judge gives no KScore: set reward.components"):
        check_reward(run("open"))
    with pytest.raises(UserFault, match="gives no KScore, only faithfulness"):
        check_kscore(run("open").judge)


def test_the_formula_of_an_open_ensemble_is_that_of_the_reward() -> None:
    def run(*more: str, form: str = "open") -> Any:
        spec = JudgeSpec(type=ENSEMBLE, config={"members": CRITICS, "form": form})
        return load_config("atlas", [*more, f"judge={spec.model_dump_json()}", "reward.components={judge.kscore: 1}"])

    assert run().reward.formula is ScoreFormula.PAPER
    check_reward(run())
    check_reward(run("reward.formula=release-summary", form="kscore"))  # It has the grades.
    said = (
        "judge gives KScores by the formula paper in an open verdict, which reward.formula=release-summary cannot alter"
    )
    with pytest.raises(UserFault, match=said):
        check_reward(run("reward.formula=release-summary"))
    further = JudgeSpec(type=ENSEMBLE, config={"members": CRITICS, "form": "open"}).model_dump_json()
    run_of_two = load_config("atlas", [f"judges={{more: {further}}}", "reward.formula=release-summary"])
    with pytest.raises(UserFault, match=r"judges.more gives KScores by the formula paper"):
        check_reward(run_of_two)
