"""The card: the head that hubs read, what it says of a data set, and texts that are no markup."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from published_samples import FACTS

from genevolve_ray.data.build.card import DatasetFacts, card_text, escaped

COUNTED: dict[str, Any] = {
    "package": "1.0",
    "output_hash": "ab" * 32,
    "parts": {"sft/train": {"rows": 8800, "pictures": 20000}, "sft/validation": {"rows": 200, "pictures": 9},
              "bench/test": {"rows": 594, "pictures": 594}},
    "left_out": {"rejected": {}},
}  # fmt: skip
HOSTILE = (
    "x | y\n# Head\n<script>alert(1)</script> [a](http://evil.example) ![](//evil.example/p.png) `c` www.evil.example"
)


def head(text: str) -> dict[str, Any]:
    """Return the head of a card."""
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_head_names_license_size_and_the_file_of_every_split() -> None:
    found = head(card_text(FACTS, COUNTED))
    assert (found["pretty_name"], found["license"]) == ("Mills", "cc-by-4.0")
    assert found["size_categories"] == ["1K<n<10K"]
    assert found["configs"] == [
        {"config_name": "sft", "data_files": [
            {"split": "train", "path": "sft/train.parquet"}, {"split": "validation", "path": "sft/validation.parquet"}]},
        {"config_name": "bench", "data_files": [{"split": "test", "path": "bench/test.parquet"}]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (2_000_000, "n>1M")]
)
def test_the_size_class_is_the_one_of_the_rows(rows: int, size: str) -> None:
    counted = COUNTED | {"parts": {"a/b": {"rows": rows, "pictures": 0}}}
    assert head(card_text(FACTS, counted))["size_categories"] == [size]


def test_the_card_states_yields_costs_licenses_limits_and_leaks() -> None:
    text = card_text(FACTS, COUNTED)
    for line in (
        "| sft/train | 8,800 | 20,000 |",
        "| audit | 40 | 10 | 25.0% |",
        r"| city\_street\_scene | 3 |",
        "| judge | 2.25 |",
        "| all | 3.75 |",
        r"| Open images | CC BY 2.0 | https:&#47;&#47;example.org/open |",
        "- Mills alone.",
        "1 clusters of 4 rows, the largest of 4",
        "None were found.",
    ):
        assert line in text


def test_what_is_not_known_is_not_claimed() -> None:
    text = card_text(DatasetFacts("Plain"), COUNTED)
    assert "The parts were not compared." in text and "Of this data set: none is stated." in text
    assert "license" not in head(text)
    assert not [title for title in ("## Costs", "## Yields", "## Known limits", "## Splits") if title in text]


def test_leaks_and_rows_that_were_left_out_are_stated() -> None:
    facts = replace(FACTS, leaks={"clean": False, "embedder": "e", "text_cosine": 0.9, "counts": {"entity": 3}})
    text = card_text(facts, COUNTED | {"left_out": {"rejected": {"missing_image": 2}}})
    assert "| entity | 3 |" in text and "None were found" not in text
    assert r"| missing\_image | 2 |" in text


def test_hostile_texts_are_neither_markup_nor_links() -> None:
    facts = DatasetFacts(
        HOSTILE, HOSTILE, marginals={HOSTILE: {HOSTILE: 1}}, limits=(HOSTILE,), provenance={HOSTILE: HOSTILE},
        leaks={"embedder": HOSTILE, "counts": {HOSTILE: 1}}, yields={HOSTILE: {"in": 1, "out": 1}},
    )  # fmt: skip
    text = card_text(facts, COUNTED)
    assert head(text)["pretty_name"] == HOSTILE  # YAML holds it as a value.
    body = text.split("---\n", 2)[2]
    assert "<script" not in body and "](http" not in body and "![]" not in body
    assert "://evil" not in body and "www.evil" not in body
    assert not [line for line in body.splitlines() if line.startswith("# ") and "Head" in line and "x" not in line]
    rows = [line for line in body.splitlines() if line.startswith("| x")]
    assert rows and all(line.replace(r"\|", "").count("|") <= 5 for line in rows)


def test_long_and_broken_texts_are_cut_and_replaced() -> None:
    assert escaped("a" * 500) == "a" * 300 + "…"
    assert escaped("\ud800x") == "?x"
