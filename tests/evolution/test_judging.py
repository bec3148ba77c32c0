"""Several judges side by side: verdicts, failures, usage and rewards of a sample and of a group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from loop_fakes import make_trajectory

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.normalising import normalise_group
from genevolve_ray.evolution.services import kscore_judge
from genevolve_ray.records.components import AnyVerdict, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageRef, reference
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.usage import Usage, metered, record_usage
from genevolve_ray.records.verdict import ImageScores, Reward, RewardConfig, ScoreFormula, Sufficiency, Verdict

CHECKS = Sufficiency(facts=True, reference_binding=True, skill_knowledge=False, executable_constraints=False)
SCORES = ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=1, aesthetics=1)


class Critic:
    """Gives a KScore of 1 and a sufficiency of 0.5."""

    identity = "critic/1"

    async def judge(self, *_: object) -> AnyVerdict:
        record_usage("judge", Usage(calls=1))
        return Verdict(image=SCORES, text=CHECKS, judge=self.identity, formula=ScoreFormula.PAPER)


class Number:
    """Gives one number, or fails, after it has met the other judges."""

    identity = "number/1"
    components: Mapping[str, ComponentRange] = {"score": ComponentRange(low=0, high=10)}

    def __init__(self, value: float | None, meeting: asyncio.Barrier | None = None) -> None:
        self.value, self.meeting = value, meeting

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        record_usage("judge", Usage(calls=1))
        if self.meeting is not None:
            await self.meeting.wait()
        if self.value is None:
            raise InfraFailure("the number is lost")
        return OpenVerdict(components={"score": Component(value=self.value, high=10)}, judge=self.identity)


def settled(panel: Panel) -> Trajectory:
    request = Request(id="r", prompt="draw", eval_type=EvalType.QUALITY)
    key = SampleKey(step=0, request_id="r", sample=0)
    trajectory = Trajectory(key, "draw", TokenLedger(), Provenance(profile="p", engine="e"))
    picture, program = reference(b"p", width=8, height=8), Program(gen_prompt="a heron", reference_images=())

    async def run() -> Trajectory:
        with metered() as meter:
            panel.settle(trajectory, await panel.judge(request, picture, program, ()))
        trajectory.usage = dict(meter.by_service)
        return trajectory

    return asyncio.run(run())


def test_all_judges_work_at_once_and_their_use_is_counted_by_name() -> None:
    async def meeting() -> asyncio.Barrier:
        return asyncio.Barrier(2)

    barrier = asyncio.run(meeting())
    judges = {"one": Number(4, barrier), "two": Number(6, barrier)}
    reward = RewardConfig(components={"kscore": 0.5, "one.score": 0.25, "two.score": 0.25})
    trajectory = settled(Panel(Critic(), judges, reward))
    assert trajectory.reward == Reward(
        total=0.75, image=1.0, text=0.5, parts={"kscore": 1.0, "one.score": 0.4, "two.score": 0.6}
    )
    assert trajectory.verdict is not None and list(trajectory.verdicts) == ["one", "two"]
    assert trajectory.components()["two.score"].value == 6
    assert trajectory.components()["judge.sufficiency"].value == 0.5
    assert {service: used.calls for service, used in trajectory.usage.items()} == {
        "judge": 1, "judge.one": 1, "judge.two": 1
    }  # fmt: skip


def test_a_judge_that_fails_fails_the_sample_where_the_reward_needs_it() -> None:
    with pytest.raises(InfraFailure, match="the number is lost"):
        settled(Panel(Critic(), {"one": Number(None)}, RewardConfig(components={"score": 1.0})))


def test_a_judge_that_the_reward_does_not_name_may_fail() -> None:
    trajectory = settled(Panel(Critic(), {"one": Number(None), "two": Number(3)}, RewardConfig()))
    assert trajectory.reward == Reward(total=0.75, image=1.0, text=0.5)
    assert list(trajectory.verdicts) == ["two"]


def test_a_judge_without_a_kscore_may_be_the_only_one() -> None:
    trajectory = settled(Panel(Number(5), {}, RewardConfig(components={"score": 2.0})))
    assert trajectory.verdict is None and trajectory.reward is not None
    assert (trajectory.reward.total, trajectory.components()["judge.score"].value) == (1.0, 5)


def test_the_reward_of_the_paper_needs_a_kscore() -> None:
    with pytest.raises(UserFault, match=r"number/1 gives no KScore: set reward.components, from score"):
        Panel(Number(5), {}, RewardConfig())


class OpenKscore(Number):
    """Measures something that it calls kscore, without the four grades."""

    components = {"kscore": ComponentRange()}
    gives_kscore = False


def test_a_component_named_kscore_is_not_the_grades_of_one() -> None:
    with pytest.raises(UserFault, match=r"number/1 gives no KScore: set reward.components, from kscore"):
        Panel(OpenKscore(1), {}, RewardConfig())
    with pytest.raises(UserFault, match=r"number/1 gives no KScore, only kscore: name another judge"):
        kscore_judge(OpenKscore(1))
    critic = Critic()
    assert kscore_judge(critic) is critic


def group_of(*parts: dict[str, float] | None, closed: str = "") -> Group:
    """A group with these parts of rewards; None is a policy failure."""
    made = []
    for sample, one in enumerate(parts):
        key = SampleKey(step=0, request_id="r", sample=sample)
        trajectory = make_trajectory(key, Outcome.POLICY_FAILURE if one is None else Outcome.SCORED)
        if one is not None:
            trajectory.reward = Reward(total=sum(one.values()), image=0, text=0, parts=one)
        made.append(trajectory)
    return Group("r", 0, made)


def test_z_scores_let_a_component_of_small_spread_count_as_much_as_another() -> None:
    group = group_of({"a": 0.0, "b": 0.52}, {"a": 1.0, "b": 0.50})
    normalise_group(group, RewardConfig(components={"a": 1.0, "b": 2.0}, normalise="zscore"))
    assert [t.compared for t in group.trajectories] == pytest.approx([1.0, -1.0])
    assert group.scores() == pytest.approx([0.52, 1.5])


def test_ranks_are_shared_by_equal_values_and_a_policy_failure_has_the_lowest() -> None:
    group = group_of({"a": 0.3}, {"a": 0.9}, {"a": 0.3}, None)
    normalise_group(group, RewardConfig(components={"a": 1.0}, normalise="rank"))
    assert [t.compared for t in group.trajectories] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert group.scores() == [0.3, 0.9, 0.3, 0.0]


def test_a_missing_component_gives_its_weight_to_the_others() -> None:
    group = group_of({"a": 0.0, "b": 0.0}, {"a": 1.0}, {"a": 0.5, "b": 1.0})
    normalise_group(group, RewardConfig(components={"a": 1.0, "b": 1.0}, normalise="rank", missing="leave_out"))
    assert [t.compared for t in group.trajectories] == pytest.approx([0.0, 2.0, 1.5])


def test_a_rank_among_equal_values_is_that_of_the_middle() -> None:
    # A sample that lacks the component is neither above nor below those that have it.
    group = group_of({"a": 0.0, "b": 0.5}, {"a": 0.5}, {"a": 1.0, "b": 0.5})
    normalise_group(group, RewardConfig(components={"a": 1.0, "b": 1.0}, normalise="rank", missing="leave_out"))
    assert [t.compared for t in group.trajectories] == pytest.approx([0.5, 1.0, 1.5])


def test_z_scores_of_equal_values_are_0() -> None:
    group = group_of({"a": 0.3}, {"a": 0.3})
    normalise_group(group, RewardConfig(components={"a": 1.0}, normalise="zscore"))
    assert [t.compared for t in group.trajectories] == [0.0, 0.0]


def test_without_normalization_rewards_are_compared_as_they_are() -> None:
    group = group_of({"a": 0.3}, {"a": 0.9})
    normalise_group(group, RewardConfig(components={"a": 1.0}))
    assert [t.compared for t in group.trajectories] == group.scores()
