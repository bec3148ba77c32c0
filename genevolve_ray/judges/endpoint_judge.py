"""The judge over any OpenAI-style endpoints.

KScore comes from a vision-language model, sufficiency from the same or another one.
"""

from __future__ import annotations

from typing import Any

from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig
from genevolve_ray.judges.vlm_judge import VlmJudge, VlmJudgeConfig


class EndpointJudgeConfig(VlmJudgeConfig):
    """Configure the models of the judge."""

    kscore: EndpointChatConfig
    """A model that sees pictures."""
    sufficiency: EndpointChatConfig | None = None
    """A model that reads (and sees, with `reference_pictures` or `sufficiency_form: bins`); by default the same as
    `kscore`."""


class EndpointJudge(VlmJudge):
    """Judge with `POST {url}/chat/completions`: two concurrent calls for each verdict."""

    Config = EndpointJudgeConfig
    config: EndpointJudgeConfig

    def __init__(self, config: EndpointJudgeConfig) -> None:
        """Keep the config; nothing is called yet. Raises ValueError naming a rubric that cannot be found."""
        self.config = config
        kscore = EndpointChat(config.kscore, "judge")
        other = EndpointChat(config.sufficiency, "judge") if config.sufficiency else kscore
        super().__init__(config, "endpoint-judge", kscore, other)

    def without_cache(self) -> EndpointJudge:
        """Return the same judge without a cache, so that it calls its models every time."""
        bare = EndpointJudge(self.config.model_copy(update={"cache": None}))
        bare._images = self._images
        return bare

    def decoding(self) -> list[Any]:
        """Return models and decoding settings, without addresses and call settings of the servers."""
        configs = (self.config.kscore, self.config.sufficiency or self.config.kscore)
        return [config.decoding() for config in configs]
