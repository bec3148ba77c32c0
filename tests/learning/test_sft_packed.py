"""A fine-tuning step on packed rows equals the one on padded rows, with pictures as well, and says what it packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences, siblings, use_exact_norms
from seeing_fakes import looking, picture
from tiny_qwen3_policy import tiny_model
from tiny_vl import build_vl
from transformers import PreTrainedModel
from zoo import build

from genevolve_ray.learning.batch import MaskedTokens
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.sft import SftConfig, SftStep, evaluate_sft, train_sft

DTYPES = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-5)}
Batch = list[MaskedTokens]
BUDGET = 60
"""Tokens of a micro-batch: the batches below need several."""


def read_alone(_: Path) -> tuple[PreTrainedModel, Batch]:
    """Return a policy that reads, and rows of which every other one begins as the one before."""
    return tiny_model(), [*siblings(sequences(7)), *sequences(1)]


def seen(folder: str) -> tuple[PreTrainedModel, Batch]:
    """Return a policy that sees, and rows: two begin with the same pictures, one shows none."""
    model = load_policy(folder)
    shown = zip(siblings(sequences(4)), ((0, 1), (0, 1), (3,), ()), strict=True)
    return model, [looking(model.config, s, [picture(model.config, n) for n in its]) for s, its in shown]


MAKERS: dict[str, Callable[[Path], tuple[PreTrainedModel, Batch]]] = {
    "qwen3": read_alone,
    "qwen3-vl": lambda folder: seen(build_vl(folder)),
    "qwen2.5-vl": lambda folder: seen(str(build("qwen2.5-vl", folder))),
}


def stepped(model: PreTrainedModel, batch: Batch, **settings: Any) -> tuple[SftStep, dict[str, torch.Tensor]]:
    """Return the step and its gradients, by plain SGD at rate 1; the model stays as it was."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    config = SftConfig(steps=1, lr=1.0, grad_clip=1e9, token_budget=BUDGET, **settings)
    [step] = train_sft(model, [batch], config, optimizers=[sgd])
    gradients = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    model.load_state_dict(before, strict=False)
    return step, gradients


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("name", list(MAKERS))
def test_packed_rows_have_the_loss_and_gradient_of_padded_ones(name: str, dtype: str, tmp_path: Path) -> None:
    model, batch = MAKERS[name](tmp_path / "model")
    kind, limit = DTYPES[dtype]
    model.to(kind)
    use_exact_norms(model)
    # The towers of transformers rotate in float32 in any model, so that float64 would not show more of their gradients.
    model.requires_grad_(dtype == "float32").get_decoder().requires_grad_(True)
    packed, gradients = stepped(model, batch)
    padded, others = stepped(model, batch, packed_rows=False)
    assert packed.distinct_tokens == packed.row_tokens < packed.tokens, "shared prefixes, and no padding"
    assert padded.row_tokens > padded.distinct_tokens == padded.tokens
    assert packed.loss == pytest.approx(padded.loss, rel=limit)
    assert (packed.target_tokens, packed.tokens) == (padded.target_tokens, padded.tokens)
    for parameter, gradient in gradients.items():
        error = float((gradient - others[parameter]).abs().max())
        assert error <= limit * max(1.0, float(others[parameter].abs().max())), parameter
    held = [evaluate_sft(model, batch, BUDGET, packed_rows=packs) for packs in (True, False)]
    assert held[0].loss == pytest.approx(held[1].loss, rel=limit) and held[0].target_tokens == held[1].target_tokens


def test_a_model_with_windows_gets_padded_rows(tmp_path: Path) -> None:
    model = load_policy(build("mistral", tmp_path / "model"))
    step, _ = stepped(model, sequences(4))
    assert step.row_tokens > step.distinct_tokens == step.tokens


def test_operations_count_the_tokens_that_are_computed() -> None:
    model, [row] = tiny_model(), sequences(1)
    once, _ = stepped(model, [row])
    thrice, _ = stepped(model, [row] * 3)
    assert thrice.flops == once.flops and thrice.tokens == 3 * once.tokens
    assert thrice.loss == pytest.approx(once.loss, rel=1e-6)
