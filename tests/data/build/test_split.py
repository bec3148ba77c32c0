"""Splits: parts have their counts, no cluster is divided, and order and growth of the rows change little."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from rows_to_compare import family, lonely, mark, row, words

from genevolve_ray.data.build.fingerprints import RowMark, RowVectors
from genevolve_ray.data.build.overlaps import OverlapKind
from genevolve_ray.data.build.split import (
    PAPER_PARTS,
    PartsConfig,
    PartSize,
    PlacementReason,
    SplitResult,
    split_rows,
)


def counts(**parts: int) -> PartsConfig:
    return PartsConfig(parts=tuple(PartSize(name=name, count=count) for name, count in parts.items()))


def shares(**parts: float) -> PartsConfig:
    return PartsConfig(parts=tuple(PartSize(name=name, share=share) for name, share in parts.items()))


def sizes(result: SplitResult) -> dict[str, int]:
    return {name: part["rows"] for name, part in result.summary()["parts"].items()}


def parts_of(result: SplitResult, rows: Sequence[RowMark]) -> set[str | None]:
    part = result.part_of()
    return {part[one.id] for one in rows}


def test_single_rows_give_exact_counts_and_the_surplus_is_named() -> None:
    result = split_rows(lonely(40), counts(train=25, test=10))
    assert sizes(result) == {"train": 25, "test": 10}
    surplus = [one for one in result.placements if one.part is None]
    assert len(surplus) == 5 and {one.reason for one in surplus} == {PlacementReason.SURPLUS}
    assert {one.reason for one in result.placements if one.part} == {None}


def test_clusters_stay_whole_and_single_rows_fill_the_counts_exactly() -> None:
    families = [family(f"f{number}", 7) for number in range(6)]
    rows = [*lonely(30), *(one for its in families for one in its)]
    result = split_rows(rows, counts(train=50, validation=10, test=12))
    assert sizes(result) == {"train": 50, "validation": 10, "test": 12}
    assert all(len(parts_of(result, its)) == 1 for its in families)


def test_shares_of_the_whole_drop_no_row() -> None:
    rows = [*lonely(10), *(one for number in range(30) for one in family(f"f{number}", 3))]
    result = split_rows(rows, shares(train=0.8, test=0.2))
    assert sizes(result) == {"train": 80, "test": 20}
    few = split_rows([one for number in range(10) for one in family(f"f{number}", 3)], shares(train=0.75, test=0.25))
    assert sizes(few) == {"train": 24, "test": 6}  # 7.5 rows rounded to 8, and two clusters of three fit.


def test_a_part_without_a_size_takes_the_rest() -> None:
    config = PartsConfig(parts=(PartSize(name="train"), PartSize(name="test", count=9)))
    assert sizes(split_rows(lonely(30), config)) == {"train": 21, "test": 9}


def test_clusters_are_exchanged_where_the_first_ones_leave_room() -> None:
    """Any two of these three clusters that are taken greedily may leave room; four and five fill nine."""
    rows = [one for size in (3, 4, 5) for one in family(f"of-{size}", size)]
    for seed in range(6):
        config = PartsConfig(parts=(PartSize(name="test", count=9),), seed=seed)
        assert sizes(split_rows(rows, config)) == {"test": 9}


def test_a_cluster_that_is_larger_than_every_part_is_dropped() -> None:
    result = split_rows([*lonely(20), *family("large", 11)], counts(train=10, test=5))
    dropped = [one for one in result.placements if one.id.startswith("large")]
    assert {(one.part, one.reason) for one in dropped} == {(None, PlacementReason.TOO_LARGE)}
    assert sizes(result) == {"train": 10, "test": 5}


def overlapping() -> dict[OverlapKind, tuple[RowMark, RowMark]]:
    text = words("near", 30)
    return {
        OverlapKind.SAME_TEXT: (row("a1", "Draw  a Castle"), row("a2", "draw a castle")),
        OverlapKind.ENTITY: (row("b1", entities=("Café Zola",)), row("b2", entities=("x", "café  zola"))),
        OverlapKind.NEAR_TEXT: (row("c1", text), row("c2", f"Please, {text}!")),
        OverlapKind.PICTURE: (row("d1", pictures=(mark("p", 0),)), row("d2", pictures=(mark("q", 0b111111),))),
    }


@pytest.mark.parametrize("kind", overlapping())
def test_rows_that_overlap_go_together_and_the_reason_is_named(kind: OverlapKind) -> None:
    one, other = overlapping()[kind]
    for seed in range(8):
        config = PartsConfig(parts=(PartSize(name="a", count=10), PartSize(name="b", count=10)), seed=seed)
        result = split_rows([*lonely(18), one, other], config)
        assert len(parts_of(result, [one, other])) == 1
        placed = {placement.id: placement for placement in result.placements}[one.id]
        assert (placed.kind, placed.partner) == (kind, other.id)
        assert placed.reason in (None, PlacementReason.CLUSTER)


def test_near_embeddings_of_texts_and_pictures_connect_rows() -> None:
    rows = [row(f"r{number}", pictures=(mark(f"p{number}", derived),)) for number, derived in enumerate(FAR)]
    texts, pictures = np.eye(4, 8, dtype=np.float32), np.eye(4, 8, dtype=np.float32)
    texts[1] = texts[0]
    pictures[3] = pictures[1]
    result = split_rows(rows, counts(a=4), RowVectors(texts, pictures), embedder="model")
    assert result.clusters == (3,)
    kinds = {placement.id: placement.kind for placement in result.placements}
    assert kinds == {
        "r0": OverlapKind.PARAPHRASE,
        "r1": OverlapKind.PARAPHRASE,
        "r2": None,
        "r3": OverlapKind.NEAR_PICTURE,
    }


FAR = (0, (1 << 32) - 1, ((1 << 32) - 1) << 32, (1 << 64) - 1)


def test_clusters_join_by_different_reasons() -> None:
    chain = [
        row("one", "Draw the red mill"),
        row("two", "draw the red mill", entities=("mill",)),
        row("three", entities=("mill",), pictures=(mark("p", 7),)),
        row("four", pictures=(mark("q", 7),)),
    ]
    assert split_rows([*lonely(5), *chain], counts(a=9)).clusters == (4,)


def test_pictures_of_one_row_connect_nothing() -> None:
    twice = row("twice", pictures=(mark("p", 7), mark("p", 7), mark("q", 7)))
    assert split_rows([*lonely(5), twice], counts(a=6)).clusters == ()


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = [*lonely(60), *(one for number in range(8) for one in family(f"f{number}", number + 1))]
    vectors = np.random.default_rng(0).normal(size=(len(rows), 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = counts(train=50, validation=12, test=20)
    first = split_rows(rows, config, RowVectors(vectors))
    order = list(range(len(rows)))
    random.Random(3).shuffle(order)
    again = split_rows([rows[place] for place in order], config, RowVectors(vectors[order]))
    assert first == again


def test_rows_that_are_added_move_few_others() -> None:
    """Every bound between two parts moves by the noise of a hash: at most about the root of the number of rows."""
    rows = [*lonely(1500), *(one for number in range(100) for one in family(f"f{number}", 5))]
    config = shares(train=0.7, validation=0.1, test=0.2)
    before = split_rows(rows, config).part_of()
    after = split_rows([*rows, *lonely(200, start=5000)], config).part_of()
    moved = [name for name, part in before.items() if after[name] != part]
    assert len(moved) < 3 * len(rows) ** 0.5


def test_the_published_sizes_are_the_default() -> None:
    assert {part.name: part.count for part in PAPER_PARTS} == {
        "sft/train": 8800, "sft/validation": 200, "rl/train": 2446, "rl/validation": 129, "bench/test": 594,
    }  # fmt: skip
    assert PartsConfig().parts == PAPER_PARTS


def test_two_rows_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="1 ids are those of several rows, 'row-0'"):
        split_rows([*lonely(3), row("row-0", "other")], counts(a=4))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"name": "a"}, {"name": "b"}], "one part takes the rest, not 2: a, b"),
        ([{"name": "a", "share": 0.6}, {"name": "b", "share": 0.6}], "shares of 1.2"),
        ([{"name": "a", "count": 1}, {"name": "a", "count": 2}], "parts with the same name: a"),
        ([{"name": "a", "count": 1, "share": 0.5}], "both count=1 and share=0.5"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(parts: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PartsConfig.model_validate({"parts": parts})


def test_no_rows_give_empty_parts() -> None:
    assert sizes(split_rows([], counts(a=4))) == {"a": 0}
