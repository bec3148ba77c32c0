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
    check_shards,
    check_weights,
    engine_context,
    merged_into,
    room_for,
)
from genevolve_ray.engines.config import VllmConfig
from genevolve_ray.engines.load_check import check_load
from genevolve_ray.engines.media import PromptImages, check_expanded
from genevolve_ray.engines.probe import read_probe
from genevolve_ray.engines.protocol import (
    FinishReason,
    Generation,
    MediaMismatch,
    OnTokens,
    Probe,
    PromptImage,
    SamplingParams,
    WeightUpdateError,
)
from genevolve_ray.engines.transports.queue import TransferCall
from genevolve_ray.engines.vllm_settings import (
    batching,
    head,
    own_threads,
    placement,
    positions,
    quantization,
    scheduler,
    sight,
    vllm_environment,
)
from genevolve_ray.engines.vllm_sleep import SleepState

if TYPE_CHECKING:
    from vllm.inputs import TokensPrompt
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

WORKER_EXTENSION = "genevolve_ray.engines.vllm_worker.WeightLoader"
_SHUTDOWN_SECONDS = 5.0


class VllmEngine:
    """Run vLLM behind the engine protocol. Build it with `await VllmEngine.create(...)`.

    The model runs in a process of its own, which dies with this one. During an update, requests in flight are frozen
    between two decode steps. They resume with the new weights, so such a generation carries both versions. Their
    key-value cache is computed again, unless `VllmConfig.keep_cache` keeps that of the old version. No result is
    returned while an update is unverified, or after a failed one, until another succeeds. An interrupted transfer
    leaves requests frozen in place for the next update.
    """

    name, streams = "vllm", True

    def __init__(
        self, llm: AsyncLLM, max_model_len: int, model_dir: str, max_images: int = 0, *, keep_cache: bool = False
    ) -> None:
        self.version = 0
        self.max_model_len = max_model_len
        self.load_seconds = 0.0
        """Seconds the workers took to load the latest weights, verification excluded."""
        self.check_seconds = 0.0
        """Seconds that the comparison of the latest weights' checksums took."""
        self.untraced: tuple[str, ...] = ()
        """Tensors of the latest load that the engine holds in a form that cannot be compared."""
        self._llm: AsyncLLM | None = llm
        self._model_dir = model_dir
        self._keep_cache = keep_cache
        self._max_images, self._images = max_images, PromptImages(model_dir)
        self._numbers = itertools.count()
        self._verified = asyncio.Event()
        self._verified.set()
        self._updating = asyncio.Lock()
        self._sleep = SleepState()
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
            ValueError: If the model cannot be sampled on this device (head_dim below 32 on CPU), has fewer positions
                than `max_model_len`, or is to take pictures (`config.max_images`) and cannot.
        """
        check_model(model_dir, device=device)
        config = config or VllmConfig()
        check_shards(model_dir, config.tensor_parallel_size)
        if (max_model_len := engine_context(model_dir, max_model_len)) is None:
            raise ValueError(f"{model_dir} states no max_position_embeddings: set engine.max_model_len")
        threads = config.threads or own_threads(model_dir, device)
        os.environ.update(vllm_environment(device=device, threads=threads, eager=config.enforce_eager))

        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from genevolve_ray.engines.vllm_worker import BANNED_KEY, BanMask

        arguments: dict[str, Any] = {
            "model": str(model_dir),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "hf_overrides": positions(model_dir) | head(config),
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager,
            "seed": config.seed,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "additional_config": {BANNED_KEY: list(banned)},
            # The class, not its name: then the engine process imports its module as soon as it unpickles its arguments.
            "logits_processors": [BanMask],
            "worker_extension_cls": WORKER_EXTENSION,
            **scheduler(device),
            **placement(config, device),
            **quantization(config),
            **batching(config, device, max_model_len, max_num_seqs),
            **sight(model_dir, config.max_images, device),
        }
        if transfer is not None:
            from vllm.config.weight_transfer import WeightTransferConfig

            arguments["weight_transfer_config"] = WeightTransferConfig(backend=transfer)
        # The engine is no local: vLLM keeps this frame alive, and an engine deleted at the interpreter's exit prints an error.
        start, settings = AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments)
        engine = cls(start(settings), max_model_len, str(model_dir), config.max_images, keep_cache=config.keep_cache)
        await engine._open().update_weight_version("0")
        return engine

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        media: Sequence[PromptImage] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Sample one continuation; see `StreamingEngine.generate`."""
        limit = room_for(len(token_ids), sampling.max_tokens, self.max_model_len)
        prompt = await self._prompt(token_ids, media)
        await self._wait_verified()
        output = await self._run(
            prompt,
            request_id,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=limit,
            seed=sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            logprobs=0,
            on_tokens=on_tokens,
        )
        check_expanded(token_ids, output.prompt_token_ids or (), media)
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

    async def sleep(self) -> None:
        """Free the GPU until the next update, which wakes the engine; requests wait for it."""
        async with self._updating:
            await self._sleep.begin(self._open())

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        """Return the log-probs of a sequence; see `Engine.score`."""
        room_for(len(token_ids), 1, self.max_model_len)
        async with self._updating:
            self._sleep.check_awake()
            return await self._score(token_ids, media)

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
        await self._freeze(llm)
        try:
            self.load_seconds = max(await llm.collective_rpc("load_folder", args=(folder, self._model_dir)))
            await llm.update_weight_version(str(version))
            self.version = version
        finally:
            await self._sleep.end(llm)
        return await self._judge(version, probe, merged_into(folder, self._model_dir))

    async def _judge(self, version: int, probe: Probe | None, remark: str = "") -> float:
        """Verify a load by its checksums, and by the probe; return the mean absolute probe difference."""
        started = time.perf_counter()
        reports = await self._open().collective_rpc("compare_load")
        self.untraced = tuple(reports[0]["untraced"])
        check_load(reports, probe.tensors if probe is not None else None, version)
        self.check_seconds = time.perf_counter() - started
        if probe is None:
            return 0.0
        return await read_probe(probe, lambda: self._score(probe.token_ids, probe.media), version, remark)

    async def _freeze(self, llm: AsyncLLM) -> None:
        """Stop all requests between two steps, and drop what vLLM remembers of their pictures and, mostly, prompts."""
        await self._sleep.wake_weights(llm)
        await llm.pause_generation(mode="keep", clear_cache=not self._keep_cache)
        if self._keep_cache:
            # A load drops the states of pictures at the model; otherwise they would count as known at the scheduler.
            await llm.reset_mm_cache()
            await llm.reset_encoder_cache()
        # Pictures that were on their way when the engine process dropped its own would otherwise count as known there.
        await llm.renderer.clear_mm_cache_async()

    async def _take(self, calls: AsyncIterator[tuple[TransferCall, dict[str, Any]]], version: int) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._open()
        await self._freeze(llm)
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
        await self._sleep.end(llm)

    async def _carry_out(self, call: TransferCall, argument: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        llm = self._open()
        if call is TransferCall.JOIN:
            await llm.shutdown_weight_transfer_engine()
            await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=argument))
        elif call is TransferCall.START:
            await llm.collective_rpc("expect_weights")
            await llm.start_weight_update()
        elif call is TransferCall.PART:
            await llm.collective_rpc("take_part", args=(argument,))
        else:
            await llm.finish_weight_update()

    async def _score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        # vLLM reads no cached prefix for prompt log-probs, and these skip temperature and logits processors.
        prompt = await self._prompt(token_ids, media)
        output = await self._run(prompt, "score", temperature=0.0, max_tokens=1, prompt_logprobs=0)
        check_expanded(token_ids, output.prompt_token_ids or (), media)
        return list(output.prompt_logprobs.logprobs)

    async def _prompt(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> TokensPrompt:
        """Return vLLM's prompt: it expands one token for each picture, whose pixels and states it keeps by their hash."""
        from vllm.inputs import TokensPrompt

        if not media:
            return TokensPrompt(prompt_token_ids=list(token_ids))
        if len(media) > self._max_images:
            raise MediaMismatch(f"the prompt has {len(media)} pictures, but engine.vllm.max_images={self._max_images}")
        pictures = await asyncio.to_thread(self._images.opened, token_ids, media)
        return TokensPrompt(
            prompt_token_ids=self._images.collapse(token_ids, media),
            multi_modal_data={"image": pictures},
            multi_modal_uuids={"image": [image.span.sha256 for image in media]},
        )

    async def _run(
        self, prompt: TokensPrompt, request_id: str, *, on_tokens: OnTokens | None = None, **sampling: Any
    ) -> RequestOutput:
        from vllm import SamplingParams as VllmSampling
        from vllm.sampling_params import RequestOutputKind

        params = VllmSampling(
            # Cumulative outputs end with the same one as FINAL_ONLY gives; they cost more.
            output_kind=RequestOutputKind.FINAL_ONLY if on_tokens is None else RequestOutputKind.CUMULATIVE,
            detokenize=False,
            ignore_eos=True,
            flat_logprobs=True,
            **sampling,
        )
        unique = f"{request_id}#{next(self._numbers)}"
        told, output = 0, None
        async for output in self._open().generate(prompt, params, unique):
            if on_tokens is not None and len(tokens := output.outputs[0].token_ids) > told:
                on_tokens(tokens[told:])
                told = len(tokens)
        assert output is not None, "vLLM returned no output"
        return output
