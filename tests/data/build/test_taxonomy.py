"""Taxonomies: those of the package, the meaning of `only`, and errors that name the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from taxonomy_fakes import plain, small

from genevolve_ray.data.build.taxonomy import AXES, FOLDER, TaxonomyError, load_taxonomy


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_the_taxonomies_of_the_package_are_valid(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.name == name and taxonomy.source
    assert all(value.description or value.label or value.name for axis in AXES for value in taxonomy.axis(axis).values)


def test_the_pool_of_genevolve_has_the_published_numbers() -> None:
    taxonomy = load_taxonomy("genevolve")
    assert taxonomy.rows == 19_990
    assert {v.name: v.count for v in taxonomy.eval_type.values} == {
        "Knowledge-Anchored": 11_999,
        "Quality-Anchored": 7_991,
    }
    assert {v.name: v.count for v in taxonomy.difficulty.values} == {"easy": 3, "medium": 6_654, "hard": 13_333}
    assert {v.name: v.count for v in taxonomy.requirement.values} == {
        **dict.fromkeys(("material", "creative", "text", "anatomy"), 3_000),
        **{"attribute": 2_999, "counting": 2_995, "spatial": 1_000, "aesthetics": 996},
    }
    assert sum(v.count or 0 for v in taxonomy.gap.values if v.text_search) == 13_972


def test_a_value_of_the_axis_above_stands_for_all_that_belong_to_it() -> None:
    family = {"given": "eval_type", "values": [{"name": "k", "only": ["Knowledge-Anchored"]}, {"name": "both"}]}
    gap = {"given": "family", "values": [{"name": "fact", "only": ["Knowledge-Anchored"]}, {"name": "any"}]}
    taxonomy = small(family=family, gap=gap)
    assert taxonomy.allowed("family") == [[True, True], [False, True]]
    assert taxonomy.allowed("gap") == [[True, True], [True, True]]  # "both" may be Knowledge-Anchored.


def axis(*names: str, given: str = "", **first: Any) -> dict[str, Any]:
    values: list[dict[str, Any]] = [{"name": name} for name in names]
    values[0] |= first
    return {"values": values} | ({"given": given} if given else {})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"gap": axis("a", "a")}, "gap: Value error, value 'a' is given twice"),
        ({"gap": axis("a", "b", count=3)}, "every value of an axis has a count, or none has: 'b' has none"),
        ({"gap": axis("a", share=0.4)}, "the shares of a sum to 0.4, not to 1"),
        ({"gap": axis("a", share=1, count=1)}, "value 'a' has a count and a share"),
        ({"gap": axis("a", count=-1)}, "gap.values.0.count: Input should be greater than or equal to 0"),
        ({"gap": axis("a b")}, "gap.values.0.name: String should match"),
        ({"gap": axis("a", only=["family-0"])}, "value 'a' has `only`, but the axis names no `given`"),
        ({"gap": axis("a", given="family", only=[])}, "gap.values.0.only: Tuple should have at least 1 item"),
        ({"gap": axis("a", given="anchor")}, "gap: given 'anchor' is none of the axes before it: eval_type, family"),
        (
            {"gap": axis("a", given="family", only=["famly-0"])},
            "gap 'a': only names 'famly-0', which is no family, did you mean family-0?",
        ),
        ({"gap": axis("a", given="family", only=["family-0"])}, "family 'family-1' allows no gap"),
        ({"gap": axis("a", count=2), "anchor": axis("b", count=3)}, "different numbers of rows: gap 2, anchor 3"),
        ({"gap": axis("a", count=0)}, "the counts of gap are all 0"),
        ({"eval_type": axis("Other")}, "eval_type 'Other' is unknown: Knowledge-Anchored, Quality-Anchored"),
        (
            {"difficulty": axis("hard", secondary=2)},
            "difficulty 'hard' has 2 secondary requirements, but 'requirement-0' allows 1",
        ),
        ({"requirement": axis("a", "b", beside=["c"])}, "requirement 'a': beside names 'c'"),
        ({"colour": axis("a")}, "colour: Extra inputs are not permitted"),
    ],
)
def test_an_error_names_the_value(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaxonomyError, match="^small: ") as caught:
        small(**axes)
    assert message in str(caught.value)


def test_a_taxonomy_is_a_name_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(str(plain(name="mine")), encoding="utf-8")  # A flow mapping of YAML.
    assert load_taxonomy(path).name == "mine"
    with pytest.raises(TaxonomyError, match="'genevolv' is neither a file nor one of .*genevolve"):
        load_taxonomy("genevolv")
