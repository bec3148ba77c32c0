"""Protocol profiles: the limits of an episode and the exact wording around it.

A checkpoint trained under one profile performs worse under another, so a profile has a name that every output records.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.agent import wire
from genevolve_ray.agent.messages import SHORT_MESSAGES, Messages
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormat, Experience
from genevolve_ray.records.texts import IMAGE_MARK, load_text
from genevolve_ray.tools.protocol import STANDARD_TOOLS, Tool
from genevolve_ray.tools.showing import Observations
from genevolve_ray.tools.skillset import SkillMode

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
TOOLS_MARK = "{{tools}}"
ONE_LINE = "text:"
"""Beginning of a system prompt that is itself given, where it has no second line by which it can be told."""
REFERENCES_MARK = "{{max_references}}"
TextField = Literal["title", "url", "snippet"]
ImageField = Literal["title", "url", "local_path", "page_url"]
PUBLISHED_MARK = "/published"
"""End of the recorded name of a profile whose `answers` are read as the published client reads them."""


def filled(text: str, **fields: object) -> str:
    """Return a text with the named fields in braces filled in; other braces stay, as those of JSON."""
    return re.sub(r"\{(\w+)\}", lambda found: str(fields.get(found[1], found[0])), text)


class ProfileSampling(Config):
    """Configure the sampling that a profile proposes."""

    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling: least probability mass that is kept."""


class ProtocolProfile(Config):
    """Define one protocol of an episode. Token limits are in tokens of the policy's tokenizer.

    A profile that `agent.profile_source` has read holds every text itself, so that it needs no file where it is used.
    """

    name: str = Field(min_length=1, max_length=80)
    """Name that outputs record; by default that of the file, or of the profile it extends with a digest."""
    max_turns: int = Field(default=11, ge=2)
    """Turns of the policy."""
    max_tool_calls: int = Field(default=10, ge=1)
    """Tool calls that are carried out."""
    max_prompt_tokens: int = Field(default=6144, ge=1)
    """Tokens of the messages before the first turn."""
    max_response_tokens: int = Field(default=30000, ge=1)
    """Tokens of everything after the prompt, observations included."""
    max_turn_tokens: int = Field(default=4096, ge=1)
    """Tokens of one turn."""
    min_image_searches: int = Field(default=1, ge=0)
    """Image searches without which an answer is invalid; not enforced where `answers` is `published`."""
    max_references: int = Field(default=2, ge=1, le=5)
    """Reference images of an answer."""
    append_date: bool = False
    """Whether the system prompt ends in the date."""
    date_text: str = " {date}"
    """How it ends in the date."""
    prompt: str = "full"
    """System prompt: a text of `agent/prompts` by name, a file, an importable `module:attribute`, or the text itself
    (more than one line, or after `text:`). A line `{{tools}}` in it is the place of the tool definitions and
    `{{max_references}}` that of the number."""
    tool_style: Literal["schemas", "names"] = "schemas"
    """How tools are defined at `{{tools}}`."""
    guide_style: Literal["sections", "lines"] = "sections"
    """How experience is laid out."""
    skills: str | dict[str, str] | None = None
    """Folder of the skills (*.md), or their texts by name, which replace those of the tools; null keeps these."""
    skill_header: str = ""
    """Text before that of a skill; field `name`."""
    skill_text: SkillMode = "whole"
    """Part of a skill that is shown: `file` (unchanged), `whole` (stripped), `instructions` or `short`."""
    text_fields: tuple[TextField, ...] = Field(default=("title", "url", "snippet"), min_length=1)
    """Lines of a text result."""
    image_fields: tuple[ImageField, ...] = Field(default=("title", "url", "local_path", "page_url"), min_length=1)
    """Lines of an image result."""
    empty_fields: Literal["shown", "left_out"] = "shown"
    """Whether a line without a value is shown; that of the title always is."""
    local_path: str = "images/{img_id}.{ext}"
    """Path shown for an image; fields `img_id`, `ext`, `sha256`, `url_sha1` (24 digits), `url_suffix` (as .jpg)."""
    max_field_chars: int = Field(default=2000, ge=16)
    """Longest foreign text shown in one line of an observation."""
    max_text_chars: int | None = Field(default=None, ge=16)
    """Longest text of a tool without a form of its own, all lines together; null: as many characters as
    `max_response_tokens`."""
    final_step_as: Literal["note", "turn"] = "note"
    """Whether `messages.final_step` ends the observation before it, or is a user turn of its own."""
    answers: Literal["strict", "published"] = "strict"
    """`strict`: one action and nothing else in a turn, exact keys and arguments; an answer is final, valid or not.
    `published`: read as by the published client: surplus text and keys are ignored, arguments coerced, references sorted
    and cut, and a broken answer is retried."""
    calls_per_turn: Literal["one", "first"] | None = None
    """`one`: a turn with several actions, or text around one, is a format error; `first`: its first answer counts, else
    its first call. Null follows `answers`: `one` where strict, `first` where published."""
    observations: Observations = Observations()
    """Pictures that the policy sees."""
    sampling: ProfileSampling | None = None
    """Sampling of `rollout` and `bench` where `inference` sets none."""
    messages: Messages = Messages()
    """The runtime's messages, each a text, an importable `module:attribute`, or a .txt or .md file."""

    @property
    def most_images(self) -> int:
        """The most pictures that the policy can see in one episode; 0 where it sees none."""
        searches = min(self.max_tool_calls, self.max_turns - 1)
        return searches * self.observations.per_search if self.observations.images else 0

    @property
    def label(self) -> str:
        """The name that outputs record; it also tells how answers are read."""
        return f"{self.name}{PUBLISHED_MARK}" if self.answers == "published" else self.name

    @property
    def digest(self) -> str:
        """Eight digits that identify the content."""
        # A profile keeps the digest that it had before there was a key, where it does not set it.
        blind = {"observations"} if self.observations == Observations() else set()
        blind |= {"max_text_chars"} if self.max_text_chars is None else set()
        content = self.model_dump_json(exclude={"name", *blind})
        return hashlib.sha256(content.encode(errors="replace")).hexdigest()[:8]

    @property
    def text_limit(self) -> int:
        """The most characters of a text of any tool."""
        return self.max_text_chars or self.max_response_tokens

    @property
    def first_action(self) -> bool:
        """True where the first action of a turn is carried out, and the text around it ignored."""
        return (self.calls_per_turn or ("first" if self.answers == "published" else "one")) == "first"

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
        texts = self.messages.model_dump().items() if self.observations.images else ()
        if bad := [name for name, text in texts if IMAGE_MARK in text]:
            raise ValueError(f"messages.{bad[0]} holds {IMAGE_MARK}, which stands for a picture of a search")
        return self


_RELEASE = ProtocolProfile(
    name="release",
    skill_header="## Skill Guidance\n\n=== Skill: {name} ===\n",
    skill_text="file",
    empty_fields="left_out",
    # The released client's default folder, as the policy reads it; nothing is written there.
    local_path="/tmp/genevolve_images/{url_sha1}{url_suffix}",  # noqa: S108
    final_step_as="turn",
    sampling=ProfileSampling(),
    messages=Messages(
        bad_arguments="[tool error] {name}: {detail}",
        unknown_tool="Unknown tool: {name}",
        unknown_skill="Unknown skill '{name}'. Available skills: {names}",
    ),
)

_ATLAS = ProtocolProfile(
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
)

_SMALL = ProtocolProfile(
    name="small",
    max_turns=5,
    max_tool_calls=4,
    max_prompt_tokens=512,
    max_response_tokens=768,
    max_turn_tokens=128,
    max_references=1,
    prompt="small",
    tool_style="names",
    guide_style="lines",
    skill_text="short",
    text_fields=("title", "snippet"),
    image_fields=("title",),
    max_field_chars=80,
    messages=SHORT_MESSAGES,
)
"""Short texts throughout: on a CPU, tokens are what a run of a language model costs."""

PROFILES = {
    profile.name: profile
    for profile in (
        _RELEASE,
        _RELEASE.model_copy(
            update={"name": "paper-eval", "max_references": 5, "append_date": True, "skill_text": "instructions"}
        ),
        _SMALL,
        _ATLAS,
        _ATLAS.model_copy(
            update={
                "name": "atlas-sight",
                "max_response_tokens": 1500,
                "max_turn_tokens": 192,
                # The id stands next to its picture: a small model binds the two over a short distance only.
                "image_fields": ("title", "local_path"),
                "local_path": "{img_id}",
                "observations": Observations(images=True, max_side=128, per_search=3),
            }
        ),
    )
}
"""The named profiles."""


def built_in(profile: ProtocolProfile) -> bool:
    """Return whether a profile is one that ships, so that its name says all."""
    return PROFILES.get(profile.name) == profile


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
    return text + filled(profile.date_text, date=date)


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
    if at < 0:
        return text, False, ""
    line = text.rfind("\n", 0, at) + 1
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
    """Return the system prompt that `ProtocolProfile.prompt` names or is, unchanged.

    Raises:
        ValueError: naming the source, when it is neither a text of the project, a file, nor `module:attribute`.
    """
    if "\n" in source:
        return source
    if source.startswith(ONE_LINE):
        return source.removeprefix(ONE_LINE)
    return load_text(source, PROMPTS_FOLDER, "system prompt", exact=True)


def _definitions(profile: ProtocolProfile, tools: Mapping[str, Tool]) -> str:
    """Return the tool definitions as whole lines, in the protocol's order instead of the mapping's."""
    known = [name for name in STANDARD_TOOLS if name in tools]
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
    """Return the title of a guide, which ends the line before it where a prompt's last line has no end."""
    before = guide_place(profile)
    start = "" if before.endswith("\n") or not before else "\n"
    if profile.guide_style == "lines":
        return f"{start}Guide:\n"
    return f"{start}# {layout.title or 'Guide from earlier requests of this kind'}\n"
