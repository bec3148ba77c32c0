"""The eight skills and their views."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.tools.skillset import load_skills, skill_view

SHORT = {
    "quantity_counting": "a number word and in a row",
    "spatial_layout": "at the left side or at the right side for each",
    "attribute_binding": "one clause for each thing",
    "text_rendering": "the text in quotes at the bottom",
    "aesthetic_drawing": "mood light from above",
    "creative_drawing": "medium over every part",
    "anatomy_body_coherence": "legs joined under the body",
    "physical_material_consistency": "material with a bright edge",
}


def test_there_are_the_eight_skills() -> None:
    assert set(load_skills()) == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_each_skill_has_its_sections(name: str) -> None:
    markdown = load_skills()[name]
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# ")
    assert headings[1:] == ["## When to use", "## Instructions", "## In short"]
    assert skill_view(markdown, "short") == SHORT[name]
    assert 100 < len(skill_view(markdown, "instructions").split()) < 300
    assert SHORT[name] not in skill_view(markdown, "instructions").splitlines()[-1]
    assert skill_view(markdown, "whole") == markdown.strip()


def test_a_foreign_skill_without_headings_is_shown_whole() -> None:
    assert skill_view("just advice\n", "instructions") == "just advice"
    assert skill_view("# T\n## Instructions\na\n## More\nb\n", "instructions") == "a\n## More\nb"


def test_a_foreign_skill_without_short_form_says_so() -> None:
    with pytest.raises(ValueError, match="In short"):
        skill_view("just advice", "short")


def test_a_folder_replaces_the_skills(tmp_path: Path) -> None:
    (tmp_path / "own.md").write_text("own")
    assert load_skills(tmp_path) == {"own": "own"}


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_skills(tmp_path)
