"""Splits follow from what a row is: order, neighbours and repetition do not move it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genevolve_ray.records.published.splits import Split, SplitConfig, split_keys

FRACTIONS = SplitConfig(validation=0.2, test=0.3)
KEYS = [f"row-{i}" for i in range(2000)]
steady = settings(deadline=None, derandomize=True)


@steady
@given(st.lists(st.text(max_size=4), max_size=30), st.randoms())
def test_order_and_repetition_do_not_matter(keys: list[str], random: object) -> None:
    shuffled = [*keys, *keys[:3]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_keys(shuffled, FRACTIONS) == split_keys(keys, FRACTIONS)


@steady
@given(st.sets(st.text(max_size=4), max_size=20), st.sets(st.text(max_size=4), max_size=20))
def test_new_rows_move_no_old_ones(old: set[str], new: set[str]) -> None:
    before, after = split_keys(old, FRACTIONS), split_keys(old | new, FRACTIONS)
    assert all(after[key] is part for key, part in before.items())


def test_fractions_are_met() -> None:
    parts = list(split_keys(KEYS, FRACTIONS).values())
    for split, share in ((Split.VALIDATION, 0.2), (Split.TEST, 0.3), (Split.TRAIN, 0.5)):
        spread = (share * (1 - share) / len(KEYS)) ** 0.5
        assert abs(parts.count(split) / len(KEYS) - share) < 4 * spread


def test_counts_are_exact_whatever_the_order() -> None:
    config = SplitConfig(validation_count=129, test_count=40)
    parts = split_keys(KEYS, config)
    assert split_keys(reversed(KEYS), config) == parts
    assert [list(parts.values()).count(split) for split in Split] == [2000 - 169, 129, 40]


def test_the_seed_draws_another_split() -> None:
    assert split_keys(KEYS, FRACTIONS) != split_keys(KEYS, SplitConfig(validation=0.2, test=0.3, seed=1))


def test_counts_that_leave_nothing_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"test_count=2 and validation_count=3 of 5 leaves none"):
        split_keys("abcde", SplitConfig(test_count=2, validation_count=3))


@pytest.mark.parametrize("settings_", [{"validation": 0.5, "test": 0.5}, {"validation": 0.1, "test_count": 3}])
def test_settings_that_contradict_themselves_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SplitConfig.model_validate(settings_)
