"""A policy that sees over two ranks: ranks without pictures in a micro-batch wait for nobody, and nobody for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import Case, compare, compare_gradients, train, train_on_ranks
from safetensors.torch import load_file
from tiny_vl import build_vl

from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig
from genevolve_ray.learning.ved_config import VedConfig, VedForm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CONFIG = LearnerConfig(
    lr=1e-3,
    temperature=0.7,
    token_budget=40,
    kl=KlConfig(coefficient=0.1),
    ved=VedConfig(coefficient=0.5, gate_fraction=0.3),
)
COUNTS = (7, 3, 1)
"""Three of the first seven sequences show pictures, none of the next three do, and the last one is alone and does."""


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG.model_copy(update={"gradient_checkpointing": True}), id="all weights, checkpointing"),
        pytest.param(CONFIG.model_copy(update={"lora": LoraConfig(rank=4, projector=True)}), id="projectors"),
        pytest.param(CONFIG.model_copy(update={"lora": LoraConfig(rank=4), "offload": True}), id="decoder, offload"),
        pytest.param(
            CONFIG.model_copy(update={"ved": VedConfig(coefficient=0.5, form=VedForm.REVERSE_KL)}),
            id="exact divergence",
        ),
    ],
)
def test_two_ranks_do_what_one_does_with_pictures(tmp_path: Path, config: LearnerConfig) -> None:
    model = build_vl(tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    case = Case(model, config, COUNTS, sees=True)
    alone = Case(model, config.model_copy(update={"offload": False}), COUNTS, sees=True)
    expected = train(alone, tmp_path / "one")
    first, second = train_on_ranks(case, 2, tmp_path / "two")
    compare_gradients(second, expected | {"gradients": dict(expected["gradients"])})
    compare_gradients(first, expected)
    for name in ("start", "hash", "hash_again"):
        second.pop(name)
    assert {name: first[name] for name in second} == second, "every rank sees the same"
    compare(first, expected)
    one, two = (load_file(tmp_path / name / "merged" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name
