"""FSDP2: a step is the same step on any number of ranks, and state crosses between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import Case, compare, compare_gradients, train, train_on_ranks
from safetensors.torch import load_file

from genevolve_ray.learning.batch import empty_batch
from genevolve_ray.learning.config import GrpoConfig, KlConfig, KlForm, LearnerConfig, LoraConfig, LossAggregation
from genevolve_ray.learning.context import ContextRanks
from genevolve_ray.learning.distributed import Ranks, join_ranks, with_context
from genevolve_ray.learning.policy import state_hash
from genevolve_ray.learning.ved_config import GradientRatio, TokenAggregation, VedConfig, VedForm, VedGate
from genevolve_ray.models.adapters import published_tensors

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SMALL = LearnerConfig(lr=1e-3, temperature=0.7, token_budget=25)
WITH_REFERENCE = SMALL.model_copy(
    update={"kl": KlConfig(coefficient=0.1), "ved": VedConfig(coefficient=0.5, gate_fraction=0.3)}
)
PARTS = {"model": ".safetensors", "optimizer": ".pt"}
# One sequence leaves rank 1 of the second step without any; five leave it with one fewer.
COUNTS = (5, 1, 6)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(WITH_REFERENCE.model_copy(update={"gradient_checkpointing": True}), id="reference, checkpointing"),
        pytest.param(
            WITH_REFERENCE.model_copy(update={"lora": LoraConfig(rank=4), "gradient_checkpointing": 0.5}),
            id="adapter, half of the layers checkpointed",
        ),
        pytest.param(
            SMALL.model_copy(
                update={
                    "reshard_after_forward": False,
                    "prefetch_layers": 1,
                    "grpo": GrpoConfig(aggregation=LossAggregation.TOKEN_MEAN),
                    "kl": KlConfig(coefficient=0.1, form=KlForm.LOW_VAR_KL),
                    "ved": VedConfig(
                        coefficient=2.0,
                        form=VedForm.PAPER,
                        aggregation=TokenAggregation.BATCH_TOKEN_MEAN,
                        gate_fraction=0.3,
                    ),
                }
            ),
            id="means over the tokens of the batch, layers kept gathered",
        ),
        pytest.param(
            SMALL.model_copy(
                update={
                    "ved": VedConfig(
                        coefficient=GradientRatio(ratio_to_grpo=0.5, every=2),
                        form=VedForm.REVERSE_KL,
                        gate_fraction=0.3,
                    )
                }
            ),
            id="exact divergence, coefficient by gradient norms",
        ),
        pytest.param(
            SMALL.model_copy(
                update={
                    "lora": LoraConfig(rank=4),
                    "ved": VedConfig(coefficient=2.0, form=VedForm.JSD, gate=VedGate.SIGMOID),
                }
            ),
            id="adapter, exact divergence, sigmoid gate",
        ),
        pytest.param(SMALL.model_copy(update={"compile": True}), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_do_what_one_does(model_dir: Path, tmp_path: Path, config: LearnerConfig) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    case = Case(str(model_dir), config, COUNTS)
    expected = train(case, tmp_path / "one")
    first, second = train_on_ranks(case, 2, tmp_path / "two")
    compare_gradients(second, expected | {"gradients": dict(expected["gradients"])})
    compare_gradients(first, expected)
    assert {name: first[name] for name in second} == second, "every rank sees the same"
    assert first["start"] == expected["start"]
    compare(first, expected)
    one, two = (load_file(tmp_path / name / "merged" / "model.safetensors") for name in ("one", "two"))
    assert (expected["sent"], first["sent"]) == (state_hash(one), state_hash(two))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name
    # What rank 0 alone has written, whole or an adapter, makes the weights that were merged over the ranks.
    published = dict(published_tensors(tmp_path / "two" / "weights", model_dir))
    assert published.keys() == two.keys() and all(torch.equal(published[name], two[name]) for name in two)


def test_two_ranks_that_share_each_row_do_what_one_does(model_dir: Path, tmp_path: Path) -> None:
    case = Case(str(model_dir), WITH_REFERENCE.model_copy(update={"gradient_checkpointing": 0.5}), (5, 1))
    (tmp_path / "two").mkdir()
    expected = train(case, tmp_path)
    shared = replace(case, config=case.config.model_copy(update={"context_parallel": 2}))
    first, second = train_on_ranks(shared, 2, tmp_path / "two")
    compare_gradients(second, expected | {"gradients": dict(expected["gradients"])})
    compare_gradients(first, expected)
    assert {name: first[name] for name in second} == second
    compare(first, expected)


def test_groups_of_ranks_take_turns_with_micro_batches() -> None:
    batches = [empty_batch(torch.device("cpu")) for _ in range(5)]
    for rank in range(4):
        place = Ranks(rank, 4, context=ContextRanks(None, rank % 2, 2))
        first, second, third = place.share(batches, torch.device("cpu"))
        assert (place.groups, place.counts) == (2, rank % 2 == 0)
        assert first is batches[rank // 2] and second is batches[2 + rank // 2]
        assert (third is batches[4]) is (rank < 2)


def test_ranks_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match="learner.context_parallel=2 does not divide the 1 ranks"):
        with_context(Ranks(), 2)


def test_a_checkpoint_crosses_between_numbers_of_ranks(untied_dir: Path, tmp_path: Path) -> None:
    case = Case(str(untied_dir), SMALL, (3,))
    offloaded = Case(str(untied_dir), SMALL.model_copy(update={"offload": True}), (3,))
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    alone = train(case, one)
    first, _ = train_on_ranks(offloaded, 2, two, checkpoint=str(one / "checkpoint"))
    assert first["start"] == alone["hash"]
    files = {path.name for path in (two / "checkpoint").iterdir()}
    assert files >= {f"{kind}-0000{rank}-of-00002{end}" for rank in (1, 2) for kind, end in PARTS.items()}
    assert "model.safetensors" not in files and ".ranks" not in files
    again = train(case, one, checkpoint=str(two / "checkpoint"))
    assert again["start"] == first["hash"]


def test_bfloat16_is_the_same_on_any_number_of_ranks(model_dir: Path, tmp_path: Path) -> None:
    """A single rank shards too, so that the same weights and states are rounded everywhere."""
    case = Case(str(model_dir), SMALL.model_copy(update={"dtype": "bfloat16"}), (5,))
    (tmp_path / "two").mkdir()
    try:
        expected = train(case, tmp_path)
    finally:
        torch.distributed.destroy_process_group()
    first, _ = train_on_ranks(case, 2, tmp_path / "two")
    compare_gradients(first, expected)
    for row, other in zip(first["scores"], expected["scores"], strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert first["metrics"][0]["grad_norm"] == pytest.approx(expected["metrics"][0]["grad_norm"], rel=1e-5)


def test_offload_shards_over_one_rank(model_dir: Path, tmp_path: Path) -> None:
    case = Case(str(model_dir), SMALL, (5, 2))
    expected = train(case, tmp_path)
    try:
        mine = train(Case(str(model_dir), SMALL.model_copy(update={"offload": True}), (5, 2)), tmp_path)
    finally:
        torch.distributed.destroy_process_group()
    compare_gradients(mine, expected)
    compare(mine, expected)
    assert mine["start"] == expected["start"]


def test_one_rank_needs_no_process_group() -> None:
    assert join_ranks(0, 1, "nowhere:0") == Ranks()
    with pytest.raises(ValueError, match="rank 2 is not one of 2 ranks"):
        join_ranks(2, 2, "nowhere:0")
