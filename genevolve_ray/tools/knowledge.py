"""`query_knowledge`: the Markdown of one generation skill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.observation import SkillObservation
from genevolve_ray.tools.protocol import EpisodeContext, read_arguments


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    skill_name: str


class KnowledgeTool:
    """Return skills by name; the protocol profile decides how much of one is shown."""

    name = "query_knowledge"
    description = "Read one skill: craft advice for a kind of demand that image generators often miss."

    def __init__(self, skills: Mapping[str, str]) -> None:
        """Serve `skills`, a mapping of skill name to Markdown."""
        self.skills = dict(skills)
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"skill_name": {"type": "string", "enum": list(self.skills)}},
            "required": ["skill_name"],
        }

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> SkillObservation:
        """Return the skill. Raises ToolArgumentError for an unknown one; the message lists the names."""
        name = read_arguments(_Arguments, arguments).skill_name
        if name not in self.skills:
            raise ToolArgumentError(f"no skill {name[:60]!r}; the skills are {', '.join(self.skills)}")
        return SkillObservation(skill_name=name, markdown=self.skills[name])
