"""The system prompt that a policy was trained on, beside that of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.agent.trained_prompt import (
    PROMPT_FILE,
    keep_trained_prompt,
    prompt_difference,
    prompt_warning,
    trained_prompt,
)


@pytest.mark.parametrize("name", PROFILES)
def test_the_prompt_of_a_profile_is_its_own(name: str, tools: dict[str, Any]) -> None:
    dated = PROFILES[name].append_date
    trained = system_prompt(PROFILES[name], tools, date="2026-05-10" if dated else "")
    assert prompt_difference(trained, PROFILES[name]) == ""
    assert prompt_difference(trained.rstrip(), PROFILES[name]) == ""


def test_the_first_line_that_differs_is_shown() -> None:
    own = read_profile({"name": "own", "prompt": "You draw.\nSearch twice.\n"})
    assert prompt_difference("You draw.\nSearch twice. 2026-05-10", own) == ""
    assert prompt_difference("You draw.\nSearch once.\nEnd.", own) == (
        "line 2 is 'Search once.' in the rows and 'Search twice.' in the profile (3 and 2 lines)"
    )


def test_an_external_prompt_is_compared_with_its_tools() -> None:
    own = read_profile({"name": "own", "prompt": 'Draw.\n<tools>\n{"name": "search"}\n</tools>\n'})
    assert "line 3" in prompt_difference('Draw.\n<tools>\n{"name": "look"}\n</tools>\n', own)


def test_a_folder_keeps_the_most_frequent_prompt_for_a_profile(tmp_path: Path) -> None:
    keep_trained_prompt(tmp_path, {"rare\n": 1, "Often.\nAnd exact": 5})
    assert trained_prompt(tmp_path) == "Often.\nAnd exact"
    warning = prompt_warning(tmp_path, PROFILES["release"])
    assert "another system prompt than that of profile 'release': line 1 is 'Often.'" in warning
    assert str(tmp_path / PROMPT_FILE) in warning
    assert prompt_warning(tmp_path, read_profile({"prompt": str(tmp_path / PROMPT_FILE)})) == ""
    keep_trained_prompt(tmp_path, {})
    assert trained_prompt(tmp_path) is None and prompt_warning(tmp_path, PROFILES["release"]) == ""
