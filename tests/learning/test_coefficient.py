"""The coefficient of distillation by the norms of two gradients: what a step does with it, and what resume needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import exact, taught
from test_step import BANNED, DOUBLE, sequences
from test_step_teacher import GUIDE
from torch import Tensor

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.coefficient import _products
from genevolve_ray.learning.config import LearnerConfig, LoraConfig
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.ved_config import GradientRatio, VedConfig, VedForm

RATIO = 0.5


def batch(step: int = 0) -> list[TrainSequence]:
    return [taught(s, GUIDE) if i % 2 else s for i, s in enumerate(sequences(seed=step))]


def learner(folder: Path, ratio: dict[str, Any] | float, **changes: Any) -> Learner:
    coefficient = GradientRatio.model_validate({"ratio_to_grpo": RATIO, **ratio}) if isinstance(ratio, dict) else ratio
    ved = VedConfig(coefficient=coefficient, form=changes.pop("form", VedForm.SCORE))
    return exact(Learner(folder, DOUBLE.model_copy(update={"ved": ved, **changes}), BANNED))


def gradient(made: Learner, of: list[TrainSequence]) -> Tensor:
    made.drop()
    made._objective.add_gradients(made._passes.split(of), made._objective.with_teacher(of), 0)
    return torch.cat([p.grad.flatten() for p in made._parameters if p.grad is not None])


@pytest.mark.parametrize("form", [VedForm.SCORE, VedForm.JSD])
def test_the_two_gradients_have_the_ratio(model_dir: Path, form: VedForm) -> None:
    """Against gradients of the batch without a teacher, and of a batch without advantages at coefficient 1."""
    made = learner(model_dir, {}, form=form, token_budget=40)
    grpo = gradient(learner(model_dir, 0.0), batch())
    ved = gradient(learner(model_dir, 1.0, form=form), [replace(s, advantage=0.0) for s in batch()])
    wanted = RATIO * float(grpo.norm() / ved.norm())
    torch.testing.assert_close(gradient(made, batch()), grpo + wanted * ved, rtol=1e-8, atol=1e-10)
    metrics = learner(model_dir, {}, form=form).train_step(batch(), 0)
    assert metrics["ved_coefficient"] == pytest.approx(wanted)
    assert metrics["grad_norm_grpo"] == pytest.approx(float(grpo.norm()))
    assert metrics["grad_norm_ved"] == pytest.approx(float(ved.norm()))
    assert metrics["grad_cosine_ved"] == pytest.approx(float(grpo @ ved / (grpo.norm() * ved.norm())))


def test_a_measured_step_is_that_of_the_number(model_dir: Path) -> None:
    """The metrics too: two passes over the batch count nothing twice."""
    by_ratio = learner(model_dir, {})
    found = by_ratio.train_step(batch(), 0)
    by_number = learner(model_dir, found["ved_coefficient"])
    expected = by_number.train_step(batch(), 0)
    measured = {"ved_coefficient", "grad_norm_grpo", "grad_norm_ved", "grad_cosine_ved"}
    assert found.keys() - expected.keys() == measured
    for name in expected.keys() - {n for n in expected if "second" in n}:
        assert found[name] == pytest.approx(expected[name], rel=1e-8, abs=1e-12), name
    assert len(by_ratio.gaps) == len(by_number.gaps)
    for row, other in zip(by_ratio.gaps, by_number.gaps, strict=True):
        assert row == pytest.approx(other, rel=1e-9)


def test_other_steps_keep_the_last_coefficient(model_dir: Path) -> None:
    made = learner(model_dir, {"every": 2})
    quiet = [replace(s, advantage=0.0) for s in batch(2)]
    metrics = [made.train_step(of, step) for step, of in enumerate((batch(0), batch(1), quiet, sequences(), batch(4)))]
    coefficients = [m.get("ved_coefficient") for m in metrics]
    assert coefficients[:4] == [coefficients[0], coefficients[0], coefficients[0], None]
    assert coefficients[4] != coefficients[0]
    assert [("grad_norm_ved" in m) for m in metrics] == [True, False, True, False, True]
    assert metrics[2]["grad_norm_grpo"] == 0


def test_it_stays_within_its_bounds(model_dir: Path) -> None:
    for bounds, wanted in (({"maximum": 1e-3}, 1e-3), ({"minimum": 50.0}, 50.0)):
        assert learner(model_dir, bounds).train_step(batch(), 0)["ved_coefficient"] == wanted
    quiet = [replace(s, advantage=0.0) for s in batch()]
    assert learner(model_dir, {"minimum": 0.25}).train_step(quiet, 0)["ved_coefficient"] == 0.25


@pytest.mark.parametrize("form", [VedForm.FORWARD_KL, VedForm.JSD])
def test_a_teacher_that_agrees_leaves_the_coefficient(model_dir: Path, form: VedForm) -> None:
    """Its gradient is zero but for rounding, by which nothing may be divided."""
    made = learner(model_dir, {"every": 2}, form=form)
    agreed = [taught(s, []) for s in sequences(seed=2)]
    first, _, third = (made.train_step(of, step) for step, of in enumerate((batch(0), batch(1), agreed)))
    assert 0 < third["grad_norm_ved"] < 1e-9 * third["grad_norm_grpo"], "in exact numbers it is zero"
    assert third["ved_coefficient"] == first["ved_coefficient"]


@pytest.mark.parametrize("form", [VedForm.SCORE, VedForm.REVERSE_KL])
def test_a_checkpoint_brings_the_coefficient_back(model_dir: Path, tmp_path: Path, form: VedForm) -> None:
    """A step that does not measure, applied again after the checkpoint before it, ends in the same bits."""
    made, again, never = (learner(model_dir, {"every": 3}, form=form) for _ in range(3))
    made.train_step(batch(0), 0)
    made.save(tmp_path / "checkpoint")
    again.load(tmp_path / "checkpoint")
    assert again.state_hash() == made.state_hash()
    for step in (1, 2, 3):
        found, expected = again.train_step(batch(step), step), made.train_step(batch(step), step)
        assert found["ved_coefficient"] == expected["ved_coefficient"]
        assert again.state_hash() == made.state_hash()
    assert never.state_hash() != made.state_hash()


def test_a_checkpoint_from_before_the_ratio_is_measured_anew(model_dir: Path, tmp_path: Path) -> None:
    old = learner(model_dir, 0.1)
    old.train_step(batch(0), 0)
    old.save(tmp_path / "checkpoint")
    made = learner(model_dir, {"every": 10})
    made.load(tmp_path / "checkpoint")
    assert made.state_hash() == old.state_hash()
    assert "grad_norm_ved" in made.train_step(batch(1), 1)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -0.5, {"ratio_to_grpo": float("inf")}, {}, "much", None])
def test_a_coefficient_is_a_finite_number_or_a_ratio(value: object) -> None:
    with pytest.raises(ValueError, match=r"coefficient"):
        VedConfig.model_validate({"coefficient": value})


def test_projectors_are_refused() -> None:
    """Every rank holds them whole, and their gradients are summed later."""
    ved = VedConfig(coefficient=GradientRatio(ratio_to_grpo=0.5))
    with pytest.raises(ValueError, match=r"ved.coefficient=\{ratio_to_grpo: 0.5\} needs lora.projector=false"):
        LearnerConfig(ved=ved, lora=LoraConfig(projector=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inner_products_are_summed_in_a_wide_type_in_the_order_of_the_parameters(dtype: torch.dtype) -> None:
    one, other = ([torch.randn(300).to(dtype), None, torch.randn(7, 5).to(dtype)] for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    wanted = sum(float((a.to(wide) * b.to(wide)).sum()) for a, b in zip(one, other, strict=True) if a is not None)
    squares = sum(float((a.to(wide) ** 2).sum()) for a in one if a is not None)
    assert _products((one, other), (one, one), ([None], [None])) == [wanted, squares, 0.0]
