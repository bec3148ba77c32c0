"""Judges of groups: when they are asked, what their failures cost, and how their verdicts enter rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
from loop_fakes import a_request, make_trajectory

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure, RunError, UserFault
from genevolve_ray.evolution.collect import collect_group, evaluate
from genevolve_ray.evolution.flow import oldest_version
from genevolve_ray.evolution.judging import Judged, Panel
from genevolve_ray.evolution.plugins import JudgeSpec
from genevolve_ray.evolution.ports import RenderedAttempt, RolloutTask
from genevolve_ray.evolution.rollout import Scoring
from genevolve_ray.evolution.services import GroupJudgeService, JudgeService
from genevolve_ray.gateway.rollouts import GatewayRollouts
from genevolve_ray.judges.protocol import Attempt
from genevolve_ray.records.components import KSCORE_SCALES, AnyVerdict, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageRef, MemoryImages, reference
from genevolve_ray.records.plugin_results import PluginResultFault
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import NOT_EXAMINED, ImageScores, MissingValue, RewardConfig, ScoreFormula, Verdict

KEY = SampleKey(step=1, request_id="r", sample=0)
PROGRAM = Program(gen_prompt="a heron", reference_images=())


class Single:
    """Gives each picture 4 of 10, or fails for the samples that it is told."""

    identity = "single/1"
    components: Mapping[str, ComponentRange] = {"score": ComponentRange(high=10)}

    def __init__(self, fails: Callable[[int], bool] = lambda call: False) -> None:
        self.calls, self.fails = 0, fails

    async def judge(self, *_: object) -> AnyVerdict:
        self.calls += 1
        if self.fails(self.calls):
            raise InfraFailure("the single judge is away")
        return OpenVerdict(components={"score": Component(value=4, high=10)}, judge=self.identity)


class Kscores(Single):
    """Declares the components of a KScore."""

    components = KSCORE_SCALES


class Ranks:
    """Gives the attempts of a group scores from 0 to 1 in their order; the first `failures` groups fail."""

    identity = "ranks/1"

    def __init__(self, failures: int = 0, sometimes: bool = False) -> None:
        self.failures = failures
        self.asked: list[list[ImageRef]] = []
        self.components = {"rank": ComponentRange(sometimes=sometimes)}

    async def judge_group(self, request: Request, attempts: Sequence[RenderedAttempt]) -> Sequence[OpenVerdict]:
        self.asked.append([one.image for one in attempts])
        record_usage("judge", Usage(calls=2))
        if len(self.asked) <= self.failures:
            raise InfraFailure("the ranks are lost")
        last = max(1, len(attempts) - 1)
        values = [{"rank": Component(value=place / last)} for place in range(len(attempts))]
        lone = len(attempts) == 1 and self.components["rank"].sometimes
        return [OpenVerdict(components={} if lone else value, judge=self.identity) for value in values]


class Painter:
    """Renders every program to another picture."""

    identity = "painter/1"

    def __init__(self) -> None:
        self.drawn = 0

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        self.drawn += 1
        return reference(f"picture {self.drawn}".encode(), width=8, height=8)


class Played:
    """The rollout port over a scoring: every episode ends in a program, but for the samples that fail."""

    def __init__(self, scoring: Scoring, failed: Sequence[int] = ()) -> None:
        self.scoring, self.failed = scoring, failed
        self.tasks: list[RolloutTask] = []

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.tasks.append(task)
        if task.key.sample in self.failed:
            return make_trajectory(task.key, Outcome.POLICY_FAILURE)
        trajectory = make_trajectory(task.key)
        trajectory.outcome, trajectory.reward, trajectory.program = Outcome.PENDING, None, PROGRAM
        return await self.scoring.score(task, trajectory)

    async def rest(self) -> None: ...

    async def update(self, weights: Any) -> float:
        return 0.0


REWARD = RewardConfig(components={"score": 0.5, "rank": 0.5})


def scene(
    ranks: Ranks, reward: RewardConfig = REWARD, single: Single | None = None, failed: Sequence[int] = ()
) -> Played:
    return Played(Scoring(Painter(), single or Single(), reward, others={"order": ranks}), failed)


async def collected(played: Played, size: int = 3, tries: int = 3, **changes: Any) -> Group:
    settings = {"run_seed": 5, "group_size": size, "max_attempts": tries, "panel": played.scoring.panel} | changes
    return await collect_group(a_request("r"), 1, played, sampling=SamplingParams(), **settings)


async def test_a_group_is_judged_once_when_all_its_samples_have_ended() -> None:
    ranks = Ranks()
    group = await collected(scene(ranks))
    assert [len(asked) for asked in ranks.asked] == [3]
    assert [t.outcome for t in group.trajectories] == [Outcome.SCORED] * 3
    assert group.scores() == pytest.approx([0.2, 0.45, 0.7])
    assert [t.components()["order.rank"].value for t in group.trajectories] == [0, 0.5, 1]
    assert all("judge_group" in t.timings for t in group.trajectories)


async def test_what_a_group_used_is_counted_once_under_the_judges_name() -> None:
    group = await collected(scene(Ranks()))
    assert sum((t.usage.get("judge.order", Usage()) for t in group.trajectories), Usage()) == Usage(calls=2)


async def test_only_samples_with_a_picture_take_part() -> None:
    ranks = Ranks()
    group = await collected(scene(ranks, failed=[1]), size=4)
    assert len(ranks.asked[0]) == 3
    assert group.scores() == pytest.approx([0.2, 0, 0.45, 0.7])


async def test_a_sample_that_was_drawn_again_takes_part_with_its_last_attempt() -> None:
    ranks, single = Ranks(), Single(lambda call: call == 1)
    group = await collected(scene(ranks, single=single))
    lost, *rest = group.trajectories
    assert (lost.outcome, lost.reason) == (Outcome.INFRA_FAILURE, "the single judge is away")
    assert [t.rendered for t in rest] == ranks.asked[0] and len(ranks.asked) == 1
    assert lost.rendered not in ranks.asked[0]


async def test_a_judge_that_failed_is_asked_again_about_the_same_pictures() -> None:
    ranks = Ranks(failures=2)
    played = scene(ranks)
    group = await collected(played)
    assert len(ranks.asked) == 3 and ranks.asked[0] == ranks.asked[1] == ranks.asked[2]
    assert len(played.tasks) == 3, "nothing was drawn again"
    assert group.scores() == pytest.approx([0.2, 0.45, 0.7])


async def test_a_judge_that_gives_up_leaves_no_score_and_never_a_zero() -> None:
    ranks = Ranks(failures=99)
    played = scene(ranks, failed=[0])
    group = await collected(played, tries=2)
    assert len(ranks.asked) == 2 and len(played.tasks) == 3
    failure, *lost = group.trajectories
    assert failure.outcome is Outcome.POLICY_FAILURE
    assert [(t.outcome, t.reason, t.reward) for t in lost] == [(Outcome.INFRA_FAILURE, "the ranks are lost", None)] * 2
    assert sum((t.usage.get("judge.order", Usage()) for t in lost), Usage()) == Usage(calls=4)


@pytest.mark.parametrize(
    ("missing", "score"), [("leave_out", 0.4), (MissingValue(value=1.0), 0.7)], ids=["leave_out", "value"]
)
async def test_a_judge_that_failed_may_be_done_without(missing: Any, score: float) -> None:
    ranks = Ranks(failures=1)
    group = await collected(scene(ranks, REWARD.model_copy(update={"missing": missing})))
    assert len(ranks.asked) == 1
    assert group.scores() == pytest.approx([score] * 3)


async def test_a_judge_that_the_reward_does_not_name_is_measured_and_may_fail() -> None:
    reward = RewardConfig(components={"score": 1.0})
    good, bad = await collected(scene(Ranks(), reward)), await collected(scene(Ranks(failures=1), reward))
    assert good.scores() == bad.scores() == pytest.approx([0.4] * 3)
    assert "order.rank" in good.trajectories[0].components() and "order.rank" not in bad.trajectories[0].components()


async def test_a_gate_on_a_group_score_closes_it() -> None:
    group = await collected(scene(Ranks(), RewardConfig(components={"score": 1.0}, gates={"rank": 0.5})))
    assert group.scores() == pytest.approx([0, 0.4, 0.4])
    assert [t.reward.closed for t in group.trajectories if t.reward is not None] == ["rank", "", ""]


async def test_a_sample_of_an_evaluation_is_a_group_of_its_own() -> None:
    ranks = Ranks(failures=1)
    settings: dict[str, Any] = {"run_seed": 5, "sampling": SamplingParams(), "split": "heldout"}
    [drawn] = await evaluate([a_request("h")], scene(ranks), **settings)
    assert [len(asked) for asked in ranks.asked] == [1, 1], "a judge that failed lets the sample be drawn again"
    assert (drawn.key.attempt, drawn.outcome, drawn.score) == (1, Outcome.SCORED, pytest.approx(0.2))


async def test_what_a_lone_sample_lacks_is_left_out_where_the_reward_says_so() -> None:
    left_out = REWARD.model_copy(update={"missing": "leave_out"})
    settings: dict[str, Any] = {"run_seed": 5, "sampling": SamplingParams(), "split": "heldout"}
    [drawn] = await evaluate([a_request("h")], scene(Ranks(sometimes=True), left_out), **settings)
    assert drawn.score == pytest.approx(0.4)
    with pytest.raises(UserFault, match=r"'rank' has no value for some requests"):
        scene(Ranks(sometimes=True))


async def test_a_loop_without_the_judges_of_groups_says_so() -> None:
    with pytest.raises(RunError, match="sample 1/r/0/0 waits for the judges of its group"):
        await collected(scene(Ranks()), panel=None)


async def test_a_panel_without_judges_of_groups_changes_nothing() -> None:
    played = Played(Scoring(Painter(), Single(), RewardConfig(components={"score": 1.0})))
    with_panel, without = await collected(played), await collected(played, panel=None)
    assert with_panel.scores() == without.scores() == pytest.approx([0.4] * 3)
    assert "judge_group" not in with_panel.trajectories[0].timings


async def test_a_sample_that_waits_for_its_group_keeps_its_age() -> None:
    trajectory = make_trajectory(KEY, version=4)
    trajectory.outcome = Outcome.PENDING
    assert oldest_version(trajectory) == 4
    trajectory.outcome = Outcome.INFRA_FAILURE
    assert oldest_version(trajectory) is None


def test_the_runs_judge_judges_pictures() -> None:
    with pytest.raises(UserFault, match="ranks/1 judges groups: name it under judges"):
        Panel(Ranks(), {}, RewardConfig(components={"rank": 1.0}))


async def test_a_further_kscore_has_the_formula_of_the_reward_also_when_it_is_counted_later() -> None:
    scores = ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=None, aesthetics=1)
    graded = Verdict(image=scores, text=NOT_EXAMINED, judge="more/1", formula=ScoreFormula.PAPER)
    reward = RewardConfig(components={"more.kscore": 1.0}, formula=ScoreFormula.RELEASE_SUMMARY)
    trajectory, found = make_trajectory(KEY), Judged({"more": graded})
    panel = Panel(Single(), {"more": Kscores(), "order": Ranks()}, reward)
    panel.settle(trajectory, found)
    assert trajectory.outcome is Outcome.PENDING
    assert trajectory.verdicts["more"].components["kscore"].value == pytest.approx(0.8), (
        "and not 1, as the paper has it"
    )


async def test_samples_of_workers_outside_wait_for_their_group_as_well() -> None:
    played = scene(ranks := Ranks())

    class Gateway:
        async def answer(self, task: RolloutTask, patience: float | None) -> Trajectory:
            trajectory = make_trajectory(task.key)
            trajectory.outcome, trajectory.program = Outcome.PENDING, PROGRAM
            return trajectory

    class Server:
        gateway = Gateway()

        async def ask(self, work: Any) -> Any:
            return await work

    server: Any = Server()
    settings: dict[str, Any] = {"run_seed": 5, "group_size": 3, "max_attempts": 1, "sampling": SamplingParams()}
    outside = GatewayRollouts(server, played.scoring)
    group = await collect_group(a_request("r"), 1, outside, panel=played.scoring.panel, **settings)
    assert [len(asked) for asked in ranks.asked] == [3]
    assert group.scores() == pytest.approx([0.2, 0.45, 0.7])


# --- the service ---


class Looks:
    """Records what it is shown, and returns as many verdicts as it is told."""

    identity = "looks/1"
    components = {"rank": ComponentRange()}

    def __init__(self, verdicts: int, needs_truth: bool) -> None:
        self.verdicts, self.needs_truth = verdicts, needs_truth
        self.seen: list[tuple[bytes, list[bytes]]] = []

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        self.seen.append((truth, [one.image for one in attempts]))
        return [OpenVerdict(components={"rank": Component(value=1)}, judge=self.identity)] * self.verdicts


async def test_pictures_and_truth_arrive_as_bytes() -> None:
    images = MemoryImages()
    refs = [images.put(data, width=1, height=1) for data in (b"one", b"two", b"truth")]
    attempts = [RenderedAttempt(image=ref, program=PROGRAM) for ref in refs[:2]]
    request = a_request("r").model_copy(update={"truth_image": refs[2]})
    seeing, blind = Looks(2, needs_truth=True), Looks(2, needs_truth=False)
    for judge in (seeing, blind):
        assert len(await GroupJudgeService(judge, images).judge_group(request, attempts)) == 2
    assert (seeing.seen, blind.seen) == ([(b"truth", [b"one", b"two"])], [(b"", [b"one", b"two"])])
    service = GroupJudgeService(seeing, images)
    with pytest.raises(InfraFailure, match="request r has no ground-truth image, which looks/1 needs"):
        await service.judge_group(request.model_copy(update={"truth_image": None}), attempts)
    lost = RenderedAttempt(image=reference(b"lost", width=1, height=1), program=PROGRAM)
    with pytest.raises(InfraFailure, match="a stored picture cannot be read"):
        await service.judge_group(request, [lost])


async def test_another_number_of_verdicts_is_a_fault_of_the_judge() -> None:
    images = MemoryImages()
    attempt = RenderedAttempt(image=images.put(b"one", width=1, height=1), program=PROGRAM)
    with pytest.raises(PluginResultFault, match="Looks: judge_group returned 3 verdicts on 1 attempts"):
        await GroupJudgeService(Looks(3, needs_truth=False), images).judge_group(a_request("r"), [attempt])


@pytest.mark.parametrize(
    ("returned", "told"),
    [(None, "returned None"), ([0.5], "returned a list with float"), ([None], "with None")],
)
async def test_results_of_another_type_name_the_legal_one(returned: Any, told: str) -> None:
    class Wrong:
        identity = "wrong/1"
        needs_truth = False
        components: ClassVar = {"score": ComponentRange()}

        async def judge_group(self, request: Any, truth: Any, attempts: Any) -> Any:
            return returned

    images = MemoryImages()
    attempt = RenderedAttempt(image=images.put(b"one", width=1, height=1), program=PROGRAM)
    with pytest.raises(PluginResultFault, match=rf"{told}.*a list of OpenVerdict"):
        await GroupJudgeService(Wrong(), images).judge_group(a_request("r"), [attempt])


async def test_a_judge_of_groups_is_no_judge_of_pictures() -> None:
    with pytest.raises(UserFault, match="looks/1 judges groups, which only a run's further judges"):
        JudgeService(Looks(1, needs_truth=False), MemoryImages())  # type: ignore[arg-type]


def test_the_judge_of_pairs_can_be_configured() -> None:
    assert JudgeSpec(type="pairwise").resolve().__name__ == "PairwiseJudge"
