"""Micro-batches hold every policy token once, within the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.learning.batch import TrainSequence, micro_batches


def sequence(first: int, mask: list[bool]) -> TrainSequence:
    return TrainSequence([first + i for i in range(len(mask))], mask, [0.0] * len(mask), advantage=1.0)


masks = st.lists(st.booleans(), min_size=0, max_size=12).map(lambda tail: [False, *tail])


@given(st.lists(masks, max_size=8), st.integers(1, 40))
def test_every_policy_token_appears_once_within_the_budget(all_masks: list[list[bool]], budget: int) -> None:
    sequences = [sequence(100 * i, mask) for i, mask in enumerate(all_masks)]
    found: dict[int, list[int]] = {}
    for batch in micro_batches(sequences, budget):
        assert batch.ids_B_T.numel() <= budget or len(batch.indices) == 1
        flat = batch.ids_B_T.flatten()
        assert (flat[batch.rows_N + 1] == batch.targets_N).all()
        for target, row in zip(batch.targets_N.tolist(), batch.sequence_P.tolist(), strict=True):
            found.setdefault(batch.indices[row], []).append(target)
        assert batch.tokens == sum(len(sequences[i].tokens) for i in batch.indices)
    wanted = {
        i: [t for t, m in zip(s.tokens, s.policy_mask, strict=True) if m]
        for i, s in enumerate(sequences)
        if any(s.policy_mask)
    }
    assert found == wanted


def test_a_sequence_beyond_the_budget_stands_alone() -> None:
    batches = micro_batches([sequence(0, [False, True]), sequence(10, [False] * 9 + [True])], token_budget=4)
    assert [b.indices for b in batches] == [(1,), (0,)]


def test_columns_must_agree() -> None:
    with pytest.raises(ValueError, match="2 tokens, 1 mask entries, 2 log-probs"):
        TrainSequence([1, 2], [True], [0.0, 0.0], 1.0)


def test_a_policy_token_needs_context() -> None:
    with pytest.raises(ValueError, match="sequence 0"):
        micro_batches([sequence(0, [True, True])], 10)
