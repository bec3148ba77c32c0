"""The learner's step: what it learns, what it must not depend on, and what a checkpoint brings back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import (
    GrpoConfig,
    ImportanceCorrection,
    KlConfig,
    KlForm,
    LearnerConfig,
    LearningRateSchedule,
    LossAggregation,
)
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.step import Learner, NonFiniteStep

VOCABULARY, BANNED = 64, (0, 63)
DOUBLE = LearnerConfig(dtype="float64", lr=1e-3, temperature=0.7)


def sequences(count: int = 6, seed: int = 0) -> list[TrainSequence]:
    rng, result = random.Random(seed), []
    for _ in range(count):
        length = rng.randint(5, 20)
        mask = [False, *(rng.random() < 0.6 for _ in range(length - 2)), True]
        logprobs = [-rng.random() * 6 if wanted else 0.0 for wanted in mask]
        tokens = [rng.randrange(1, VOCABULARY - 1) for _ in range(length)]
        result.append(TrainSequence(tokens, mask, logprobs, advantage=rng.uniform(-1, 1)))
    return result


def stepped(model_dir: Path, config: LearnerConfig, batch: list[TrainSequence]) -> tuple[Learner, dict[str, float]]:
    learner = Learner(model_dir, config, BANNED)
    return learner, learner.train_step(batch, 0)


def test_scores_are_tempered_banned_log_softmax(model_dir: Path) -> None:
    batch = sequences(3)
    scores = Learner(model_dir, DOUBLE, BANNED).score(batch)
    model = load_policy(model_dir, "float64")
    for sequence, score in zip(batch, scores, strict=True):
        logits = model(torch.tensor([sequence.tokens])).logits[0].detach() / 0.7
        logits[:, list(BANNED)] = float("-inf")
        plain = logits.log_softmax(-1)
        wanted = [plain[t - 1, sequence.tokens[t]].item() for t, m in enumerate(sequence.policy_mask) if m]
        assert score == pytest.approx(wanted, abs=1e-10)


def test_raw_logprobs_are_plain_log_softmax(model_dir: Path) -> None:
    tokens = [0, 5, 63, 7]
    got = Learner(model_dir, DOUBLE, BANNED).raw_logprobs(tokens)
    plain = load_policy(model_dir, "float64")(torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
    assert got == pytest.approx([plain[t, tokens[t + 1]].item() for t in range(3)], abs=1e-10)


@pytest.mark.parametrize(("aggregation", "form"), list(zip(LossAggregation, [*KlForm, KlForm.SCORE], strict=True)))
@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_step_does_not_depend_on_micro_batches_or_order(
    model_dir: Path, correction: ImportanceCorrection, aggregation: LossAggregation, form: KlForm
) -> None:
    grpo = GrpoConfig(correction=correction, aggregation=aggregation)
    config = DOUBLE.model_copy(update={"grpo": grpo, "kl": KlConfig(coefficient=0.1, form=form)})
    whole, expected = stepped(model_dir, config.model_copy(update={"token_budget": 10_000}), sequences())
    split, metrics = stepped(model_dir, config.model_copy(update={"token_budget": 25}), sequences()[::-1])
    assert metrics["micro_batches"] > expected["micro_batches"] == 1
    for name in ("loss", "grad_norm", "entropy", "parity", "parity_max", "clip_high", "kl", "approx_kl", "ratio_max"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
    for p, q in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


def test_parity_is_about_the_tokens_that_this_version_sampled(model_dir: Path) -> None:
    """Two sequences with exact behaviour log-probs, one of which an older version is said to have sampled half of."""
    learner = Learner(model_dir, DOUBLE, BANNED)
    exact = []
    for s, scores in zip(sequences(2), learner.score(sequences(2)), strict=True):
        places, column = [i for i, wanted in enumerate(s.policy_mask) if wanted], [0.0] * len(s.tokens)
        for place, score in zip(places, scores, strict=True):
            column[place] = score
        exact.append(replace(s, logprobs=column))
    places = [i for i, wanted in enumerate(exact[0].policy_mask) if wanted]
    column, versions = list(exact[0].logprobs), [3] * len(exact[0].tokens)
    column[places[0]], versions[places[0]] = column[places[0]] - 0.5, 1
    stale = replace(exact[0], logprobs=column, versions=versions)
    metrics = learner.train_step([stale, exact[1]], 3)
    assert metrics["parity"] < 1e-12
    assert metrics["stale_gap"] == pytest.approx(0.5)
    assert metrics["stale_tokens"] == 1


def test_a_batch_of_older_versions_has_no_parity(model_dir: Path) -> None:
    old = [replace(s, versions=[2] * len(s.tokens)) for s in sequences()]
    _, metrics = stepped(model_dir, DOUBLE, old)
    assert "parity" not in metrics
    assert metrics["stale_tokens"] == metrics["policy_tokens"]


def test_padding_after_the_last_policy_token_changes_nothing(model_dir: Path) -> None:
    longer = [
        TrainSequence([*s.tokens, 9, 9], [*s.policy_mask, False, False], [*s.logprobs, 0.0, 0.0], s.advantage)
        for s in sequences()
    ]
    _, expected = stepped(model_dir, DOUBLE, sequences())
    _, metrics = stepped(model_dir, DOUBLE, longer)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-9)


def test_empty_sequences_are_counted_not_averaged_over(model_dir: Path) -> None:
    empty = TrainSequence([1, 2, 3], [False] * 3, [0.0] * 3, advantage=1.0)
    _, expected = stepped(model_dir, DOUBLE, sequences())
    _, metrics = stepped(model_dir, DOUBLE, [*sequences(), empty])
    assert metrics["loss"] == expected["loss"] and metrics["empty_sequences"] == 1


def test_probability_moves_to_the_rewarded_sequence(model_dir: Path) -> None:
    learner = Learner(model_dir, LearnerConfig(lr=3e-3, temperature=0.7), BANNED)
    prompt, good, bad = [5, 6, 7], [11, 12, 13], [21, 22, 23]
    mask = [False] * 3 + [True] * 3

    def pair() -> list[TrainSequence]:
        plain = [TrainSequence(prompt + tail, mask, [0.0] * 6, a) for tail, a in ((good, 0.7), (bad, -0.7))]
        return [
            TrainSequence(s.tokens, mask, [0.0] * 3 + score, s.advantage)
            for s, score in zip(plain, learner.score(plain), strict=True)
        ]

    def gap() -> float:
        first, second = learner.score(pair())
        return sum(first) - sum(second)

    before = gap()
    metrics = [learner.train_step(pair(), step) for step in range(10)]
    assert gap() > before + 1.0
    assert max(m["parity"] for m in metrics) < 1e-5


def test_zero_rate_changes_no_weight(model_dir: Path) -> None:
    learner, _ = stepped(model_dir, LearnerConfig(lr=0.0), sequences())
    for mine, start in zip(learner.model.parameters(), load_policy(model_dir).parameters(), strict=True):
        assert torch.equal(mine, start)


def test_warm_up_scales_the_rate(model_dir: Path) -> None:
    learner = Learner(model_dir, LearnerConfig(lr=1e-3, warmup_steps=4), BANNED)
    assert learner.train_step(sequences(2), 1)["lr"] == pytest.approx(5e-4)
    assert learner.train_step(sequences(2), 9)["lr"] == pytest.approx(1e-3)


def test_a_resumed_cosine_schedule_continues_where_it_was(model_dir: Path, tmp_path: Path) -> None:
    config = LearnerConfig(lr=1e-3, schedule=LearningRateSchedule.COSINE, schedule_steps=3)
    whole, resumed = (Learner(model_dir, config, BANNED) for _ in range(2))
    for step in range(2):
        whole.train_step(sequences(seed=step), step)
    whole.save(tmp_path / "step_2")
    resumed.load(tmp_path / "step_2")
    last, again = (learner.train_step(sequences(seed=2), 2) for learner in (whole, resumed))
    assert last["lr"] == again["lr"] == pytest.approx(1e-3 * 0.25)
    assert resumed.state_hash() == whole.state_hash()


def test_coefficient_zero_loads_no_reference(model_dir: Path) -> None:
    _, metrics = stepped(model_dir, LearnerConfig(), sequences(2))
    assert "kl" not in metrics
    with pytest.raises(FileNotFoundError):
        Learner(model_dir, LearnerConfig(kl=KlConfig(coefficient=1e-3)), reference_dir="/nonexistent")


def test_checkpoint_restores_hash_and_next_step(model_dir: Path, tmp_path: Path) -> None:
    first, _ = stepped(model_dir, LearnerConfig(lr=1e-3), sequences(seed=1))
    first.save(tmp_path / "step_1")
    saved = first.state_hash()
    second = Learner(model_dir, LearnerConfig(lr=1e-3), BANNED)
    assert second.state_hash() != saved
    second.load(tmp_path / "step_1")
    assert second.state_hash() == saved
    a, b = (learner.train_step(sequences(seed=2), 1) for learner in (first, second))
    assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])
    assert first.state_hash() == second.state_hash() != saved


def test_a_deterministic_learner_steps_without_any_other_kernel(model_dir: Path) -> None:
    try:
        stepped(model_dir, LearnerConfig(lr=1e-3, deterministic=True), sequences(2))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_checkpoint_is_a_model_folder_and_weights_match_it(model_dir: Path, tmp_path: Path) -> None:
    learner, _ = stepped(model_dir, LearnerConfig(lr=1e-3), sequences())
    learner.save(tmp_path / "checkpoint")
    learner.write_weights(tmp_path / "weights")
    probe = [3, 9, 27, 41]
    again = Learner(tmp_path / "checkpoint", LearnerConfig(), BANNED)
    assert again.raw_logprobs(probe) == learner.raw_logprobs(probe)
    assert (tmp_path / "weights" / "model.safetensors").is_file()


def test_non_finite_gradient_updates_nothing(model_dir: Path) -> None:
    learner = Learner(model_dir, LearnerConfig(), BANNED)
    before = learner.state_hash()
    broken = [TrainSequence([1, 2], [False, True], [0.0, float("nan")], 1.0)]
    with pytest.raises(NonFiniteStep, match="step 7 has loss nan"):
        learner.train_step(broken, 7)
    assert learner.state_hash() == before


def test_a_batch_without_policy_tokens_is_an_error(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="none of the 1 sequences of step 0"):
        stepped(model_dir, LearnerConfig(), [TrainSequence([1, 2], [False, False], [0.0, 0.0], 1.0)])


def test_banned_ids_must_exist(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"banned ids \[64\] are outside the vocabulary of 64"):
        Learner(model_dir, LearnerConfig(), [64])


def test_bfloat16_passes_stay_near_float32(model_dir: Path) -> None:
    batch = sequences(3)
    exact = Learner(model_dir, LearnerConfig(), BANNED).score(batch)
    rough = Learner(model_dir, LearnerConfig(dtype="bfloat16"), BANNED)
    gaps = [abs(a - b) for x, y in zip(exact, rough.score(batch), strict=True) for a, b in zip(x, y, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.2
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())
    assert rough.train_step(batch, 0)["grad_norm"] > 0
