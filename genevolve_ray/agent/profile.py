"""Protocol profiles: the limits of an episode and the exact wording around it.

A checkpoint trained under one profile performs worse under another, so a profile has a name that every output records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.agent import wire
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormat, Experience
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation, SearchObservation
from genevolve_ray.records.texts import load_text
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.skillset import SkillMode, skill_view

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
TOOLS_MARK = "{{tools}}"
REFERENCES_MARK = "{{max_references}}"
_TOOL_ORDER = ("search", "image_search", "query_knowledge")
TextField = Literal["title", "url", "snippet"]
ImageField = Literal["title", "url", "local_path", "page_url"]


class Messages(Config):
    """Hold the runtime's messages to the policy; fields in braces are filled in."""

    format_error: str = (
        "Format error: {detail}. Nothing was carried out. Think inside <think></think>, then write exactly one "
        "<tool_call>{{...}}</tool_call> or one <answer>{{...}}</answer>, and nothing after it."
    )
    too_long: str = (
        "Too long: the turn was cut off after {limit} tokens and nothing was carried out. "
        "Think briefly and give one action."
    )
    bad_arguments: str = "Bad arguments for {name}: {detail}"
    unknown_tool: str = "There is no tool named {name}. The tools are: {names}."
    tool_limit: str = "Not carried out: all {limit} tool calls are used. Give the <answer> from what you have."
    final_step: str = "Final step: tools are closed now. Reply with the <answer> and nothing else."


SHORT_MESSAGES = Messages(
    format_error="format error",
    too_long="too long",
    bad_arguments="bad arguments",
    unknown_tool="unknown tool",
    tool_limit="no calls left",
    final_step="final step",
)


class ProtocolProfile(Config):
    """Define one protocol of an episode. Token limits are in tokens of the policy's tokenizer.

    `max_response_tokens` counts everything after the prompt, observations included. `prompt` names the system prompt:
    one of the texts in `agent/prompts`, a file, or an importable attribute `module:name`. In that text a line
    `{{tools}}` is the place of the tool definitions and `{{max_references}}` that of the number.
    """

    name: str
    max_turns: int = Field(default=11, ge=2)
    max_tool_calls: int = Field(default=10, ge=1)
    max_prompt_tokens: int = Field(default=6144, ge=1)
    max_response_tokens: int = Field(default=30000, ge=1)
    max_turn_tokens: int = Field(default=4096, ge=1)
    min_image_searches: int = Field(default=1, ge=0)
    max_references: int = Field(default=2, ge=1, le=5)
    append_date: bool = False
    prompt: str = "full"
    tool_style: Literal["schemas", "names"] = "schemas"
    guide_style: Literal["sections", "lines"] = "sections"
    skill_text: SkillMode = "whole"
    text_fields: tuple[TextField, ...] = Field(default=("title", "url", "snippet"), min_length=1)
    image_fields: tuple[ImageField, ...] = Field(default=("title", "url", "local_path", "page_url"), min_length=1)
    max_field_chars: int = Field(default=2000, ge=16)
    """Longest foreign text shown in one line of an observation."""
    messages: Messages = Messages()

    @model_validator(mode="after")
    def _limits(self) -> ProtocolProfile:
        if self.max_turn_tokens > self.max_response_tokens:
            raise ValueError(
                f"max_turn_tokens={self.max_turn_tokens} exceeds max_response_tokens={self.max_response_tokens}"
            )
        if self.min_image_searches > self.max_tool_calls:
            raise ValueError(
                f"min_image_searches={self.min_image_searches} exceeds max_tool_calls={self.max_tool_calls}"
            )
        return self


PROFILES = {
    profile.name: profile
    for profile in (
        ProtocolProfile(name="release"),
        ProtocolProfile(name="paper-eval", max_references=5, append_date=True, skill_text="instructions"),
        ProtocolProfile(
            name="atlas",
            max_turns=9,
            max_tool_calls=8,
            max_prompt_tokens=512,
            max_response_tokens=1200,
            max_turn_tokens=160,
            prompt="atlas",
            tool_style="names",
            guide_style="lines",
            skill_text="short",
            text_fields=("snippet",),
            image_fields=("title",),
            messages=SHORT_MESSAGES,
        ),
    )
}
"""The named profiles."""


def system_prompt(
    profile: ProtocolProfile, tools: Mapping[str, Tool], experience: Experience | None = None, date: str = ""
) -> str:
    """Return the system prompt.

    Experience precedes the tool definitions as whole lines of its own, so that the tokens after it are the same with
    and without it. `date` is required, and used, only where the profile appends it.

    Raises:
        ValueError: when the profile appends a date and none is given, or the prompt text cannot be found.
    """
    before, mark, after = _frame(profile)
    guide = guide_text(profile, experience) if experience is not None else ""
    text = before + guide + (_definitions(profile, tools) if mark else "") + after
    if not profile.append_date:
        return text
    if not date:
        raise ValueError(f"profile {profile.name!r} appends the date to the system prompt: pass it explicitly")
    return f"{text}Today's date: {date}\n"


def guide_place(profile: ProtocolProfile) -> str:
    """Return the part of the system prompt that precedes a guide. Raises ValueError as `load_prompt` does."""
    return _frame(profile)[0]


def _frame(profile: ProtocolProfile) -> tuple[str, bool, str]:
    """Return the text before a guide, whether tool definitions must follow it, and the text after them."""
    text = load_prompt(profile.prompt).replace(REFERENCES_MARK, str(profile.max_references))
    before, mark, after = text.partition(f"{TOOLS_MARK}\n")
    if mark:
        return before, True, after
    # An external prompt already contains its tool definitions.
    at = text.find("<tools>")
    line = text.rfind("\n", 0, at) + 1 if at >= 0 else len(text)
    return text[:line], False, text[line:]


def prompt_messages(
    prompt: str,
    profile: ProtocolProfile,
    tools: Mapping[str, Tool],
    experience: Experience | None = None,
    date: str = "",
) -> list[dict[str, str]]:
    """Return the messages before the first policy turn: the system prompt and the user's request."""
    return [
        {"role": "system", "content": system_prompt(profile, tools, experience, date)},
        {"role": "user", "content": wire.neutralise(prompt)},
    ]


@lru_cache(maxsize=32)
def load_prompt(source: str) -> str:
    """Return the system prompt text that `ProtocolProfile.prompt` names; it always ends in a line break.

    Raises:
        ValueError: naming the source, when it is neither a text of the project, a file, nor `module:attribute`.
    """
    return load_text(source, PROMPTS_FOLDER, "system prompt")


def _definitions(profile: ProtocolProfile, tools: Mapping[str, Tool]) -> str:
    """Return the tool definitions as whole lines, in the protocol's order instead of the mapping's."""
    known = [name for name in _TOOL_ORDER if name in tools]
    names = known + sorted(set(tools) - set(known))
    if profile.tool_style == "names":
        return f"Tools: {', '.join(names)}\n"
    schemas = [
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": tools[name].description,
                    "parameters": tools[name].parameters,
                },
            },
            ensure_ascii=False,
        )
        for name in names
    ]
    return "\n".join(["<tools>", *schemas, "</tools>", ""])


def guide_text(profile: ProtocolProfile, experience: Experience) -> str:
    """Return a bundle as the lines of a guide, "" when all slots are empty. It begins with one of `guide_heads`."""
    slots = {
        name: [wire.one_line(bullet, profile.max_field_chars) for bullet in bullets]
        for name, bullets in experience.guidance.items()
    }
    if not slots:
        return ""
    if profile.guide_style == "lines":
        lines = "".join(f"- {'; '.join(bullets)}\n" for bullets in slots.values())
    else:
        lines = "".join(
            f"## {name.replace('_', ' ').capitalize()}\n" + "".join(f"- {bullet}\n" for bullet in bullets)
            for name, bullets in slots.items()
        )
    return _guide_head(profile, experience.layout) + lines


def guide_heads(profile: ProtocolProfile) -> list[str]:
    """Return the first lines that a guide may have; one of them shows that a context contains experience."""
    return list(dict.fromkeys(_guide_head(profile, layout) for layout in BUNDLE_FORMATS.values()))


def _guide_head(profile: ProtocolProfile, layout: BundleFormat) -> str:
    if profile.guide_style == "lines":
        return "Guide:\n"
    return f"# {layout.title or 'Guide from earlier requests of this kind'}\n"


def observation_text(
    observation: Observation, profile: ProtocolProfile, hits: Sequence[tuple[str, ImageHit]] = ()
) -> str:
    """Return an observation as the policy reads it, without the <tool_response> around it.

    `hits` are the images of an image search under their ids in this trajectory.
    """
    if isinstance(observation, SearchObservation):
        return wire.text_block(observation.results, profile.text_fields, profile.max_field_chars)
    if isinstance(observation, ImageSearchObservation):
        if observation.error:
            return wire.image_error(observation.query, observation.error, profile.max_field_chars)
        return wire.image_block(observation.query, hits, profile.image_fields, profile.max_field_chars)
    return wire.neutralise(skill_view(observation.markdown, profile.skill_text))
