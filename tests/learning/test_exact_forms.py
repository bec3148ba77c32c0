"""A whole step with the exact forms and with each gate: what it equals, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import exact, siblings, taught, use_exact_norms
from test_step import BANNED, DOUBLE, sequences
from test_step_teacher import GUIDE, gap, quiet
from torch import Tensor

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.distributed import lone_rank
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import GradientRatio, TokenAggregation, VedConfig, VedForm, VedGate

EXACT = [form for form in VedForm if form.exact]


def learner(folder: Path, ved: VedConfig, **changes: Any) -> Learner:
    return exact(Learner(folder, DOUBLE.model_copy(update={"ved": ved, **changes}), BANNED))


def batch(count: int = 6) -> list[TrainSequence]:
    """Sequences of which pairs share a prefix; every other pair has a teacher, and one of these two allowed tokens."""
    found = [taught(s, GUIDE) if i % 4 < 2 else s for i, s in enumerate(siblings(sequences(count)))]
    found[1] = taught(found[1], GUIDE, [i < 2 for i in range(found[1].policy_tokens)])
    return found


def gradients(made: Learner, of: Sequence[TrainSequence]) -> tuple[Tensor, dict[str, float]]:
    """Return the whole gradient of a batch, and the sums that come with it."""
    made.drop()
    objective = made._objective
    totals = objective.add_gradients(made._passes.split(of), objective.with_teacher(of), 0)
    return torch.cat([p.grad.flatten() for p in made._parameters if p.grad is not None]), totals


def plain_divergence(form: VedForm, log_p: Tensor, log_q: Tensor) -> Tensor:
    kept = torch.ones(log_p.shape[-1], dtype=torch.bool)
    kept[list(BANNED)] = False
    log_p, log_q = log_p[:, kept], log_q[:, kept]
    p, q = log_p.exp(), log_q.exp()
    m = 0.5 * (p + q)
    return {
        VedForm.REVERSE_KL: (p * (log_p - log_q)).sum(-1),
        VedForm.FORWARD_KL: (q * (log_q - log_p)).sum(-1),
        VedForm.JSD: 0.5 * (q * (log_q - m.log())).sum(-1) + 0.5 * (p * (log_p - m.log())).sum(-1),
    }[form]


def log_probs(model: Any, tokens: Sequence[int], mask: Sequence[bool]) -> Tensor:
    """Return the log-probs [P, V] from which policy tokens are sampled."""
    logits = model(torch.tensor([tokens])).logits[0] / DOUBLE.temperature
    logits[:, list(BANNED)] = float("-inf")
    found: Tensor = logits.log_softmax(-1)[[i - 1 for i, wanted in enumerate(mask) if wanted]]
    return found


@pytest.mark.parametrize("form", EXACT)
def test_the_step_has_the_gradient_of_the_whole_vocabulary(model_dir: Path, form: VedForm) -> None:
    """Against plain autograd over whole logits, sequence by sequence, for the mean over the tokens of the batch."""
    ved = VedConfig(coefficient=2.0, form=form, gate=VedGate.ALL, aggregation=TokenAggregation.BATCH_TOKEN_MEAN)
    made = learner(model_dir, ved)
    found, totals = gradients(made, quiet(batch(), made))
    model = load_policy(model_dir, "float64")
    use_exact_norms(model)
    values = []
    for s in batch():
        if s.teacher is None:
            continue
        student = log_probs(model, s.tokens, s.policy_mask)
        with torch.no_grad():
            teacher = log_probs(model, s.teacher.tokens, s.teacher.policy_mask)
        values.append(plain_divergence(form, student, teacher)[: 2 if s.teacher.gate else None])
    loss = 2.0 * torch.cat(values).mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert totals["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert totals["ved_loss"] == pytest.approx(torch.cat(values).sum().item(), rel=1e-9)


@pytest.mark.parametrize(("form", "gate"), list(zip(EXACT, VedGate, strict=True)))
def test_no_gate_of_an_exact_form_depends_on_the_split(model_dir: Path, form: VedForm, gate: VedGate) -> None:
    fraction = {"gate_fraction": 0.6} if gate is VedGate.TOP else {}
    ved = VedConfig(coefficient=2.0, form=form, gate=gate, **fraction)
    ways: list[dict[str, Any]] = [{"token_budget": 10_000}, {"token_budget": 40}, {"token_budget": 1}]
    ways.append({"token_budget": 40, "packed_rows": False})
    expected, *others = (gradients(learner(model_dir, ved, **way), batch()) for way in ways)
    for gradient, totals in others:
        torch.testing.assert_close(gradient, expected[0], rtol=1e-8, atol=1e-10)
        for name in ("loss", "ved_loss", "ved_gap", "ved_gated", "ved_tokens"):
            assert totals[name] == pytest.approx(expected[1][name], rel=1e-9), name


@pytest.mark.parametrize("form", EXACT)
def test_the_policy_moves_towards_its_teacher(model_dir: Path, form: VedForm) -> None:
    made = learner(model_dir, VedConfig(coefficient=2.0, form=form, gate=VedGate.ALL), lr=3e-4)
    own = quiet([taught(s, GUIDE) for s in sequences(4)], made)
    teacher = made.score([s.teacher for s in own if s.teacher is not None])
    before = gap(made, own, teacher)
    metrics = made.train_step(own, 0)
    assert metrics["ved_gap_abs"] == pytest.approx(before / sum(s.policy_tokens for s in own), rel=1e-9)
    assert metrics["ved_loss"] == metrics["ved_loss_gated"] > 0
    assert gap(made, own, teacher) < before


@pytest.mark.parametrize("form", EXACT)
def test_a_teacher_that_reads_nothing_new_changes_nothing(model_dir: Path, form: VedForm) -> None:
    made = learner(model_dir, VedConfig(coefficient=2.0, form=form, gate=VedGate.ALL))
    metrics = made.train_step(quiet([taught(s, []) for s in sequences(3)], made), 0)
    assert (metrics["ved_loss"], metrics["ved_gap_abs"], metrics["grad_norm"]) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_score_form_is_the_reverse_kl_on_average(model_dir: Path) -> None:
    """One state, every next token as a sample with weight pi: sums over them are expectations under mu = pi."""
    made, score = (
        learner(model_dir, VedConfig(coefficient=1.0, form=form, gate=VedGate.ALL, aggregation=TokenAggregation.SUM))
        for form in (VedForm.REVERSE_KL, VedForm.SCORE)
    )
    mask = [False, False, True]
    each = [TrainSequence([5, 6, token], mask, [0.0] * 3, 0.0) for token in range(64) if token not in BANNED]
    shares = [scores[0] for scores in made.score(each)]
    weighed = [
        replace(
            taught(s, GUIDE), logprobs=[0.0, 0.0, share], weight=float(torch.tensor(share, dtype=torch.float64).exp())
        )
        for s, share in zip(each, shares, strict=True)
    ]
    of_score, of_exact = gradients(score, weighed)[0], gradients(made, weighed)[0]
    # The gap of a rare token may pass the clip of `score`; here none does.
    torch.testing.assert_close(of_score, of_exact, rtol=1e-7, atol=1e-12)


def test_the_sigmoid_gate_weighs_tokens_by_what_the_teacher_endorses(model_dir: Path) -> None:
    """Slope towards 0: every token has one half; a steep one keeps the tokens that the teacher likes better."""
    flat = VedConfig(coefficient=2.0, form=VedForm.REVERSE_KL, gate=VedGate.SIGMOID, gate_slope=1e-12)
    whole = VedConfig(coefficient=1.0, form=VedForm.REVERSE_KL, gate=VedGate.ALL)
    half, one = (gradients(learner(model_dir, ved), batch()) for ved in (flat, whole))
    torch.testing.assert_close(half[0], one[0], rtol=1e-8, atol=1e-12)
    assert half[1]["ved_gate_weight"] == pytest.approx(0.5 * half[1]["ved_gated"])
    steep = learner(model_dir, VedConfig(coefficient=1.0, gate=VedGate.SIGMOID, gate_slope=1e6))
    _, totals = gradients(steep, batch())
    gaps = [x for row, s in zip(steep._objective.gaps, batch(), strict=True) if s.teacher for x in row]
    assert totals["ved_gate_weight"] <= sum(x < 0 for x in gaps)
    assert totals["ved_gated"] == sum(min(s.policy_tokens, 2 if s.teacher.gate else 99) for s in batch() if s.teacher)


@pytest.mark.parametrize("form", [VedForm.SCORE, *EXACT])
def test_adapters_and_bfloat16_are_taught_too(model_dir: Path, form: VedForm) -> None:
    ved = VedConfig(coefficient=2.0, form=form)
    adapter = Learner(model_dir, LearnerConfig(lr=1e-3, ved=ved, lora=LoraConfig(rank=2)), BANNED)
    before = adapter.state_hash()
    assert adapter.train_step(batch(), 0)["ved_loss"] > 0
    assert adapter.state_hash() != before
    try:
        half = Learner(model_dir, LearnerConfig(lr=1e-3, dtype="bfloat16", ved=ved), BANNED, ranks=lone_rank("cpu"))
        full = Learner(model_dir, LearnerConfig(lr=1e-3, ved=ved), BANNED)
        rounded, exactly = (each.train_step(batch(), 0)["ved_loss"] for each in (half, full))
    finally:
        torch.distributed.destroy_process_group()
    assert rounded == pytest.approx(exactly, rel=0.1)


def test_settings_of_other_forms_and_gates_are_refused() -> None:
    for settings, message in (
        (
            {"form": "reverse_kl", "rho_cap": 3.0},
            "rho_cap=3 belongs to forms 'score' and 'paper', form is 'reverse_kl'",
        ),
        ({"form": "jsd", "gap_clip": 5.0}, "gap_clip=5 belongs to forms 'score' and 'paper', form is 'jsd'"),
        ({"form": "forward_kl", "beta": 0.5}, "beta=0.5 belongs to form 'jsd', form is 'forward_kl'"),
        ({"gate_slope": 2.0}, "gate_slope=2 belongs to gate 'sigmoid', gate is 'top'"),
        ({"gate": "all", "gate_fraction": 0.2}, "gate_fraction=0.2 belongs to gate 'top', gate is 'all'"),
        ({"coefficient": {"ratio_to_grpo": 1, "minimum": 2, "maximum": 1}}, "minimum=2 is above maximum=1"),
    ):
        with pytest.raises(ValueError, match=message):
            VedConfig.model_validate(settings)
    with pytest.raises(ValueError, match="form=jsd needs context_parallel=1, got 2"):
        LearnerConfig(context_parallel=2, ved=VedConfig(coefficient=1.0, form=VedForm.JSD))
    assert isinstance(VedConfig.model_validate({"coefficient": {"ratio_to_grpo": 0.5}}).coefficient, GradientRatio)
