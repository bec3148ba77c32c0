"""Habits of a generator that no skill mentions: of several wordings of a structure it obeys one, another for each style.

The texts of the skills ask for a structure, and every wording of it counts as that structure: for the judge, and for a
generator without habits. A generator with habits obeys the wording that it prefers. Which one that is depends on the
style of the prompt (its medium, its mood) and follows from no rule, so that only experience can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from genevolve_ray.atlas.reading import Reading, read_prompt
from genevolve_ray.atlas.scene import Scene
from genevolve_ray.records.base import Config
from genevolve_ray.records.seeds import derive_seed

REFERENCE = "reference"
"""The structure besides those of the skills: how a part names its reference picture."""
ORDER = "attribute_binding"
"""The skill whose wording is the place of the parts among the other clauses."""

WORDINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        REFERENCE: {
            "from": "from the {ordinal} reference image",
            "as": "as in the {ordinal} reference image",
            "like": "like the {ordinal} reference image",
        },
        "spatial_layout": {"side": "at the {side} side", "half": "on the {side} half", "part": "in the {side} part"},
        "aesthetic_drawing": {"light": "light from above", "glow": "glow from above", "beams": "beams from above"},
        "text_rendering": {"bottom": "at the bottom", "strip": "on the strip", "base": "at the base"},
        "creative_drawing": {
            "every": "over every part",
            "whole": "across the whole picture",
            "throughout": "throughout",
        },
        "anatomy_body_coherence": {
            "joined": "joined under the body",
            "attached": "attached to the body",
            "fixed": "fixed to the body",
        },
        ORDER: {"things first": "", "things last": ""},
        "physical_material_consistency": {
            "edge": "with a bright edge",
            "highlight": "with a highlight",
            "sheen": "with a sheen",
        },
        "quantity_counting": {"row": "in a row", "line": "in a line", "apart": "spaced apart"},
    }
)
"""The wordings of each structure by the name that guidance gives them. A name belongs to one wording alone."""


def _pattern(phrase: str) -> re.Pattern[str]:
    """Return the pattern of a phrase with any word in its gaps."""
    return re.compile(r"\b" + re.sub("{[a-z]+}", r"\\w+", phrase) + r"\b")


_PATTERNS = {
    structure: {name: _pattern(phrase) for name, phrase in wordings.items() if phrase}
    for structure, wordings in WORDINGS.items()
}


class HabitsConfig(Config):
    """Configure which wordings a generator prefers, and what it does with the others."""

    seed: int = Field(default=1, ge=0)
    """Seed of the preferences."""
    by: tuple[Literal["medium", "mood"], ...] = Field(default=("medium", "mood"), max_length=2)
    """What the preferences depend on, besides the structure. Each has three values and none."""
    stubborn: float = Field(default=0.8, ge=0, le=1)
    """Probability that a weakness shows although the structure against it is there, in another wording; by default that of
    a generator without the structure."""

    def preferred(self, structure: str, medium: str | None, mood: str | None) -> str:
        """Return the name of the wording that the generator obeys in a style."""
        names = list(WORDINGS[structure])
        style = {"medium": medium or "none", "mood": mood or "none"}
        return names[derive_seed(self.seed, "habit", structure, *(style[key] for key in self.by)) % len(names)]


def structures_of(scene: Scene) -> tuple[str, ...]:
    """Return the structures that a program for this scene words."""
    found = (REFERENCE,) if any(part.found for part in scene.parts) else ()
    demanded = scene.demands()
    # The place of the parts is one only where there are other clauses.
    others = scene.text or scene.mood or scene.medium
    return found + tuple(skill for skill in demanded if skill != ORDER or others)


def preferred_wordings(habits: HabitsConfig, scene: Scene) -> dict[str, str]:
    """Return the wordings that the generator obeys for a scene, by structure."""
    return {s: habits.preferred(s, scene.medium, scene.mood) for s in structures_of(scene)}


def worded(structure: str, name: str, **values: str) -> str:
    """Return the phrase of a wording. Raises KeyError for an unknown one."""
    return WORDINGS[structure][name].format(**values)


def wordings_in(prompt: str) -> dict[str, str]:
    """Return the wording of each structure in a prompt, the first where there are several; none is left out."""
    lowered = " ".join(prompt.lower().split())
    found: dict[str, str] = {}
    for structure, patterns in _PATTERNS.items():
        places = {name: match.start() for name, pattern in patterns.items() if (match := pattern.search(lowered))}
        if places:
            found[structure] = min(places, key=places.__getitem__)
    if place := _place_of_parts(prompt):
        found[ORDER] = place
    return found


def _place_of_parts(prompt: str) -> str | None:
    """Return whether parts come before or after the other clauses; None where one of both is missing."""
    has_part = [bool(read_prompt(clause).parts) for clause in re.split(r"[;.\n]+", prompt) if clause.strip()]
    if all(has_part) or not any(has_part):
        return None
    return "things first" if has_part[0] else "things last"


def unheeded(habits: HabitsConfig, prompt: str, reading: Reading) -> frozenset[str]:
    """Return the structures whose wording in a prompt is not the one that the generator obeys.

    Those without any of the known wordings are among them. A place of the parts is only one beside other clauses.
    """
    preferred = {s: habits.preferred(s, reading.medium, reading.mood) for s in WORDINGS}
    said = {ORDER: preferred[ORDER], **wordings_in(prompt)}
    return frozenset(s for s in WORDINGS if said.get(s) != preferred[s])
