"""The model roles of a build behind chat endpoints: who writes prompts, audits trajectories, and grades truths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from genevolve_ray.data.build import audit, truths
from genevolve_ray.data.build.audit import ChatAuditor
from genevolve_ray.data.build.grading import ChatGrader, ChatGraderConfig
from genevolve_ray.data.build.prompts import ChatPromptWriter, PromptWriterConfig
from genevolve_ray.data.build.taxonomy import Taxonomy
from genevolve_ray.data.build.truths import ChatTruthGrader
from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig
from genevolve_ray.records.images import ImageStore
from genevolve_ray.tools.protocol import Tool


@dataclass(frozen=True)
class BuildContext:
    """Hold what the roles of a build may use besides their settings: each is built as `Class(config, context)`.

    `tools` are those of the configuration, for the teacher alone; what they answer is recorded beside the pictures.
    """

    taxonomy: Taxonomy
    images: ImageStore
    seed: int
    tools: Mapping[str, Tool] = field(default_factory=dict)


class EndpointWriterConfig(PromptWriterConfig):
    """Configure a writer of prompts behind an endpoint."""

    endpoint: EndpointChatConfig
    """The chat model."""


class EndpointWriter(ChatPromptWriter):
    """Write prompts with a chat model behind an endpoint."""

    Config = EndpointWriterConfig

    def __init__(self, config: EndpointWriterConfig, context: BuildContext) -> None:
        """Build the client; nothing is called yet. Raises ValueError for a rubric that cannot be found."""
        plain = PromptWriterConfig.model_validate(config.model_dump(include=set(PromptWriterConfig.model_fields)))
        self._model = EndpointChat(config.endpoint, "writer")
        super().__init__(plain, context.taxonomy, self._model)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._model.aclose()


class EndpointAuditorConfig(ChatGraderConfig):
    """Configure an auditor behind an endpoint."""

    endpoint: EndpointChatConfig
    """The vision model."""
    rubric: str = Field(default="audit")
    """One of `data/build/prompts`, a file, or `module:attribute`: the whole system message."""


class EndpointAuditor(ChatAuditor):
    """Grade trajectories with a vision model behind an endpoint."""

    Config = EndpointAuditorConfig

    def __init__(self, config: EndpointAuditorConfig, context: BuildContext) -> None:
        """Build the client; nothing is called yet. Raises ValueError for a rubric that cannot be found."""
        super().__init__(_grader(config, config.endpoint, audit.SCALES, "auditor"), context.images)


class EndpointTruthGraderConfig(ChatGraderConfig):
    """Configure a grader of truths behind an endpoint."""

    endpoint: EndpointChatConfig
    """The vision model."""
    rubric: str = Field(default="truth")
    """One of `data/build/prompts`, a file, or `module:attribute`: the whole system message."""


class EndpointTruthGrader(ChatTruthGrader):
    """Grade truth pictures with a vision model behind an endpoint."""

    Config = EndpointTruthGraderConfig

    def __init__(self, config: EndpointTruthGraderConfig, context: BuildContext) -> None:
        """Build the client; nothing is called yet. Raises ValueError for a rubric that cannot be found."""
        super().__init__(_grader(config, config.endpoint, truths.SCALES, "truth_grader"))


def _grader(
    config: ChatGraderConfig, endpoint: EndpointChatConfig, scales: tuple[str, ...], service: str
) -> ChatGrader:
    return ChatGrader(EndpointChat(endpoint, service), scales, config)
