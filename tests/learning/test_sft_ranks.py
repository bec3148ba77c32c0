"""Fine-tuning over two ranks: the same losses and gradients as in one process, and a state that crosses."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences

from genevolve_ray.learning.build import build_policy
from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.distributed import Ranks, full_state
from genevolve_ray.learning.launch import run_on_ranks
from genevolve_ray.learning.sft import SftConfig, build_optimizers, evaluate_sft, train_sft
from genevolve_ray.learning.sft_state import load_state, save_result, save_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CASES = (LearnerConfig(gradient_checkpointing=True), LearnerConfig(lora=LoraConfig(rank=4)))
STEPS = SftConfig(steps=3, lr=1e-2, token_budget=25)
# The second batch leaves rank 1 without an example; the others leave it with fewer.
BATCHES = [sequences(count, seed, 20) for seed, count in enumerate((5, 1, 6))]


def train(case: LearnerConfig, model_dir: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Take two steps, save, take the third, and take it again from the state."""
    model, adapter = build_policy(model_dir, case, ranks)
    optimizers = build_optimizers(model, STEPS)
    some = partial(train_sft, model, optimizers=optimizers, ranks=ranks)
    history = some(BATCHES[:2], STEPS)
    if ranks.first:
        out.mkdir()
    save_state(model, optimizers, ranks, out if ranks.first else None)
    ranks.combine({"written": 1.0}, frozenset())
    history += some(BATCHES[2:], STEPS, first=2)
    before = {name: tensor.clone() for name, tensor in full_state(model, ranks).items()}
    load_state(model, optimizers, out)
    again = some(BATCHES[2:], STEPS, first=2)
    after = full_state(model, ranks)
    evaluation = evaluate_sft(model, BATCHES[0], 25, ranks=ranks)
    if ranks.first:
        (out / "result").mkdir()
    save_result(model, adapter, ranks, model_dir, out / "result" if ranks.first else None, case)
    return {
        "norms": [(step.loss, step.grad_norm) for step in history],
        "same": [step.loss for step in again] == [step.loss for step in history[2:]],
        "state": before,
        "restored": all(torch.equal(tensor, after[name]) for name, tensor in before.items()),
        "heldout": astuple(evaluation),
        "files": sorted(path.name for path in (out / "result").iterdir() if path.suffix == ".safetensors"),
    }


def all_cases(model_dir: Path, out: Path, ranks: Ranks) -> list[dict[str, Any]]:
    return [train(case, model_dir, out / str(number), ranks) for number, case in enumerate(CASES)]


def test_two_ranks_do_what_one_does(model_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = all_cases(model_dir, tmp_path / "one", Ranks())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # That of a single rank, left by another test of this process.
    together = run_on_ranks(2, "cpu", 1, partial(all_cases, model_dir, tmp_path / "two"))
    for mine, expected in zip(together, alone, strict=True):
        for step, other in zip(mine["norms"], expected["norms"], strict=True):
            assert step == pytest.approx(other, rel=1e-4)
        assert mine["heldout"] == pytest.approx(expected["heldout"], rel=1e-4)
        assert mine["files"] == expected["files"]
        assert mine["same"] and expected["same"] and mine["restored"] and expected["restored"]
        assert mine["state"].keys() == expected["state"].keys()
        for name, tensor in mine["state"].items():
            torch.testing.assert_close(tensor, expected["state"][name], rtol=1e-3, atol=1e-4)
