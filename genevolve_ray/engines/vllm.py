"""Default engine: vLLM's AsyncLLM, with live weight updates that are verified before any result is returned."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.engines.checks import (
    check_model,
    check_weights,
    context_length,
    engine_context,
    merged_into,
    probe_difference,
    read_model_config,
    room_for,
    sees,
)
from genevolve_ray.engines.config import MIB, VllmConfig
from genevolve_ray.engines.protocol import FinishReason, Generation, Probe, SamplingParams, WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall
from genevolve_ray.models.architecture import text_part

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

_SHUTDOWN_SECONDS = 5.0
_BATCHED_TOKENS = 4096


def vllm_environment(*, device: str = "cpu", threads: int = 1) -> dict[str, str]:
    """Return the environment variables that vLLM's processes need.

    `VllmEngine.create` sets them itself; a launcher (Ray's `runtime_env`) may set them earlier.
    """
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "OMP_NUM_THREADS": str(threads),
    }
    if device == "cpu":
        # The engine is eager there, and pinning threads to cores would put several engines on the same cores.
        environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # AsyncLLM starts its engine process in either case. On CPU this only decides whether the model gets another
        # process below it (seconds of import and half a gigabyte), which a single worker does not need.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


class VllmEngine:
    """Run vLLM behind the engine protocol. Build it with `await VllmEngine.create(...)`.

    The model runs in a process of its own, which dies with this one. During an update, requests in flight are frozen
    between two decode steps. They resume with the new weights, their key-value cache recomputed, so such a generation
    carries both versions. No result is returned while an update is unverified, or after a failed one, until another
    succeeds. An interrupted transfer leaves requests frozen in place for the next update.
    """

    name = "vllm"

    def __init__(self, llm: AsyncLLM, max_model_len: int, model_dir: str) -> None:
        self.version = 0
        self.max_model_len = max_model_len
        self.load_seconds = 0.0
        """Seconds the workers took to load the latest weights, verification excluded."""
        self._llm: AsyncLLM | None = llm
        self._model_dir = model_dir
        self._numbers = itertools.count()
        self._verified = asyncio.Event()
        self._verified.set()
        self._updating = asyncio.Lock()
        self._fault: str | None = None

    @classmethod
    async def create(
        cls,
        model_dir: str | Path,
        *,
        dtype: str = "float32",
        banned: Sequence[int] = (),
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        device: str = "cpu",
        config: VllmConfig | None = None,
        transfer: str | None = None,
    ) -> VllmEngine:
        """Start the engine process and wait until it can sample (blocks the event loop meanwhile).

        Args:
            model_dir: Model folder in Hugging Face layout; a tokenizer is not needed.
            dtype: Name of the torch dtype of weights and compute.
            banned: Token ids that are never sampled.
            max_model_len: Tokens a sequence may have in total; by default the model's own limit.
            max_num_seqs: Most sequences that are decoded together.
            device: "cpu", or anything else for the accelerator that vLLM finds.
            config: Further settings.
            transfer: Transport of weights over device memory (`receive`): nccl, ipc or gloo; None: only in folders.

        Raises:
            FileNotFoundError: If the model folder or one of its parts is missing.
            ValueError: If the model cannot be sampled on this device (head_dim below 32 on CPU), or has fewer positions
                than `max_model_len`.
        """
        check_model(model_dir, device=device)
        config = config or VllmConfig()
        max_model_len = engine_context(model_dir, max_model_len)
        if max_model_len is None:
            raise ValueError(f"{model_dir} states no max_position_embeddings: set engine.max_model_len")
        os.environ.update(vllm_environment(device=device, threads=config.threads))

        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from genevolve_ray.engines.vllm_worker import BANNED_KEY, BanMask

        arguments: dict[str, Any] = {
            "model": str(model_dir),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "hf_overrides": _positions(model_dir),
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager or device == "cpu",
            "seed": config.seed,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            # A prompt in one piece: the CPU sampler cannot rewind the generator of a seeded request between two pieces.
            "enable_chunked_prefill": device != "cpu",
            "max_num_batched_tokens": max(max_model_len, _BATCHED_TOKENS),
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "additional_config": {BANNED_KEY: list(banned)},
            # The class, not its name: then the engine process imports its module as soon as it unpickles its arguments.
            "logits_processors": [BanMask],
            "worker_extension_cls": "genevolve_ray.engines.vllm_worker.WeightLoader",
            **_sight(model_dir),
        }
        if config.kv_cache_mib is not None:
            arguments["kv_cache_memory_bytes"] = config.kv_cache_mib * MIB
        if device == "cpu" and config.tensor_parallel_size == 1:
            arguments["distributed_executor_backend"] = "uni"
        if device != "cpu":
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        if transfer is not None:
            from vllm.config.weight_transfer import WeightTransferConfig

            arguments["weight_transfer_config"] = WeightTransferConfig(backend=transfer)
        engine = cls(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)), max_model_len, str(model_dir))
        await engine._open().update_weight_version("0")
        return engine

    async def generate(self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str) -> Generation:
        """Sample one continuation; see `Engine.generate`."""
        limit = room_for(len(token_ids), sampling.max_tokens, self.max_model_len)
        await self._wait_verified()
        output = await self._run(
            token_ids,
            request_id,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=limit,
            seed=sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            logprobs=0,
        )
        # The last tokens may come from weights whose verification is still in progress.
        await self._wait_verified()
        completion = output.outputs[0]
        versions = [self.version] * len(completion.token_ids)
        for span in completion.weight_versions or ():
            versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
        return Generation(
            tokens=tuple(completion.token_ids),
            logprobs=tuple(completion.logprobs.logprobs),
            versions=tuple(versions),
            finish=FinishReason(str(completion.finish_reason)),
        )

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Freeze requests, load weights, clear caches, resume and verify; see `Engine.update`."""
        await asyncio.to_thread(check_weights, folder, self._model_dir)
        async with self._updating:
            self._verified.clear()
            self._fault = f"the update to version {version} from {folder} did not complete"
            try:
                difference = await self._load(folder, version, probe)
                self._fault = None
            except WeightUpdateError as error:
                self._fault = str(error)
                raise
            finally:
                self._verified.set()
        return difference

    async def receive(
        self, calls: AsyncIterator[tuple[TransferCall, dict[str, Any]]], version: int, probe: Probe | None = None
    ) -> float:
        """Freeze requests, receive weights as the learner's end sends them, resume and verify; see `update`.

        Returns the mean absolute probe difference.

        Raises:
            WeightUpdateError: when the transfer is interrupted, and then requests wait for another update. Also when
                the probe does not agree, and then they fail as after `update`.
        """
        async with self._updating:
            self._verified.clear()
            await self._take(calls, version)
            try:
                difference = await self._judge(version, probe)
                self._fault = None
            except WeightUpdateError as error:
                self._fault = str(error)
                raise
            finally:
                self._verified.set()
        return difference

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probs of a sequence; see `Engine.score`."""
        room_for(len(token_ids), 1, self.max_model_len)
        async with self._updating:
            return await self._score(token_ids)

    async def close(self) -> None:
        """Stop the engine process."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            # Otherwise it would report the end of the engine process as a crash.
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, timeout=_SHUTDOWN_SECONDS)

    def _open(self) -> AsyncLLM:
        if self._llm is None:
            raise RuntimeError("the engine is closed")
        return self._llm

    async def _wait_verified(self) -> None:
        await self._verified.wait()
        if self._fault is not None:
            raise WeightUpdateError(self._fault)

    async def _load(self, folder: str, version: int, probe: Probe | None) -> float:
        llm = self._open()
        await llm.pause_generation(mode="keep", clear_cache=True)
        try:
            self.load_seconds = max(await llm.collective_rpc("load_folder", args=(folder, self._model_dir)))
            await llm.update_weight_version(str(version))
            self.version = version
        finally:
            await llm.resume_generation()
        return await self._judge(version, probe, merged_into(folder, self._model_dir))

    async def _judge(self, version: int, probe: Probe | None, remark: str = "") -> float:
        return probe_difference(probe, await self._score(probe.token_ids), version, remark) if probe else 0.0

    async def _take(self, calls: AsyncIterator[tuple[TransferCall, dict[str, Any]]], version: int) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._open()
        await llm.pause_generation(mode="keep", clear_cache=True)
        started = time.perf_counter()
        try:
            async for call, argument in calls:
                await self._carry_out(call, argument)
            await llm.collective_rpc("settle_weights")
        except EngineDeadError:
            raise
        except Exception as error:
            # vLLM raises plain Exception for every error in its processes.
            await llm.collective_rpc("abandon_update")
            raise WeightUpdateError(f"the transfer of version {version} failed: {error}") from error
        self.load_seconds = time.perf_counter() - started
        await llm.update_weight_version(str(version))
        self.version = version
        await llm.resume_generation()

    async def _carry_out(self, call: TransferCall, argument: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        llm = self._open()
        if call is TransferCall.JOIN:
            await llm.shutdown_weight_transfer_engine()
            await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=argument))
        elif call is TransferCall.START:
            await llm.start_weight_update()
        elif call is TransferCall.PART:
            await llm.collective_rpc("take_part", args=(argument,))
        else:
            await llm.finish_weight_update()

    async def _score(self, token_ids: Sequence[int]) -> list[float]:
        # vLLM reads no cached prefix for prompt log-probs, and these skip temperature and logits processors.
        output = await self._run(token_ids, "score", temperature=0.0, max_tokens=1, prompt_logprobs=0)
        return list(output.prompt_logprobs.logprobs)

    async def _run(self, token_ids: Sequence[int], request_id: str, **sampling: Any) -> RequestOutput:
        from vllm import SamplingParams as VllmSampling
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = VllmSampling(
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
            ignore_eos=True,
            flat_logprobs=True,
            **sampling,
        )
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        unique = f"{request_id}#{next(self._numbers)}"
        [output] = [output async for output in self._open().generate(prompt, params, unique)]
        return output


def _sight(model_dir: str | Path) -> dict[str, Any]:
    """Return the settings that depend on whether the model sees."""
    if not sees(read_model_config(model_dir)):
        return {"skip_tokenizer_init": True}
    # vLLM requires the tokenizer of a model that sees, for text alone too.
    return {"skip_tokenizer_init": False, "limit_mm_per_prompt": {"image": 0, "video": 0}}  # Observations are text.


def _positions(model_dir: str | Path) -> dict[str, Any]:
    """Return the change of the model's configuration by which vLLM accepts all positions that a factor allows.

    vLLM expects a `max_position_embeddings` that includes the factor, and rejects longer contexts.
    """
    config = read_model_config(model_dir)
    limit = context_length(model_dir)
    if limit is None or limit <= int(text_part(config)["max_position_embeddings"]):
        return {}
    override = {"max_position_embeddings": limit}
    return {"text_config": override} if config.get("text_config") else override
