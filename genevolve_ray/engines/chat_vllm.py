"""Chat model through vLLM, in a process of its own: continuous batching, answers constrained to a schema."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from genevolve_ray.engines.chat import (
    LocalChatConfig,
    conversation,
    count_call,
    end_of_turn,
    identity_of,
    load_chat_processor,
)
from genevolve_ray.engines.checks import check_model, read_model_config, sees
from genevolve_ray.engines.config import MIB
from genevolve_ray.engines.protocol import ChatMessage, CutAnswer
from genevolve_ray.engines.vllm_settings import executor, vllm_environment
from genevolve_ray.errors import InfraFailure
from genevolve_ray.models.hub import local_model

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

CONSTRAINT: dict[str, Any] = {"backend": "xgrammar", "disable_any_whitespace": True}
"""How vLLM holds an answer to a schema. With free white space, a model could fill its answer with line breaks."""
_SHUTDOWN_SECONDS = 5.0


class VllmChatConfig(LocalChatConfig):
    """Configure the vLLM chat model."""

    device: str = "cuda"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM may take, where `kv_cache_mib` is None."""
    kv_cache_mib: int | None = Field(default=None, ge=1)
    """Memory of the key-value cache; None: vLLM takes its share of the GPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that the model is sharded over."""
    enforce_eager: bool = False
    """Run without CUDA graphs and compilation."""
    max_concurrent: int = Field(default=64, ge=1)
    """Most conversations that are decoded together; more wait their turn."""
    max_images: int = Field(default=8, ge=1)
    """Most pictures of one conversation."""
    timeout_s: float = Field(default=600, gt=0)
    """Seconds an answer may take, waiting included."""
    threads: int = Field(default=1, ge=1)
    """OpenMP threads of the engine process."""


class VllmChat:
    """Answer greedily with a model in HF layout, as a `ChatModel`. Any number of calls may be in flight."""

    Config = VllmChatConfig

    def __init__(self, config: VllmChatConfig, service: str = "chat") -> None:
        """Start the engine process and wait until it can answer; `service` is the name on the meter.

        Raises:
            FileNotFoundError: when the model folder or one of its parts is missing.
            ValueError: when vLLM cannot run the model on this device, or the folder holds no chat template.
        """
        self.identity = identity_of(config)
        config = config.model_copy(update={"model": str(local_model(config.model, "judge.config.model.model"))})
        self.config, self._service = config, service
        model_config = read_model_config(config.model)
        self.sees = sees(model_config)
        check_model(config.model, device=config.device)
        self._processor = load_chat_processor(config.model, model_config)
        if not self._processor.chat_template:
            raise ValueError(f"{config.model} has no chat template: it is not a chat model")
        end = end_of_turn(self._processor, config.chat_template_kwargs)
        self._ends = [] if end is None else [end]
        os.environ.update(vllm_environment(device=config.device, threads=config.threads))
        self._llm: AsyncLLM | None = _start(config, sees=self.sees)
        self._numbers = itertools.count()

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        """Return the answer, constrained to `schema` where there is one.

        Raises:
            InfraFailure: for a conversation that vLLM refuses (too long, too many pictures), an answer that took too
                long, or a failed engine.
        """
        started, used, done = monotonic(), (0, 0), False
        try:
            prompt = await asyncio.to_thread(self._prompt, messages)
            async with asyncio.timeout(self.config.timeout_s):
                output = await self._run(prompt, max_tokens, schema)
            completion = output.outputs[0]
            used = len(output.prompt_token_ids or ()), len(completion.token_ids)
            done = True
            return CutAnswer(completion.text) if completion.finish_reason == "length" else str(completion.text)
        except TimeoutError as error:
            raise InfraFailure(f"{self.identity} took longer than {self.config.timeout_s:g} s") from error
        except InfraFailure:
            raise
        except Exception as error:
            # Templates and processors raise anything on a text or picture.
            raise InfraFailure(f"{self.identity}: {type(error).__name__}: {str(error)[:300]}") from error
        finally:
            count_call(self._service, *used, monotonic() - started, failed=not done)

    def _prompt(self, messages: Sequence[ChatMessage]) -> Any:
        turns, pictures = conversation(messages)
        text = self._processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **self.config.chat_template_kwargs
        )
        return {"prompt": text, "multi_modal_data": {"image": pictures}} if pictures else {"prompt": text}

    async def _run(self, prompt: Any, max_tokens: int, schema: Mapping[str, Any] | None) -> RequestOutput:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if self._llm is None:
            raise InfraFailure(f"{self.identity} is closed")
        held = StructuredOutputsParams(json=dict(schema)) if schema else None
        params = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            stop_token_ids=self._ends,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=held,
        )
        # The template has written the special tokens already.
        stream = self._llm.generate(
            prompt, params, f"chat#{next(self._numbers)}", tokenization_kwargs={"add_special_tokens": False}
        )
        [output] = [output async for output in stream]
        return output

    def check_health(self) -> None:
        """Raise RuntimeError when the engine process has died or is closed; the replica is then restarted."""
        if self._llm is None or self._llm.errored:
            raise RuntimeError(f"the engine of {self.identity} is not running")

    async def aclose(self) -> None:
        """Stop the engine process."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            # Otherwise it would report the end of the engine process as a crash.
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, timeout=_SHUTDOWN_SECONDS)


def _start(config: VllmChatConfig, *, sees: bool) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_concurrent,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": config.enforce_eager or config.device == "cpu",
        "generation_config": "vllm",
        "seed": 0,
        "structured_outputs_config": CONSTRAINT,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if sees:
        arguments["limit_mm_per_prompt"] = {"image": config.max_images, "video": 0}
        # On the device vLLM leaves pixels raw where a folder's file does not repeat the defaults of its processor.
        arguments["mm_device_do_normalize"] = False
    if config.kv_cache_mib is not None:
        arguments["kv_cache_memory_bytes"] = config.kv_cache_mib * MIB
    if config.device != "cpu":
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    arguments |= executor(config.tensor_parallel_size, config.device)
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
