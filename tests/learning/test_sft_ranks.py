"""Fine-tuning over two ranks: the same losses and gradients as in one process, and a state that crosses.

One process pads its rows in every case, so that packed rows on two ranks are compared with padded ones on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences, siblings
from seeing_fakes import looking, picture
from tiny_vl import build_vl

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.build import build_policy
from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.distributed import Ranks, full_state
from genevolve_ray.learning.launch import run_on_ranks
from genevolve_ray.learning.sft import SftConfig, build_optimizers, evaluate_sft, train_sft
from genevolve_ray.learning.sft_state import load_state, save_result, save_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STEPS = SftConfig(steps=3, lr=1e-2)


@dataclass(frozen=True)
class Case:
    """A way to train; `sees`: some rows show pictures, and the vision tower is trained."""

    learner: LearnerConfig
    packed: bool = True
    sees: bool = False
    budget: int = 25


CASES = (
    Case(LearnerConfig(gradient_checkpointing=True)),
    Case(LearnerConfig(), packed=False),
    Case(LearnerConfig(lora=LoraConfig(rank=4))),
    Case(LearnerConfig(), sees=True, budget=60),
)


def batches(case: Case, model: Any) -> list[list[TrainSequence]]:
    """Return rows, every other of which begins as the one before.

    The second batch leaves rank 1 without a row; the others leave it with fewer. Pictures are in its rows alone, or not.
    """
    made = [siblings(sequences(count, seed, 20)) for seed, count in enumerate((5, 1, 6))]
    if not case.sees:
        return made
    shown = ((0, 1), (0, 1), (), (3,), (), (1,))
    return [
        [looking(model.config, row, pictures(model, its)) for row, its in zip(rows, shown, strict=False)]
        for rows in made
    ]


def pictures(model: Any, numbers: Sequence[int]) -> list[Any]:
    return [picture(model.config, number) for number in numbers]


def train(case: Case, model_dir: Path, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Take two steps, save, take the third, and take it again from the state."""
    model, adapter = build_policy(model_dir, case.learner, ranks)
    if case.sees:
        model.requires_grad_(True)
    packs = {"packed_rows": case.packed and ranks.size > 1, "token_budget": case.budget}
    rows, steps = batches(case, model), STEPS.model_copy(update=packs)
    optimizers = build_optimizers(model, steps)
    some = partial(train_sft, model, optimizers=optimizers, ranks=ranks)
    history = some(rows[:2], steps)
    if ranks.first:
        out.mkdir()
    save_state(model, optimizers, ranks, out if ranks.first else None)
    ranks.combine({"written": 1.0}, frozenset())
    history += some(rows[2:], steps, first=2)
    before = {name: tensor.clone() for name, tensor in full_state(model, ranks).items()}
    load_state(model, optimizers, out)
    again = some(rows[2:], steps, first=2)
    after = full_state(model, ranks)
    evaluation = evaluate_sft(model, rows[0], case.budget, ranks=ranks, packed_rows=steps.packed_rows)
    if ranks.first:
        (out / "result").mkdir()
    save_result(model, adapter, ranks, model_dir, out / "result" if ranks.first else None, case.learner)
    return {
        "packed": [step.distinct_tokens < step.tokens for step in history],
        "norms": [(step.loss, step.grad_norm) for step in history],
        "same": [step.loss for step in again] == [step.loss for step in history[2:]],
        "state": before,
        "restored": all(torch.equal(tensor, after[name]) for name, tensor in before.items()),
        "heldout": astuple(evaluation),
        "files": sorted(path.name for path in (out / "result").iterdir() if path.suffix == ".safetensors"),
    }


def all_cases(model_dir: Path, seeing: Path, out: Path, ranks: Ranks) -> list[dict[str, Any]]:
    folders = [seeing if case.sees else model_dir for case in CASES]
    return [
        train(case, folder, out / str(i), ranks) for i, (case, folder) in enumerate(zip(CASES, folders, strict=True))
    ]


def test_two_ranks_do_what_one_does(model_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    seeing = Path(build_vl(tmp_path / "seeing"))
    alone = all_cases(model_dir, seeing, tmp_path / "one", Ranks())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # That of a single rank, left by another test of this process.
    together = run_on_ranks(2, "cpu", 1, partial(all_cases, model_dir, seeing, tmp_path / "two"))
    for case, mine, expected in zip(CASES, together, alone, strict=True):
        assert any(mine["packed"]) is case.packed and not any(expected["packed"])
        for step, other in zip(mine["norms"], expected["norms"], strict=True):
            assert step == pytest.approx(other, rel=1e-4)
        assert mine["heldout"] == pytest.approx(expected["heldout"], rel=1e-4)
        assert mine["files"] == expected["files"]
        assert mine["same"] and expected["same"] and mine["restored"] and expected["restored"]
        assert mine["state"].keys() == expected["state"].keys()
        for name, tensor in mine["state"].items():
            torch.testing.assert_close(tensor, expected["state"][name], rtol=1e-3, atol=1e-4)
