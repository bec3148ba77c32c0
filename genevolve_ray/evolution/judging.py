"""The judges of a run side by side: verdicts by the judge's name, and the reward that they give together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.collect import gather_or_cancel
from genevolve_ray.evolution.ports import JudgePort
from genevolve_ray.judges.protocol import declared_components
from genevolve_ray.records.components import AnyVerdict, graded, opened
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.rewards import OpenReward
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import EXAMINATION_FAILED, RewardConfig, Verdict, combine_reward

MAIN = "judge"
"""Name of the run's judge among its judges."""


@dataclass
class Judged:
    """Hold the verdicts on one picture, and the failures of judges that gave none, by the judge's name."""

    verdicts: dict[str, AnyVerdict] = field(default_factory=dict)
    failures: dict[str, InfraFailure] = field(default_factory=dict)


class Panel:
    """Ask every judge of a run at once, and compute rewards."""

    def __init__(self, judge: JudgePort, others: Mapping[str, JudgePort], reward: RewardConfig) -> None:
        """Combine the run's judge, the further ones by name, and the reward.

        Raises:
            UserFault: when the reward needs a component that no judge declares, or a KScore that the judge does not give.
        """
        self.identity = judge.identity
        self._judges, self._config = {MAIN: judge, **others}, reward
        declared = {name: declared_components(port) for name, port in self._judges.items()}
        self._open = OpenReward(reward, declared) if reward.components else None
        if self._open is None and "kscore" not in declared[MAIN]:
            raise UserFault(
                f"{judge.identity} gives no KScore: set reward.components, from {', '.join(declared[MAIN])}"
            )

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> Judged:
        """Return the verdicts of all judges; one that gave up is among the failures."""
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
        """Set verdicts and reward of a trajectory.

        Raises:
            InfraFailure: when a part of the reward was not measured.
            UserFault: when the judge does not examine programs, and the reward needs it.
        """
        main = found.verdicts.get(MAIN)
        trajectory.verdict = main if isinstance(main, Verdict) else None
        trajectory.verdicts = {
            name: opened(verdict)
            for name in self._judges
            if (verdict := found.verdicts.get(name)) is not None and not (name == MAIN and isinstance(verdict, Verdict))
        }
        if self._open is not None:
            trajectory.reward = self._open.reward(found.verdicts, trajectory.tool_calls, found.failures)
            return
        if MAIN in found.failures:
            raise found.failures[MAIN]
        main = graded(found.verdicts[MAIN])
        if self._config.text_weight and EXAMINATION_FAILED in main.flags:
            # Without this part the sample has no reward; it is no fault of the policy.
            why = main.text_rationale or "no reason is given"
            raise InfraFailure(f"{main.judge} could not examine the program: {why}")
        trajectory.reward = combine_reward(main, trajectory.tool_calls, self._config)
