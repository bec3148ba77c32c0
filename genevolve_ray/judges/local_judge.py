"""The judge as a vision-language model in its own replica.

It needs no separate server, and uses the same rubrics and the same reading of answers.
"""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import Field

from genevolve_ray.engines.protocol import ChatModel
from genevolve_ray.judges.vlm_judge import VlmJudge, VlmJudgeConfig
from genevolve_ray.records.base import Config

BACKENDS = {
    "vllm": "genevolve_ray.engines.chat_vllm:VllmChat",
    "transformers": "genevolve_ray.engines.chat_transformers:TransformersChat",
}
"""Chat models by name. They are found at run time, as only engines may know vLLM and torch."""


class LocalModelConfig(Config):
    """Configure a chat model in the judge's own process, and its backend."""

    backend: str = Field(default="vllm", pattern=r"^(vllm|transformers|[\w.]+:\w+)$")
    """`vllm`, `transformers`, or `package.module:Class` of a chat model with a `Config`, built as `Class(config, service)`."""
    model: dict[str, Any]
    """Settings of the chat model, as `{model: /models/Qwen3-VL-8B-Instruct, device: cuda}`."""

    def load(self) -> ChatModel:
        """Load the model.

        Raises:
            ValueError: naming a backend that cannot be found.
            FileNotFoundError: naming a model folder that does not exist.
        """
        return load_backend(self.backend, self.model)

    def decoding(self) -> list[Any]:
        """Return the settings that alter answers, without the place where the model runs, as JSON values."""
        kept = {name: self.model.get(name) for name in ("dtype", "max_model_len", "chat_template_kwargs")}
        return [self.backend, kept, {"temperature": 0}]


class LocalVlmJudgeConfig(VlmJudgeConfig, LocalModelConfig):
    """Configure the judge, its model and the model's backend."""


class LocalVlmJudge(VlmJudge):
    """Judge with one model for both calls of a verdict. Give its replicas a GPU: `cluster.judge.gpus: 1`."""

    Config = LocalVlmJudgeConfig
    config: LocalVlmJudgeConfig

    def __init__(self, config: LocalVlmJudgeConfig, chat: ChatModel | None = None) -> None:
        """Load the model.

        Args:
            config: the settings.
            chat: an existing chat model, instead of the configured one.

        Raises:
            ValueError: naming a backend or rubric that cannot be found, or a model without vision.
            FileNotFoundError: naming a model folder that does not exist.
        """
        self.config = config
        self._chat = chat or config.load()
        check_sees(self._chat)
        super().__init__(config, "local-judge", self._chat, self._chat)

    def without_cache(self) -> LocalVlmJudge:
        """Return the same judge over the same loaded model, without a cache."""
        bare = LocalVlmJudge(self.config.model_copy(update={"cache": None}), self._chat)
        bare._images = self._images
        return bare

    def decoding(self) -> list[Any]:
        """Return the model's name and the settings that alter its answers.

        The place where it runs is excluded.
        """
        return [self._chat.identity, *self.config.decoding()]


def check_sees(chat: ChatModel) -> None:
    """Check that a model reads images. Raises ValueError naming it."""
    if not getattr(chat, "sees", True):
        raise ValueError(f"a judge must read images, but {chat.identity} is a text-only model")


def load_backend(backend: str, settings: dict[str, Any]) -> ChatModel:
    """Return the chat model of a backend. Raises ValueError for an unknown path, ValidationError for bad settings."""
    path = BACKENDS.get(backend, backend)
    module, _, name = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backend {backend!r} cannot be loaded: {error}") from error
    model: ChatModel = kind(kind.Config.model_validate(settings), "judge")
    return model
