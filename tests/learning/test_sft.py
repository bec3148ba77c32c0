"""Supervised fine-tuning looks at assistant tokens only and learns them."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import Qwen3ForCausalLM

from genevolve_ray.learning.config import OptimizerName
from genevolve_ray.learning.policy import state_hash
from genevolve_ray.learning.sft import (
    SftConfig,
    SftExample,
    build_optimizers,
    evaluate_sft,
    learning_rate,
    train_sft,
)

VOCABULARY = 64


def examples(count: int, seed: int = 0) -> list[SftExample]:
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        length = rng.randint(6, 24)
        mask = [False, False, *(rng.random() < 0.5 for _ in range(length - 3)), True]
        result.append(SftExample([rng.randrange(VOCABULARY) for _ in range(length)], mask))
    return result


def gradients(model: Qwen3ForCausalLM, batch: list[SftExample], **settings: int) -> dict[str, torch.Tensor]:
    """Return the batch's gradients by a step of plain SGD at rate 1 in float64."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    config = SftConfig(steps=1, lr=1.0, grad_clip=1e9, **settings)  # type: ignore[arg-type]
    train_sft(model, [batch], config, optimizers=[sgd])
    moved = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    model.load_state_dict(before, strict=False)
    return moved


def test_loss_is_cross_entropy_of_the_masked_tokens(model: Qwen3ForCausalLM) -> None:
    batch = examples(5)
    picked = []
    for example in batch:
        logits = model(torch.tensor([example.tokens])).logits[0].log_softmax(-1)
        picked += [-logits[t - 1, example.tokens[t]].item() for t, wanted in enumerate(example.mask) if wanted]
    assert evaluate_sft(model, batch).loss == pytest.approx(sum(picked) / len(picked), abs=1e-5)


def test_unmasked_tails_change_nothing(model: Qwen3ForCausalLM) -> None:
    batch = examples(4)
    longer = [SftExample([*e.tokens, 1, 2, 3], [*e.mask, False, False, False]) for e in batch]
    assert evaluate_sft(model, longer).loss == pytest.approx(evaluate_sft(model, batch).loss, abs=1e-6)


@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_gradient_does_not_depend_on_micro_batches(model: Qwen3ForCausalLM, token_budget: int) -> None:
    double = model.double()
    expected = gradients(double, examples(6))
    got = gradients(double, list(reversed(examples(6))), token_budget=token_budget)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_training_learns_a_batch_by_heart(model: Qwen3ForCausalLM, optimizer: OptimizerName) -> None:
    batch, seen = examples(4), []
    config = SftConfig(steps=40, lr=1e-2, optimizer=optimizer)
    history = train_sft(model, (batch for _ in range(1000)), config, on_step=seen.append)
    assert len(history) == 40 and seen == history
    assert history[0].loss > 1.0 and evaluate_sft(model, batch).loss < 0.1


def test_bfloat16_passes_train_float32_weights(model: Qwen3ForCausalLM) -> None:
    """The rate is far below what a bfloat16 weight could take up."""
    batch, before = examples(4), evaluate_sft(model, examples(4)).loss
    assert evaluate_sft(model, batch, dtype="bfloat16").loss == pytest.approx(before, rel=0.02)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_sft(model, [batch] * 20, SftConfig(steps=20, lr=1e-5, dtype="bfloat16"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(bool((p != weights[n]).any()) for n, p in model.named_parameters())
    assert evaluate_sft(model, batch).loss < before


def test_zero_rate_changes_nothing(model: Qwen3ForCausalLM) -> None:
    before = state_hash(model.state_dict())
    train_sft(model, [examples(3)], SftConfig(steps=1, lr=0.0))
    assert state_hash(model.state_dict()) == before


def test_embeddings_and_norms_are_not_decayed(model: Qwen3ForCausalLM) -> None:
    (adamw,) = build_optimizers(model, SftConfig(weight_decay=0.1))
    decayed, rest = adamw.param_groups
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert model.get_input_embeddings().weight in set(rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_schedule_warms_up_and_ends_at_its_floor() -> None:
    config = SftConfig(steps=100, lr=1.0, warmup_fraction=0.1, final_lr_fraction=0.2)
    rates = [learning_rate(step, config) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.2)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_nothing_to_learn_is_an_error(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(ValueError, match="none of the 1 examples"):
        train_sft(model, [[SftExample([1, 2], [False, False])]], SftConfig())


def test_a_first_token_has_no_prediction(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(ValueError, match="sequence 0: 2 tokens"):
        evaluate_sft(model, [SftExample([1, 2], [True, True])])


def test_non_finite_loss_updates_nothing(model: Qwen3ForCausalLM) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    before = state_hash(model.state_dict())
    with pytest.raises(FloatingPointError, match="loss nan"):
        train_sft(model, [examples(2)], SftConfig(steps=1))
    assert state_hash(model.state_dict()) == before
