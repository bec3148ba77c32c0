"""A rank's part of a packed row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning_fakes import sequences, siblings
from tiny_qwen3_policy import tiny_model
from zoo import build

from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.context import ContextRanks, use_context
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.packing import Packer
from genevolve_ray.learning.passes import Passes
from genevolve_ray.learning.policy import load_policy

CPU = torch.device("cpu")


def test_parts_hold_each_token_and_each_scored_place_once() -> None:
    [batch] = Packer(tiny_model(), CPU).batches(siblings(sequences(5)), 1000)
    parts = [ContextRanks(None, rank, 3).part(batch) for rank in range(3)]
    assert {part.batch.ids_B_T.shape for part in parts} == {(1, 2 * -(-batch.distinct // 6))}
    scored = torch.cat([part.scored for part in parts])
    assert sorted(scored.tolist()) == list(range(len(batch.rows_N)))
    for part in parts:
        assert torch.equal(part.batch.targets_N, batch.targets_N[part.scored])
        ids, positions = part.batch.ids_B_T[0], part.batch.positions
        assert positions is not None and batch.positions is not None
        rows = batch.rows_N[part.scored]
        assert torch.equal(ids[part.batch.rows_N], batch.ids_B_T[0][rows])
        assert torch.equal(positions[0][part.batch.rows_N], batch.positions[0][rows])


def test_causal_attention_costs_every_rank_the_same() -> None:
    [batch] = Packer(tiny_model(), CPU).batches(sequences(1, longest=200), 1000)
    costs = []
    for rank in range(4):
        parts = ContextRanks(None, rank, 4).part(batch).parts
        squares = sum(count * count / 2 for _, _, count in parts.squares)
        costs.append(squares + sum((last - first) * (end - start) for first, last, start, end in parts.blocks))
    assert max(costs) < 1.1 * min(costs)


def test_rows_with_pictures_and_padded_rows_are_not_shared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learner.context_parallel .* the policy has a vision tower"):
        use_context(load_policy(build("qwen3-vl", tmp_path)))
    padded = LearnerConfig(packed_rows=False)
    with pytest.raises(ValueError, match="learner.context_parallel needs packed rows"):
        Passes(tiny_model(), None, padded, (), Ranks(0, 2, context=ContextRanks(None, 0, 2)), twin=False)
