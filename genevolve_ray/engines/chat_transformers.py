"""Chat model through transformers, in this process: one conversation at a time, on any device."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from genevolve_ray.engines.chat import (
    LocalChatConfig,
    conversation,
    count_call,
    end_of_turn,
    identity_of,
    load_chat_processor,
)
from genevolve_ray.engines.checks import context_length, read_model_config, room_for, sees
from genevolve_ray.engines.protocol import ChatMessage, CutAnswer, PromptTooLong
from genevolve_ray.errors import InfraFailure
from genevolve_ray.models.hub import local_model


class TransformersChatConfig(LocalChatConfig):
    """Configure the transformers chat model."""

    threads: int | None = Field(default=None, ge=1)
    """Torch threads of the model's thread; None leaves torch as it is."""


class TransformersChat:
    """Answer greedily with a model in HF layout, as a `ChatModel` that cannot be constrained to a JSON schema."""

    Config = TransformersChatConfig
    constrained = False

    def __init__(self, config: TransformersChatConfig, service: str = "chat") -> None:
        """Load the model; `service` is the name on the meter.

        Raises:
            FileNotFoundError: when the model folder or one of its parts is missing.
            ValueError: naming the folder when it holds no chat template.
        """
        self.identity = identity_of(config)
        config = config.model_copy(update={"model": str(local_model(config.model, "judge.config.model.model"))})
        self.config, self._service = config, service
        model_config = read_model_config(config.model)
        self.sees = sees(model_config)
        self._processor = load_chat_processor(config.model, model_config)
        if not self._processor.chat_template:
            raise ValueError(f"{config.model} has no chat template: it is not a chat model")
        kind = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        self._model = kind.from_pretrained(
            config.model, dtype=getattr(torch, config.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(config.device)  # type: ignore[arg-type] # transformers wraps torch's method without binding it
        self._model.eval().requires_grad_(False)
        # A folder's own sampling settings have no effect on greedy answers, and transformers warns about them.
        self._model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        limit = context_length(config.model) or self._model.config.get_text_config().max_position_embeddings
        self._limit = min(config.max_model_len or limit, limit)
        self._end = end_of_turn(self._processor, config.chat_template_kwargs)
        own = self._model.generation_config.eos_token_id
        self._ends = {self._end, *(own if isinstance(own, list) else [own])} - {None}
        self._model.generation_config.eos_token_id = sorted(self._ends) or None
        self._executor = ThreadPoolExecutor(1, "transformers-chat", self._start_thread)

    def _start_thread(self) -> None:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        """Return the answer; `schema` is ignored.

        Raises:
            InfraFailure: for a conversation that does not fit the context or cannot be read, or without memory.
        """
        del schema
        loop, started, used = asyncio.get_running_loop(), monotonic(), (0, 0)
        done = False
        try:
            answer, *tokens = await loop.run_in_executor(self._executor, self._answer, list(messages), max_tokens)
            used, done = (tokens[0], tokens[1]), True
            return answer
        except (PromptTooLong, torch.OutOfMemoryError) as error:
            raise InfraFailure(f"{self.identity}: {error}") from error
        except Exception as error:
            # Templates and processors raise anything on a text or picture.
            raise InfraFailure(f"{self.identity}: {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            count_call(self._service, *used, monotonic() - started, failed=not done)

    @torch.inference_mode()
    def _answer(self, messages: list[ChatMessage], max_tokens: int) -> tuple[str, int, int]:
        turns, pictures = conversation(messages)
        text = self._processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **self.config.chat_template_kwargs
        )
        images = {"images": pictures} if pictures else {}
        inputs = self._processor(text=[text], **images, return_tensors="pt").to(self.config.device)
        prompt = inputs["input_ids"].shape[1]
        room = room_for(prompt, max_tokens, self._limit)
        tokens = self._model.generate(**inputs, max_new_tokens=room)[0, prompt:].tolist()
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        # The end of the turn need not be marked special, and then it would remain in the text.
        said = tokens[:-1] if tokens and tokens[-1] == self._end else tokens
        answer = str(tokenizer.decode(said, skip_special_tokens=True))
        cut = len(tokens) >= room and int(tokens[-1]) not in self._ends
        return CutAnswer(answer) if cut else answer, prompt, len(tokens)

    def check_health(self) -> None:
        """Raise RuntimeError after `aclose`."""
        if self._executor._shutdown:
            raise RuntimeError(f"{self.identity} is closed")

    async def aclose(self) -> None:
        """Stop the model's thread once it has answered all pending requests."""
        self._executor.shutdown(wait=False, cancel_futures=True)
