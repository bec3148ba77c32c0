"""Metrics of groups and evaluations: the log of a step, and the parts of verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np

from genevolve_ray.errors import RunError
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory
from genevolve_ray.records.usage import CORPUS_SERVICE, POLICY_SERVICE, Usage
from genevolve_ray.records.verdict import WEIGHTS, RewardConfig, Sufficiency
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS


class ParityError(RunError):
    """Signal that engine and learner disagree about the policy's log-probs.

    Training on such log-probs would be training on noise.
    """


PARITIES = {
    "parity": "",
    "parity_images": " over trajectories with pictures",
    "redraw_parity": " over guided re-draws, in the context with the guide,",
}
"""Metrics of the parity of engine and learner, with the words that tell over which trajectories."""


def check_parity(step: int, metrics: Mapping[str, float], limit: float) -> None:
    """Check mean |engine - learner| log-prob of a step, over all tokens and over those of trajectories with pictures.

    A mean is absent where the version that learned sampled no such token, so that there is nothing to compare.

    Raises:
        ParityError: for a mean beyond the limit, or a NaN.
    """
    for name, where in PARITIES.items():
        parity = metrics.get(name)
        if parity is not None and not parity <= limit:
            raise ParityError(
                f"step {step}: mean |engine - learner| log-prob{where} is {parity:.3g}, "
                f"loop.parity_limit is {limit:.3g}"
            )


class Clock:
    """Measure the seconds of the phases of a step."""

    def __init__(self) -> None:
        """Start."""
        self._started = self._last = perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a phase, which began at the end of the last one."""
        now = perf_counter()
        self._laps[name], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        """Return the phases and `seconds_step`, the time since the start."""
        return self._laps | {"seconds_step": perf_counter() - self._started}


def group_metrics(groups: Sequence[Group], reward: RewardConfig | None = None) -> dict[str, float]:
    """Return the metrics of a step's rollouts; means are over trajectories that have a score.

    `reward` is the configuration of the run's reward, as in `evaluation_metrics` and `component_metrics`.
    """
    every = [t for g in groups for t in g.trajectories]
    scores = [g.scores() for g in groups]
    metrics = evaluation_metrics(every, reward)
    metrics |= {
        "reward_std": float(np.mean([np.std(s) for s in scores if s])) if any(scores) else 0.0,
        "zero_variance_groups": float(sum(len(s) > 1 and max(s) == min(s) for s in scores)),
        **_equal_fraction(scores),
        "short_groups": float(sum(len(s) < 2 for s in scores)),
        "tokens_total": float(sum(len(t.ledger) for t in every)),
        "policy_tokens": float(sum(t.ledger.policy_tokens for t in every)),
    }
    return metrics | component_metrics(every, reward) | usage_metrics(every)


def drawn_metrics(drawn: Sequence[Group], batch: Sequence[Group]) -> dict[str, float]:
    """Return what dynamic sampling drew for a step, of which its batch is a part.

    Groups without variance are left out of the batch, so that its mean reward is not that of the policy; this is
    `drawn_reward_mean`. The share of groups without variance and the use of services are those of all that was drawn.
    """
    every = [t for group in drawn for t in group.trajectories]
    scores = [group.scores() for group in drawn]
    kept = sum(t.ledger.policy_tokens for group in batch for t in group.trajectories)
    return {
        "dynamic_groups_drawn": float(len(drawn)),
        "dynamic_groups_dropped": float(len(drawn) - len(batch)),
        "dynamic_tokens_dropped": float(sum(t.ledger.policy_tokens for t in every) - kept),
        "drawn_reward_mean": _mean([score for group in scores for score in group]),
        **_equal_fraction(scores),
        **usage_metrics(every),
    }


def _equal_fraction(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the share of groups without variance among those with two scores; empty where no group has two."""
    compared = [max(s) == min(s) for s in scores if len(s) > 1]
    return {"zero_variance_fraction": sum(compared) / len(compared)} if compared else {}


def turn_gap_metrics(trajectories: Sequence[Trajectory], gaps: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return how the teacher's gap changes along the turns of a trajectory, as `ved_gap_turn_slope`.

    It is the least-squares slope of |log pi - log q| over the number of the turn, in nats a turn, over all policy tokens
    of taught trajectories. It is missing where these have one turn only, or where nothing was taught.

    Args:
        trajectories: the trajectories of a step, as the learner saw them.
        gaps: log pi - log q of the policy tokens of each one, empty where it had no teacher.
    """
    turns, sizes = [], []
    for trajectory, gap in zip(trajectories, gaps, strict=True):
        if gap:
            mask = np.asarray(trajectory.ledger.policy_mask)
            begins = mask & ~np.concatenate(([False], mask[:-1]))
            turns.append(np.cumsum(begins)[mask])
            sizes.append(np.abs(np.asarray(gap)))
    if not turns:
        return {}
    turn, size = np.concatenate(turns), np.concatenate(sizes)
    spread = float(np.var(turn))
    return {"ved_gap_turn_slope": float(np.cov(turn, size, bias=True)[0, 1]) / spread} if spread else {}


def component_metrics(trajectories: Sequence[Trajectory], reward: RewardConfig | None = None) -> dict[str, float]:
    """Return the mean of each component over the trajectories in which it was measured, as `component_JUDGE.NAME`.

    It is empty for the plain reward of a judge that gives a KScore. `gates_closed` is the share of trajectories with a
    reward of 0 for a gate. `reward` tells whether there are gates, and the formula of the KScore; without it, gates count
    where one has closed, and the formula is that of each verdict.
    """
    closed = [float(bool(t.reward.closed)) for t in trajectories if t.reward is not None and t.reward.parts]
    if not closed and not any(t.verdicts for t in trajectories):
        return {}
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, component in trajectory.components(reward.formula if reward is not None else None).items():
            values.setdefault(name, []).append(component.value)
    gated = bool(closed) and (any(closed) if reward is None else bool(reward.gates))
    gates = {"gates_closed": _mean(closed)} if gated else {}
    return {f"component_{name}": _mean(found) for name, found in values.items()} | gates


def usage_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the usage of the services: sums over trajectories, failed attempts included.

    The policy's own engine counts with its tokens alone. `service_cached_fraction` is the share of answers from a
    cache, the hit rate of a query cache; it is missing where no service was called.
    """
    used: dict[str, Usage] = {}
    for trajectory in trajectories:
        for service, usage in trajectory.usage.items():
            used[service] = used.get(service, Usage()) + usage
    total = sum(used.values(), Usage())
    outside = sum((usage for service, usage in used.items() if service != POLICY_SERVICE), Usage())
    answers = outside.calls - outside.failed_calls + outside.cached
    return {
        "service_calls": float(outside.calls),
        "service_failed_calls": float(outside.failed_calls),
        "service_cached": float(outside.cached),
        "prompt_tokens": float(total.prompt_tokens),
        "completion_tokens": float(total.completion_tokens),
        "money": total.money,
        "seconds_services": outside.seconds,
    } | ({"service_cached_fraction": outside.cached / answers} if answers else {})


def evaluation_metrics(trajectories: Sequence[Trajectory], reward: RewardConfig | None = None) -> dict[str, float]:
    """Return mean reward, its parts and the shape of the trajectories. Missing scores are counted, never averaged in.

    Image and text are parts of the plain reward alone: those of an open reward are in `component_metrics`. `reward` tells
    which it is; without it, the samples that have a reward tell.
    """
    valid = [t for t in trajectories if t.outcome is Outcome.SCORED]
    failed = [t for t in trajectories if t.outcome is Outcome.POLICY_FAILURE]
    ended = valid + failed
    rewards = [t.reward for t in valid if t.reward is not None]
    # A failed program has no parts of its own: it counts as 0 in each, so that the parts add up to the mean.
    is_open = any(r.parts for r in rewards) if reward is None else bool(reward.components)
    halves = {
        "reward_image": sum(r.image for r in rewards) / max(1, len(ended)),
        "reward_text": sum(r.text for r in rewards) / max(1, len(ended)),
    }
    return {
        "reward_mean": _mean([t.score for t in ended]),
        **({} if is_open else halves),
        "reward_cost": sum(r.cost for r in rewards) / max(1, len(ended)),
        "valid_fraction": len(valid) / max(1, len(ended)),
        "policy_failures": float(len(failed)),
        "infra_failures": float(len(trajectories) - len(ended)),
        "tool_outages": float(sum(t.outages for t in trajectories)),
        **_corpus_metrics(trajectories),
        "prompts_cut": float(sum(t.usage.get(CUT_PROMPTS, Usage()).images for t in trajectories)),
        "judge_clipped_fraction": _mean([float(_clipped(t)) for t in valid if t.verdict or t.verdicts]),
        "tool_calls_mean": _mean([float(t.tool_calls) for t in ended]),
        "turns_mean": _mean([float(len(t.turns)) for t in ended]),
        "response_tokens_mean": _mean([float(t.ledger.policy_tokens) for t in ended]),
    }


def _corpus_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the questions without a recorded answer, and those of them that got a similar one; empty without a corpus."""
    used = [t.usage[CORPUS_SERVICE] for t in trajectories if CORPUS_SERVICE in t.usage]
    if not used:
        return {}
    total = sum(used, Usage())
    return {"corpus_misses": float(total.calls), "corpus_nearest": float(total.calls - total.failed_calls)}


def warnings_of(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return notes on metrics that make the results of a run doubtful, by the name of the metric."""
    said = {}
    if clipped := metrics.get("judge_clipped_fraction", 0.0):
        said["judge_clipped_fraction"] = (
            f"{clipped:.0%} of the verdicts have a value that was clipped to the ends of its range. A judge that measures "
            "(likeness, alignment) does so below its `low` and above its `high`: widen them if the reward should tell such "
            "pictures apart. A model that grades should not: on another scale (1 to 5) it gives every image the best "
            "grade; correct its rubric or its range, or set judge.config.out_of_range=refuse"
        )
    if cut := metrics.get("prompts_cut", 0.0):
        said["prompts_cut"] = (
            f"{cut:.0f} prompts are longer than the generator's text encoder reads, and their end had no effect: shorten the "
            "programs, raise max_sequence_length in renderer.config.options, or set renderer.config.long_prompts=refuse"
        )
    if missed := metrics.get("corpus_misses", 0.0):
        said["corpus_misses"] = (
            f"{missed:.0f} questions to the tools have no answer in the corpus ({metrics.get('corpus_nearest', 0.0):.0f} got a "
            "similar one): list them with genevolve corpus stats CORPUS --run RUN"
        )
    return said


def _clipped(trajectory: Trajectory) -> bool:
    verdicts = (trajectory.verdict, *trajectory.verdicts.values())
    return any(flag.startswith("clipped:") for verdict in verdicts if verdict is not None for flag in verdict.flags)


def verdict_parts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the mean of each KScore dimension and each sufficiency check over judged trajectories.

    A judge that gives one grade has no checks, and no metrics of them. Components of open verdicts are added.
    """
    verdicts = [t.verdict for t in trajectories if t.verdict is not None]
    parts = {name: _mean([v for x in verdicts if (v := getattr(x.image, name)) is not None]) for name in WEIGHTS}
    checks = ("facts", "reference_binding", "skill_knowledge", "executable_constraints")
    checked = [x.text for x in verdicts if isinstance(x.text, Sufficiency)]
    components = component_metrics(trajectories)
    if components and not verdicts:
        return components
    parts |= components
    if verdicts and not checked:
        return parts
    return parts | {name: _mean([float(getattr(text, name)) for text in checked]) for name in checks}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
