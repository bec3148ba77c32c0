"""Splits that depend on the content of a row, never on its position."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pydantic import Field, model_validator

from genevolve_ray.records.base import Config
from genevolve_ray.records.seeds import derive_seed

_SEEDS = 1 << 63


class Split(StrEnum):
    """Name the purpose of a row."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class SplitConfig(Config):
    """Configure the sizes of the parts; the rest is for training.

    A fraction decides each row independently, so that new rows never move old ones. A count takes exactly so many rows
    (for example the published 129 for validation), those with the smallest hashes. Each part takes one or the other.
    """

    validation: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the requests for validation."""
    test: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the requests that are held out."""
    validation_count: int | None = Field(default=None, ge=0)
    """Number of requests for validation, instead of a fraction."""
    test_count: int | None = Field(default=None, ge=0)
    """Number of held-out requests, instead of a fraction."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash that decides a request's part."""

    @model_validator(mode="after")
    def _parts(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"no rows are left for training: validation={self.validation}, test={self.test}")
        counts = self.validation_count is not None or self.test_count is not None
        if counts and (self.validation or self.test):
            raise ValueError("give fractions (validation, test) or counts (validation_count, test_count), not both")
        return self

    def asks_for(self, split: Split) -> bool:
        """Return whether the config requests a part."""
        parts = {
            Split.VALIDATION: self.validation or self.validation_count,
            Split.TEST: self.test or self.test_count,
            Split.TRAIN: True,
        }
        return bool(parts[split])


def rank(key: str, seed: int = 0) -> int:
    """Return a key's position in [0, 2^63): uniform, and independent of machine and of the other keys."""
    return derive_seed(seed, "split", key)


def split_keys(keys: Iterable[str], config: SplitConfig) -> dict[str, Split]:
    """Return the part of each key; rows that share a key stay together.

    Raises:
        ValueError: when counts require more keys than there are, or leave none for training.
    """
    ordered = sorted(set(keys), key=lambda key: (rank(key, config.seed), key))
    test, validation = config.test_count, config.validation_count
    if test is not None or validation is not None:
        first, second = test or 0, (test or 0) + (validation or 0)
        if second and second >= len(ordered):
            raise ValueError(
                f"test_count={first} and validation_count={second - first} of {len(ordered)} leaves none for training"
            )
        parts = [Split.TEST] * first + [Split.VALIDATION] * (second - first)
        parts += [Split.TRAIN] * (len(ordered) - second)
        return dict(zip(ordered, parts, strict=True))
    return {key: _by_fraction(rank(key, config.seed) / _SEEDS, config) for key in ordered}


def _by_fraction(place: float, config: SplitConfig) -> Split:
    if place < config.test:
        return Split.TEST
    return Split.VALIDATION if place < config.test + config.validation else Split.TRAIN
