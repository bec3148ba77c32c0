"""The judges of a run side by side: verdicts by the judge's name, and the reward that they give together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.collect import gather_or_cancel
from genevolve_ray.evolution.ports import GroupJudgePort, JudgePort, RenderedAttempt
from genevolve_ray.judges.protocol import declared_components, gives_kscore
from genevolve_ray.records.components import AnyVerdict, OpenVerdict, graded, opened
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.rewards import OpenReward
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.trajectory import Outcome, Trajectory, timed
from genevolve_ray.records.usage import Meter, Usage, metered
from genevolve_ray.records.verdict import EXAMINATION_FAILED, Reward, RewardConfig, Verdict, combine_reward

MAIN = "judge"
"""Name of the run's judge among its judges."""


@dataclass
class Judged:
    """Hold the verdicts on one picture, and the failures of judges that gave none, by the judge's name."""

    verdicts: dict[str, AnyVerdict] = field(default_factory=dict)
    failures: dict[str, InfraFailure] = field(default_factory=dict)


class Panel:
    """Ask every judge of a run at once, and compute rewards.

    Judges of groups are asked when every other judge has judged every sample of a group, wherever these were played.
    """

    def __init__(
        self,
        judge: JudgePort | GroupJudgePort,
        others: Mapping[str, JudgePort | GroupJudgePort],
        reward: RewardConfig,
    ) -> None:
        """Combine the run's judge, the further ones by name, and the reward.

        Raises:
            UserFault: when the reward needs a component that no judge declares, or a KScore that the judge does not give,
                or when the run's judge judges groups.
        """
        self.identity, self._config = judge.identity, reward
        every = {MAIN: judge, **others}
        self._judges = {name: port for name, port in every.items() if not isinstance(port, GroupJudgePort)}
        self._groups = {name: port for name, port in every.items() if isinstance(port, GroupJudgePort)}
        if MAIN in self._groups:
            raise UserFault(
                f"{judge.identity} judges groups: name it under judges, and one that judges pictures as judge"
            )
        declared = {name: declared_components(port) for name, port in every.items()}
        self._open = OpenReward(reward, declared) if reward.components else None
        if self._open is None and not gives_kscore(judge):
            raise UserFault(
                f"{judge.identity} gives no KScore: set reward.components, from {', '.join(declared[MAIN])}"
            )

    @property
    def group_judges(self) -> list[str]:
        """Names of the judges that judge the attempts of a group together."""
        return list(self._groups)

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> Judged:
        """Return the verdicts of all judges of pictures; one that gave up is among the failures."""
        found = Judged()

        async def ask(name: str, port: JudgePort) -> None:
            try:
                with metered("" if name == MAIN else name):
                    found.verdicts[name] = await port.judge(request, image, program, references)
            except InfraFailure as failure:
                found.failures[name] = failure

        if len(self._judges) == 1:
            await ask(MAIN, self._judges[MAIN])
        else:
            await gather_or_cancel(ask(name, port) for name, port in self._judges.items())
        return found

    def settle(self, trajectory: Trajectory, found: Judged) -> None:
        """Set verdicts and reward of a trajectory, and its outcome.

        Where there are judges of groups, the outcome remains PENDING until `judge_group`.

        Raises:
            InfraFailure: when a part of the reward was not measured.
            UserFault: when the judge does not examine programs, and the reward needs it.
        """
        main = found.verdicts.get(MAIN)
        # With judges of groups the reward is computed later, from what the trajectory holds.
        formula = self._config.formula if self._groups else None
        trajectory.verdict = main if isinstance(main, Verdict) else None
        trajectory.verdicts = {
            name: opened(verdict, formula)
            for name in self._judges
            if (verdict := found.verdicts.get(name)) is not None and not (name == MAIN and isinstance(verdict, Verdict))
        }
        if self._open is None:
            trajectory.reward = self._plain(found, trajectory.tool_calls)
        elif self._groups:
            self._open.check_measured(found.verdicts, found.failures, self._groups)
        else:
            trajectory.reward = self._open.reward(found.verdicts, trajectory.tool_calls, found.failures)
        trajectory.outcome = Outcome.PENDING if self._groups else Outcome.SCORED

    async def judge_group(self, request: Request, trajectories: Sequence[Trajectory], tries: int = 1) -> None:
        """Ask the judges of groups about the samples that wait for them, and settle these.

        A judge that gave up is asked again where the reward needs it. The pictures stay: another picture would change what
        all others are compared with. Samples that then lack a part of the reward end as INFRA_FAILURE. What the judges used
        is counted on the first of the samples.

        Args:
            request: the request of the group.
            trajectories: its attempts; those with another outcome than PENDING take no part.
            tries: how often each judge is asked at most.
        """
        waiting = [t for t in trajectories if t.outcome is Outcome.PENDING and t.rendered is not None]
        if not self._groups or not waiting:
            return
        failures: dict[str, InfraFailure] = {}
        spent: dict[str, float] = {}
        names = list(self._groups)
        with metered() as meter, timed(spent, "judge_group"):
            for _ in range(tries):
                kept = {name: failure for name, failure in failures.items() if name not in names}
                failures = kept | await self._ask_groups(request, waiting, names)
                names = [name for name in failures if self._open is not None and self._open.needs(name)]
                if not names:
                    break
        _add_usage(waiting[0], meter)
        for trajectory in waiting:
            trajectory.timings |= spent
            self._settle_later(trajectory, failures)

    async def _ask_groups(
        self, request: Request, waiting: Sequence[Trajectory], names: Sequence[str]
    ) -> dict[str, InfraFailure]:
        """Set the verdicts of some judges of groups; return the failures of those that gave up."""
        attempts = [
            RenderedAttempt(image=t.rendered, program=t.program, references=tuple(t.references))
            for t in waiting
            if t.rendered is not None and t.program is not None
        ]

        async def ask(name: str) -> Sequence[OpenVerdict] | InfraFailure:
            try:
                with metered(name):
                    return await self._groups[name].judge_group(request, attempts)
            except InfraFailure as failure:
                return failure

        failures = {}
        for name, given in zip(names, await gather_or_cancel(map(ask, names)), strict=True):
            if isinstance(given, InfraFailure):
                failures[name] = given
                continue
            for trajectory, verdict in zip(waiting, given, strict=True):
                trajectory.verdicts[name] = verdict
        return failures

    def _settle_later(self, trajectory: Trajectory, failures: Mapping[str, InfraFailure]) -> None:
        """Set the reward and the outcome of a sample that all judges have judged."""
        judged: dict[str, AnyVerdict] = dict(trajectory.verdicts)
        if trajectory.verdict is not None:
            judged[MAIN] = trajectory.verdict
        try:
            if self._open is not None:
                trajectory.reward = self._open.reward(judged, trajectory.tool_calls, failures)
            trajectory.outcome = Outcome.SCORED
        except InfraFailure as failure:
            trajectory.outcome, trajectory.reason = Outcome.INFRA_FAILURE, redacted(str(failure))

    def _plain(self, found: Judged, tool_calls: int) -> Reward:
        if MAIN in found.failures:
            raise found.failures[MAIN]
        main = graded(found.verdicts[MAIN])
        if self._config.text_weight and EXAMINATION_FAILED in main.flags:
            # Without this part the sample has no reward; it is no fault of the policy.
            why = main.text_rationale or "no reason is given"
            raise InfraFailure(f"{main.judge} could not examine the program: {why}")
        return combine_reward(main, tool_calls, self._config)


def _add_usage(trajectory: Trajectory, meter: Meter) -> None:
    for service, used in meter.by_service.items():
        trajectory.usage[service] = trajectory.usage.get(service, Usage()) + used
