"""Judged groups as training sequences, and the learner behind its port."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_fakes import make_config, make_trajectory
from safetensors import SafetensorError

from genevolve_ray.evolution.learner import (
    PROBE_TOKENS,
    PROBE_TOLERANCE_16_BITS,
    LocalLearner,
    build_learner,
    probe_tolerance,
    training_sequences,
)
from genevolve_ray.evolution.pictures import ProbeContext
from genevolve_ray.evolution.weights import WeightFolders
from genevolve_ray.learning import step as learning_step
from genevolve_ray.learning.advantage import AdvantageConfig
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Trajectory


class StubLearner:
    """Remembers what it was asked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments = arguments
        self.steps: list[tuple[Sequence[TrainSequence], int]] = []
        self.error: Exception | None = None
        self.gaps: list[list[float]] = []
        self.early: list[tuple[Sequence[TrainSequence], int]] = []
        self.dropped = 0

    def accumulate(self, sequences: Sequence[TrainSequence], step: int) -> None:
        self.early.append((sequences, step))

    def drop(self) -> None:
        self.early, self.dropped = [], self.dropped + 1

    def train_step(self, sequences: Sequence[TrainSequence], step: int, draws: object = None) -> dict[str, float]:
        self.steps.append((sequences, step))
        return {"loss": 1.0, "tokens": 10.0, "policy_tokens": 4.0, "seconds": 0.5}

    def write_weights(self, folder: str) -> None:
        if self.error:
            raise self.error

    save = write_weights

    def raw_logprobs(self, token_ids: Sequence[int], images: Any = None) -> list[float]:
        return [-1.0] * (len(token_ids) - 1)


def group(*outcomes: tuple[Outcome, float], name: str = "r") -> Group:
    return Group(name, 1, [attempt(name, i, *outcome) for i, outcome in enumerate(outcomes)])


def attempt(name: str, sample: int, outcome: Outcome, score: float) -> Trajectory:
    return make_trajectory(SampleKey(step=1, request_id=name, sample=sample), outcome, score)


def port(learner: StubLearner, folder: Path = Path("nowhere")) -> LocalLearner:
    probe = ProbeContext((3, 1, 2))
    return LocalLearner(learner, AdvantageConfig(), probe, 1e-4, WeightFolders(folder))  # type: ignore[arg-type]


GOOD = group((Outcome.SCORED, 0.2), (Outcome.SCORED, 0.8))


def test_advantages_are_relative_to_the_group() -> None:
    """Two rewards at distance d have the sample deviation d / sqrt(2): the advantages are -+ 1 / sqrt(2)."""
    sequences = training_sequences([GOOD], AdvantageConfig(ddof=1))
    assert [s.advantage for s in sequences] == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-4)
    ledger = GOOD.trajectories[0].ledger
    assert (sequences[0].tokens, sequences[0].policy_mask) == (ledger.tokens, ledger.policy_mask)
    assert sequences[0].logprobs == ledger.logprobs


def test_a_policy_failure_is_a_reward_of_zero() -> None:
    failed, scored = training_sequences(
        [group((Outcome.POLICY_FAILURE, 0.9), (Outcome.SCORED, 0.4))], AdvantageConfig()
    )
    assert failed.advantage < 0 < scored.advantage


def test_infrastructure_failures_are_never_trained_on() -> None:
    with_failure = group((Outcome.SCORED, 0.2), (Outcome.INFRA_FAILURE, 0.0), (Outcome.SCORED, 0.8))
    sequences = training_sequences([with_failure], AdvantageConfig())
    expected = training_sequences([GOOD], AdvantageConfig())
    assert [s.advantage for s in sequences] == [s.advantage for s in expected]


def test_a_group_short_of_two_is_left_out() -> None:
    short = group((Outcome.SCORED, 0.9), (Outcome.INFRA_FAILURE, 0.0), name="short")
    assert training_sequences([short], AdvantageConfig()) == []
    assert len(training_sequences([short, GOOD], AdvantageConfig())) == 2


async def test_a_step_counts_from_zero_inside_and_names_its_own_metrics() -> None:
    learner = StubLearner()
    metrics = await port(learner).step([GOOD], 7)
    [(sequences, step)] = learner.steps
    assert (len(sequences), step) == (2, 6)
    assert metrics == {"loss": 1.0, "learner_tokens": 10.0, "learner_policy_tokens": 4.0, "learner_seconds": 0.5}


async def test_a_step_without_a_comparison_says_why() -> None:
    learner = StubLearner()
    with pytest.raises(
        RuntimeError, match="step 4 has no training data, because all 1 groups are incomplete.*infra_failure of"
    ):
        await port(learner).step([group((Outcome.INFRA_FAILURE, 0.0), (Outcome.SCORED, 0.5))], 4)
    assert learner.steps == []


async def test_the_probe_is_scored_by_the_learner(tmp_path: Path) -> None:
    weights = await port(StubLearner(), tmp_path).publish(7)
    probe = weights.probe
    assert (weights.version, await weights.folder()) == (7, str(tmp_path / "v000007"))
    assert (probe.token_ids, probe.logprobs, probe.tolerance) == ((3, 1, 2), (-1.0, -1.0), 1e-4)


@pytest.mark.parametrize("error", [SafetensorError("no space"), RuntimeError("file write failed")])
async def test_what_cannot_be_written_is_an_os_error(tmp_path: Path, error: Exception) -> None:
    learner = StubLearner()
    learner.error = error
    written = port(learner, tmp_path)
    for work, folder in ((written.publish(1), tmp_path / "v000001"), (written.save(str(tmp_path)), tmp_path)):
        with pytest.raises(OSError, match=f"{folder} cannot be written .* bytes are free there.: {error}") as caught:
            await work
        assert caught.value.errno == errno.EIO


def test_the_probe_follows_from_the_run_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_step, "Learner", StubLearner)
    chat: Any = SimpleNamespace(tokenizer=range(50), image_tokens=None)
    folders, images = WeightFolders(Path("nowhere")), MemoryImages()
    probes = [
        build_learner(make_config(seed=seed), Path("model"), (0, 1), chat, folders, images)._probe for seed in (1, 1, 2)
    ]
    assert probes[0] == probes[1] != probes[2]
    assert len(probes[0].tokens) == PROBE_TOKENS
    assert all(0 <= token < 50 for token in probes[0].tokens)


def test_the_probe_is_as_exact_as_the_parity_in_32_bits() -> None:
    assert probe_tolerance(make_config(parity_limit=2e-4)) == 2e-4


@pytest.mark.parametrize("coarse", [{"engine": {"dtype": "bfloat16"}}, {"learner": {"dtype": "bfloat16"}}])
def test_in_16_bits_the_random_tokens_of_the_probe_may_differ_by_more(coarse: dict[str, Any]) -> None:
    assert probe_tolerance(make_config(**coarse)) == PROBE_TOLERANCE_16_BITS
    assert probe_tolerance(make_config(parity_limit=0.3, **coarse)) == 0.3


async def test_the_tokens_that_moved_most_are_named_by_their_place_in_the_ledger() -> None:
    """`make_trajectory` writes three context tokens and two of the policy; only the second sequence was taught."""
    learner = StubLearner()
    wrapped = port(learner)
    await wrapped.step([GOOD], 1)
    learner.gaps = [[], [0.1, -2.0]]
    key = str(GOOD.trajectories[1].key)
    assert [(m.trajectory, m.position, m.gap) for m in await wrapped.teacher_disagreement()] == [
        (key, 4, -2.0),
        (key, 3, 0.1),
    ]


async def test_what_is_no_fault_of_the_disk_is_raised_as_itself(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch has it."""

    learner = StubLearner()
    learner.error = OutOfMemoryError("on the GPU")
    with pytest.raises(OutOfMemoryError, match="on the GPU"):
        await port(learner).save(str(tmp_path))


OTHER = group((Outcome.SCORED, 0.1), (Outcome.SCORED, 0.7), (Outcome.POLICY_FAILURE, 0.0), name="other")


async def test_parts_that_were_added_early_are_not_added_again() -> None:
    learner = StubLearner()
    wrapped = port(learner)
    await wrapped.accumulate([OTHER], 7)
    await wrapped.step([GOOD, OTHER], 7, parts=[["other"]])
    [(early, early_step)], [(rest, step)] = learner.early, learner.steps
    assert (len(early), early_step, len(rest), step) == (3, 6, 2, 6)
    learner.gaps = [[], [], [], [], [0.5, 0.1]]
    assert [m.trajectory for m in await wrapped.teacher_disagreement()] == [str(GOOD.trajectories[1].key)] * 2


async def test_parts_that_were_not_added_are_added_first() -> None:
    learner = StubLearner()
    await port(learner).step([GOOD, OTHER], 7, parts=[["other"]])
    assert [(len(part), step) for part, step in learner.early + learner.steps] == [(3, 6), (2, 6)]


@pytest.mark.parametrize(("step", "parts"), [(7, []), (7, [["r"], ["other"]]), (8, [["other"]])])
async def test_other_parts_than_those_that_were_added_begin_anew(step: int, parts: list[list[str]]) -> None:
    learner = StubLearner()
    wrapped = port(learner)
    await wrapped.accumulate([OTHER], 7)
    dropped = learner.dropped
    await wrapped.step([GOOD, OTHER], step, parts=parts)
    assert learner.dropped == dropped + 1
    assert sum(len(part) for part, _ in learner.early + learner.steps) == 5


async def test_a_part_that_fails_is_nothing_to_go_on_from() -> None:
    learner = StubLearner()
    wrapped = port(learner)
    await wrapped.accumulate([OTHER], 7)
    learner.accumulate = lambda sequences, step: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        await wrapped.accumulate([GOOD], 7)
    dropped = learner.dropped
    await wrapped.step([GOOD, OTHER], 7)
    assert learner.dropped == dropped + 1


async def test_the_event_loop_runs_while_a_part_is_added() -> None:
    learner, added = StubLearner(), threading.Event()

    def wait(_sequences: object, _step: int) -> None:
        assert added.wait(10), "the event loop stood still"

    learner.accumulate = wait  # type: ignore[method-assign, assignment]
    adding = asyncio.create_task(port(learner).accumulate([GOOD], 1))
    await asyncio.sleep(0)
    added.set()
    await adding
