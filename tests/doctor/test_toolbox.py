"""A run whose tools cannot serve its profile is refused before the start."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from genevolve_ray.atlas.sources import AtlasTools
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor import parts
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.errors import UserFault


class Lacking:
    """Offer the atlas tools without those of `LACKING`."""

    Config = AtlasTools.Config
    lacking: tuple[str, ...] = ()

    def __init__(self, config: Any, images: Any) -> None:
        tools = AtlasTools(config, images).tools
        self.tools = {name: tool for name, tool in tools.items() if name not in self.lacking}


def run(monkeypatch: pytest.MonkeyPatch, *lacking: str, settings: tuple[str, ...] = ()) -> RunConfig:
    kind = type("Tools", (Lacking,), {"lacking": lacking})
    monkeypatch.setitem(sys.modules, "lacking_tools", SimpleNamespace(Tools=kind))  # type: ignore[arg-type]
    return load_config("atlas", ["tools.type=lacking_tools:Tools", *settings])


def test_a_profile_that_needs_a_tool_that_is_not_offered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(monkeypatch, "image_search")
    message = r"profile=atlas needs 1 image_search before an answer, but tools=lacking_tools:Tools offers only: \w+"
    with pytest.raises(UserFault, match=message):
        preflight(config)
    [found] = parts.tools(config)
    assert found.status is Status.PROBLEM
    assert "image_search" in found.detail


def test_a_tool_that_only_the_prompt_names_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(monkeypatch, "query_knowledge", settings=("profile=release",))
    [found] = parts.tools(config)
    assert found.status is Status.NOTE
    assert found.detail == (
        "the system prompt of profile release names a tool that lacking_tools:Tools does not offer: query_knowledge"
    )


@pytest.mark.parametrize("profile", ["atlas", "release", "paper-eval"])
def test_a_full_toolbox_has_no_finding(profile: str) -> None:
    assert parts.tools(load_config("atlas", [f"profile={profile}"])) == []


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserFault, match=r"profile=release opens with \d+ tokens, but the engine holds 2048"):
        preflight(load_config("atlas", ["profile=release", "engine.max_model_len=2048"]))
    with pytest.raises(UserFault, match=r"engine holds 16: set engine.max_model_len above \d+"):
        preflight(load_config("atlas", ["engine.max_model_len=16"]))
    preflight(load_config("atlas"))
