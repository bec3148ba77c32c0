"""The tools that a run offers, against those that its profile needs and its system prompt names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from genevolve_ray.agent.profile import prompt_messages, system_prompt
from genevolve_ray.config import RunConfig
from genevolve_ray.engines.checks import context_length
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import PluginFault, build_here
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.tools.protocol import Tool

_NAMED = re.compile(r'`(search)`|\b(image_search|query_knowledge)\b|"name":\s*"([a-z_]+)",\s*"description"')
"""A tool's name in a system prompt: as code, as a word that is no English one, or in a schema."""


_DAY = "2026-01-01"
"""Stands for a date in a prompt that is only measured."""


def offered_tools(config: RunConfig) -> Mapping[str, Tool] | None:
    """Build the toolbox of a run and return its tools by name; None where this process cannot build it.

    Raises:
        PluginFault: naming the error of a toolbox that cannot be built.
    """
    if config.tools.isolated:
        return None
    try:
        toolbox = build_here(config.tools, MemoryImages())
    except PluginFault:
        if config.cluster.address:  # Its nodes may have files that this machine lacks.
            return None
        raise
    found: Mapping[str, Tool] = toolbox.tools
    if (close := getattr(toolbox, "close", None)) is not None:
        close()  # The names and schemas remain.
    return found


def check_tools(config: RunConfig, folder: Path | None = None) -> None:
    """Check that an episode can begin and end: with the tool that the profile demands, and within the context.

    Args:
        config: the run.
        folder: the policy's model folder; None: its context is not checked.

    Raises:
        UserFault: naming the profile and what it lacks.
    """
    tools, profile = offered_tools(config), config.protocol
    if tools is not None and profile.min_image_searches and "image_search" not in tools:
        raise UserFault(
            f"profile={profile.name} needs {profile.min_image_searches} image_search before an answer, but "
            f"tools={config.tools.type} offers only: {', '.join(sorted(tools)) or 'no tool'}"
        )
    if folder is not None:
        _check_opening(config, folder, tools or {})


def _check_opening(config: RunConfig, folder: Path, tools: Mapping[str, Tool]) -> None:
    from genevolve_ray.evolution.inprocess import load_chat

    own = context_length(folder)
    limit = config.engine_for(own).max_model_len
    messages = prompt_messages("x", config.protocol, tools, date=config.date or _DAY)
    opening = len(load_chat(folder, config.date).prompt_ids(messages))
    if limit is not None and opening >= limit:
        remedy = f"set engine.max_model_len above {opening}" if limit != own else "the policy supports no more"
        raise UserFault(
            f"profile={config.protocol.name} opens with {opening} tokens, but the engine holds {limit}: {remedy}, "
            "or use another profile"
        )


def unoffered_tools(config: RunConfig, tools: Mapping[str, Tool]) -> list[str]:
    """Return the tools that the text of the profile's system prompt names, but the toolbox does not offer."""
    text = system_prompt(config.protocol, tools, date=config.date or _DAY)
    words = {name for match in _NAMED.finditer(text) for name in match.groups() if name}
    return sorted(words - set(tools))
