"""Reference engine: a Hugging Face model that samples concurrent requests in waves. It can be bit-exact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from genevolve_ray.engines.ban import ban_mask
from genevolve_ray.engines.batch_decode import DecodeRequest, run_wave, score_tokens
from genevolve_ray.engines.checks import (
    check_reference,
    check_weights,
    engine_context,
    merged_into,
    read_model_config,
    room_for,
    sees,
)
from genevolve_ray.engines.load_check import Loaded, LoadWatch, TensorPart, check_load, factor_checksums
from genevolve_ray.engines.media import PromptImages
from genevolve_ray.engines.probe import probe_difference
from genevolve_ray.engines.protocol import (
    Generation,
    OnTokens,
    Probe,
    PromptImage,
    SamplingParams,
    WeightUpdateError,
)
from genevolve_ray.learning.batch import ImageInputs
from genevolve_ray.learning.digests import checksum, word_of
from genevolve_ray.learning.vision import image_inputs
from genevolve_ray.models.adapters import copy_tensors, is_adapter, published_tensors
from genevolve_ray.records.seeds import derive_seed

T = TypeVar("T")

_SETTLE_PASSES = 3
_SETTLE_PASSES_DETERMINISTIC = 64


@dataclass
class _Waiting:
    """Hold a request that no wave has taken yet; `wave` resolves to (future of the wave's results, row in it)."""

    request_id: str
    job: DecodeRequest
    wave: asyncio.Future[tuple[asyncio.Future[list[Generation]], int]] = field(repr=False)


class TransformersEngine:
    """Sample in waves: waiting requests are prefilled together and decoded until all rows have ended.

    All model work happens in one background thread, so updates and scores fall between waves: a generation never spans
    two versions.

    With `deterministic`, a wave starts only when the event loop is quiet (no new request in many passes). It takes its
    requests in the order of their ids, with one thread. Episodes that run in lock-step under one `asyncio.gather` then
    form the same waves in every run, and the results are bit-equal. Work outside the event loop (threads, sockets) must
    be wrapped in `hold()`, or a wave may start without the requests that would follow it.

    A vision-language model reads the pictures of its prompts, at the pixels of the learner.

    Args:
        model_dir: Model folder in Hugging Face layout.
        dtype: Name of the torch dtype of weights and compute.
        banned: Token ids that are never sampled.
        max_model_len: Tokens a sequence may have in total; by default the model's own limit.
        device: A torch device.
        deterministic: See above.
        max_batch: Most rows in a wave.
        threads: Threads of torch, for the whole process; None keeps torch's setting, deterministic means 1.
        seed: Seeds requests that carry none (together with their id).

    Raises:
        FileNotFoundError: If the model folder or one of its parts is missing.
        ValueError: If the model has layers that cannot be decoded, or fewer positions than `max_model_len`.
    """

    name, streams = "transformers", True

    def __init__(
        self,
        model_dir: str | Path,
        *,
        dtype: str = "float32",
        banned: Sequence[int] = (),
        max_model_len: int | None = None,
        device: str = "cpu",
        deterministic: bool = False,
        max_batch: int = 64,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        check_reference(model_dir)
        context = engine_context(model_dir, max_model_len)
        kind = AutoModelForImageTextToText if sees(read_model_config(model_dir)) else AutoModelForCausalLM
        self.version = 0
        self._model_dir = Path(model_dir)
        self._images = PromptImages(model_dir)
        self._deterministic = deterministic
        self._max_batch = max_batch
        self._seed = seed
        self._device = device
        self._threads = 1 if deterministic else threads
        self._executor = ThreadPoolExecutor(1, "transformers-engine", self._start_thread)
        self._model = kind.from_pretrained(
            model_dir,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            generation_config=GenerationConfig(),  # The folder's own has no effect, and some are rejected.
            local_files_only=True,
        ).to(device)  # type: ignore[arg-type] # transformers wraps torch's method without binding it
        self._model.eval().requires_grad_(False)
        config = self._model.config.get_text_config()
        self.max_model_len: int = context or config.max_position_embeddings
        self._banned_V = torch.from_numpy(ban_mask(banned, config.vocab_size)).to(device)
        self._waiting: list[_Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._holds = 0
        self._released = asyncio.Event()
        self._fault: str | None = None
        self._updates = 0
        self._closed = False

    def _start_thread(self) -> None:
        # OpenMP keeps the number of threads per thread: it must be set in the thread that computes.
        if self._threads is not None:
            torch.set_num_threads(self._threads)

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        media: Sequence[PromptImage] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Sample one continuation; see `StreamingEngine.generate`. A request that arrives during an update waits for its end."""
        self._check_open(fault=not self._updates)
        limit = room_for(len(token_ids), sampling.max_tokens, self.max_model_len)
        images = await self._inputs(token_ids, media)
        seed = sampling.seed if sampling.seed is not None else derive_seed(self._seed, "engine", request_id)
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[int | None] = asyncio.Queue()

        def tell(token: int) -> None:
            loop.call_soon_threadsafe(told.put_nowait, token)

        job = DecodeRequest(
            prompt=tuple(token_ids),
            sampling=sampling,
            seed=seed,
            limit=limit,
            images=images,
            on_token=None if on_tokens is None else tell,
        )
        waiting = _Waiting(request_id, job, loop.create_future())
        self._waiting.append(waiting)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run_waves())
        results, row = await waiting.wave
        if on_tokens is not None:
            # The listener is called here, not in a callback of the loop: its errors end this request.
            results.add_done_callback(lambda _: told.put_nowait(None))
            while (token := await told.get()) is not None:
                on_tokens((token,))
        return (await asyncio.shield(results))[row]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a deterministic engine from starting a wave while work outside the event loop is in progress."""
        self._holds += 1
        self._released.clear()
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self._released.set()

    async def update(self, folder: str, version: int, probe: Probe | None = None) -> float:
        """Load weights between two waves and verify them; see `Engine.update`."""
        self._check_open(fault=False)
        await asyncio.to_thread(check_weights, folder, self._model_dir)
        self._updates += 1
        try:
            return await self._in_thread(lambda: self._load(Path(folder), version, probe))
        finally:
            self._updates -= 1

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        """Return the log-probs of a sequence; see `Engine.score`."""
        self._check_open(fault=False)
        room_for(len(token_ids), 1, self.max_model_len)
        images = await self._inputs(token_ids, media)
        return await self._in_thread(lambda: score_tokens(self._model, token_ids, self._device, images))

    async def close(self) -> None:
        """End the background thread after its current wave."""
        if self._closed:
            return
        self._closed = True
        if self._pump is not None:
            self._pump.cancel()
        for waiting in (w for w in self._waiting if not w.wave.done()):
            waiting.wave.set_exception(RuntimeError("the engine was closed before the request ran"))
        self._waiting.clear()
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        del self._model

    async def _inputs(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> ImageInputs | None:
        """Return the pixels of a prompt's pictures; a deterministic engine starts no wave meanwhile."""
        if not media:
            return None
        with self.hold():
            return await asyncio.to_thread(self._pixels, token_ids, media)

    def _pixels(self, token_ids: Sequence[int], media: Sequence[PromptImage]) -> ImageInputs | None:
        pictures = self._images.opened(token_ids, media)
        return ImageInputs.join([image_inputs([picture], self._images.processor) for picture in pictures])

    def _check_open(self, fault: bool = True) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if fault and self._fault is not None:
            raise WeightUpdateError(self._fault)

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _run_waves(self) -> None:
        """Run waves until no request waits. A wave's error reaches its own requests, and the next wave continues."""
        while self._waiting:
            await self._settle()
            self._waiting = [w for w in self._waiting if not w.wave.cancelled()]
            if self._deterministic:
                self._waiting.sort(key=lambda w: w.request_id)
            wave, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            if not wave:
                continue
            jobs = [waiting.job for waiting in wave]
            results = self._in_thread(partial(self._sample, jobs))
            for row, waiting in enumerate(wave):
                waiting.wave.set_result((results, row))
            await asyncio.wait([results])

    async def _settle(self) -> None:
        """Return once no request has arrived for some passes of the event loop and no `hold` is active."""
        passes = _SETTLE_PASSES_DETERMINISTIC if self._deterministic else _SETTLE_PASSES
        quiet, seen = 0, len(self._waiting)
        while quiet < passes:
            if self._deterministic and self._holds:
                await self._released.wait()
                quiet = 0
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    def _sample(self, jobs: Sequence[DecodeRequest]) -> list[Generation]:
        self._check_open()
        return run_wave(self._model, self._banned_V, jobs, self.version)

    def _load(self, folder: Path, version: int, probe: Probe | None) -> float:
        self._fault = f"the update to version {version} from {folder} did not complete"
        remark = merged_into(folder, self._model_dir)
        own = self._model.state_dict()
        watch = LoadWatch(partial(_place, own), self._model.dtype)
        tensors = watch.published(published_tensors(folder, self._model_dir, self._device))
        try:
            missing, unexpected = copy_tensors(own, watch.stored(tensors))
        except ValueError as error:
            raise WeightUpdateError(f"the weights in {folder} do not fit the model: {error}{remark}") from error
        missing = [name for name in missing if name not in self._model.all_tied_weights_keys]
        if is_adapter(folder):
            unexpected = []  # A base may hold tensors that this model does not use; its start ignored them too.
        if missing or unexpected:
            raise WeightUpdateError(
                f"the weights in {folder} do not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}{remark}"
            )
        arrived = factor_checksums(folder) if is_adapter(folder) else watch.arrived
        rows = {key: found.row(_checksum(own[key], found), own[key].numel()) for key, found in watch.loaded.items()}
        check_load(
            [{"arrived": arrived, "missing": (), "rows": rows}], probe.tensors if probe is not None else None, version
        )
        self.version = version
        difference = 0.0
        if probe is not None:
            images = self._pixels(probe.token_ids, probe.media)
            scored = score_tokens(self._model, probe.token_ids, self._device, images)
            difference = probe_difference(probe, scored, version, remark)
        self._fault = None
        return difference


def _place(own: Mapping[str, torch.Tensor], name: str) -> TensorPart | None:
    """Return the part of a model's state that a published tensor is loaded into."""
    if (tensor := own.get(name)) is None:
        return None
    size = tensor.element_size()
    row_bytes = tensor.shape[-1] * size if tensor.ndim else size
    return TensorPart(name, tensor.dtype, word_of(row_bytes, size), tuple(tensor.shape))


def _checksum(tensor: torch.Tensor, found: Loaded) -> int:
    return checksum(tensor, word=found.part.word, ordered=found.ordered)
