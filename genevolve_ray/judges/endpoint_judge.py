"""The judge over any OpenAI-style endpoints: KScore from a vision-language model, sufficiency from the same or another."""

from __future__ import annotations

from typing import Any

from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig
from genevolve_ray.judges.vlm_judge import VlmJudge, VlmJudgeConfig
from genevolve_ray.remote.config import RemoteConfig


class EndpointJudgeConfig(VlmJudgeConfig):
    """Which models judge, and how."""

    kscore: EndpointChatConfig
    """A model that sees pictures."""
    sufficiency: EndpointChatConfig | None = None
    """A model that reads (and sees, with `reference_pictures`); by default the same as `kscore`."""


class EndpointJudge(VlmJudge):
    """`POST {url}/chat/completions`, two calls a verdict, side by side."""

    Config = EndpointJudgeConfig
    config: EndpointJudgeConfig

    def __init__(self, config: EndpointJudgeConfig) -> None:
        """Keep the config; nothing is called yet. Raises ValueError naming a rubric that cannot be found."""
        self.config = config
        kscore = EndpointChat(config.kscore, "judge")
        other = EndpointChat(config.sufficiency, "judge") if config.sufficiency else kscore
        super().__init__(config, "endpoint-judge", kscore, other)

    def without_cache(self) -> EndpointJudge:
        """Return the same judge, which asks its models every time."""
        bare = EndpointJudge(self.config.model_copy(update={"cache": None}))
        bare._images = self._images
        return bare

    def decoding(self) -> list[Any]:
        """Return models and decoding settings, without where the servers are and how they are called."""
        configs = (self.config.kscore, self.config.sufficiency or self.config.kscore)
        return [{**c.model_dump(exclude=set(RemoteConfig.model_fields)), "temperature": 0} for c in configs]
