"""Pictures from any diffusers pipeline, in this process.

Shape legend: B pictures of a batch, H x W pixels, 3 colors in [0, 1].
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.renderers.batching import Batcher
from genevolve_ray.renderers.diffusers_config import DiffusersConfig, PipelinePlan
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS, PromptWatch

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_CANVAS_SIDE = 1024
_LEAST_SIDE = 64
"""Pixels on the shorter side to which a smaller reference is scaled up."""
_SEED_BITS = 63
_WARM_UP_PROMPT = "a red apple on a wooden table"


@dataclass(frozen=True)
class _Job:
    prompt: str
    pictures: tuple[PillowImage, ...]
    seed: int


@dataclass(frozen=True)
class _Drawn:
    data: bytes
    cut: str
    """How the prompt was cut, "" where it was not."""


class DiffusersRenderer:
    """Render with a diffusers pipeline in a separate thread, one call at a time, without blocking the event loop.

    Guarantees:

    - The same prompt, references and seed give the same bytes from the same process on the same hardware and libraries,
      as long as it renders them alone (`max_batch=1`). On GPUs this holds as far as their kernels are deterministic.
    - Every picture has its own generator, so its noise depends on its seed, never on the rest of the batch. With
      `max_batch` above 1 kernels may round differently for different batch sizes: pictures then agree approximately,
      not bit for bit.
    - These failures are `InfraFailure`s: a reference that cannot be decoded, a picture that is not finite, has the
      wrong size or has one flat color, a lack of memory, and an error inside the pipeline. A batch that does not fit
      into memory is split and tried again.
    """

    Config = DiffusersConfig

    def __init__(self, config: DiffusersConfig) -> None:
        """Load the pipeline.

        Raises:
            ValueError: naming the setting that the pipeline does not take, or the part that cannot be loaded.
                With `warm_up` also with the reason why a first picture failed.
        """
        self.config = config
        self._plan = PipelinePlan(config)
        self._device = _device(config.device)
        if self._device == "cpu" and config.offload != "none":
            raise ValueError(f"offload={config.offload!r} needs an accelerator, but device is cpu")
        dtype = config.dtype if config.dtype != "auto" else "float32" if self._device == "cpu" else "bfloat16"
        self.identity = self._plan.identity(dtype)
        self.pipeline = _load(self._plan, self._device, dtype)
        self._watch = PromptWatch(self.pipeline, self._plan.max_sequence_length)
        self._broken = ""
        self._batcher: Batcher[_Job, _Drawn] = Batcher(
            self._render,
            max_batch=config.max_batch,
            wait_s=config.batch_wait_ms / 1000,
            name="diffusers",
            initializer=self._set_threads,
        )
        if config.warm_up:
            self._warm_up()

    @classmethod
    def check(cls, config: DiffusersConfig) -> None:
        """Check a config against the pipeline class and the folders it names, without reading weights.

        Raises:
            ValueError: as construction does.
        """
        PipelinePlan(config)

    @property
    def takes_references(self) -> bool:
        """True if reference pictures reach the generator; otherwise `identity` says `references-ignored`."""
        return self._plan.traits.references != "none"

    @property
    def deterministic(self) -> bool:
        """True if equal calls are guaranteed equal bytes: on a CPU, one picture at a time."""
        return self._device == "cpu" and self.config.max_batch == 1 and not self.config.compile

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG for a prompt and the references that the pipeline takes, in ordinal order.

        Raises:
            InfraFailure: for the failures that the class lists.
        """
        started, failed = monotonic(), 1
        try:
            pictures, key = await asyncio.to_thread(self._prepared, references)
            drawn = await self._batcher.submit(key, _Job(prompt, pictures, seed))
            failed = 0
            if drawn.cut:
                record_usage(CUT_PROMPTS, Usage(images=1))
        finally:
            spent = Usage(calls=1, failed_calls=failed, images=1 - failed, seconds=monotonic() - started)
            record_usage("renderer", spent)
        return drawn.data

    def check_health(self) -> None:
        """Raise RuntimeError after an error of the device that only a new process can clear."""
        if self._broken:
            raise RuntimeError(self._broken)

    def close(self) -> None:
        """Let the rendering thread end."""
        self._batcher.close()

    def _set_threads(self) -> None:
        import torch

        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    def _warm_up(self) -> None:
        """Make a picture of a prompt and a reference, if the pipeline takes one. Raises ValueError when that fails."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
        pictures, _ = self._prepared([buffer.getvalue()])
        outcome = self._batcher.alone(_Job(_WARM_UP_PROMPT, pictures, seed=0))
        if isinstance(outcome, BaseException):
            self.close()
            raise ValueError(f"a first image with {self._plan.settings} failed: {outcome}")

    # References

    def _prepared(self, references: Sequence[bytes]) -> tuple[tuple[PillowImage, ...], Hashable]:
        """Return the pipeline's inputs: decoded references, a blank canvas where it requires one, or nothing.

        The second value is the common part of the calls of one batch: the shapes, or the references where a batch
        shares them.
        """
        from PIL import Image, ImageOps

        traits, config = self._plan.traits, self.config
        size = (config.width or _CANVAS_SIDE, config.height or _CANVAS_SIDE)
        taken = {"none": 0, "first": 1, "list": len(references)}[traits.references]
        pictures = [_decoded(data, i, config) for i, data in enumerate(references[:taken], start=1)]
        if not pictures and traits.needs_picture:
            pictures = [Image.new("RGB", size, "white")]
        if config.width and "width" not in self._plan.parameters:  # The picture has the size of its reference.
            pictures = [ImageOps.fit(picture, size) for picture in pictures]
        if traits.batches == "shared":
            return tuple(pictures), tuple((p.size, hashlib.sha256(p.tobytes()).digest()) for p in pictures)
        return tuple(pictures), tuple(picture.size for picture in pictures)

    # In the rendering thread

    def _render(self, jobs: list[_Job]) -> list[_Drawn | InfraFailure]:
        """Return a PNG or the failure of each job."""
        outcome = self._call(jobs)
        if not isinstance(outcome, InfraFailure):
            return outcome
        if isinstance(outcome, _OutOfMemory):
            _free_memory()  # Here no exception references the frames of the call any more.
            if len(jobs) > 1:
                half = len(jobs) // 2
                return self._render(jobs[:half]) + self._render(jobs[half:])
        return [InfraFailure(str(outcome)) for _ in jobs]

    def _call(self, jobs: list[_Job]) -> list[_Drawn | InfraFailure] | InfraFailure:
        import torch

        try:
            with self._watch.of([job.prompt for job in jobs]):
                result = self.pipeline(**self._arguments(jobs))
        except (torch.OutOfMemoryError, MemoryError):
            return _OutOfMemory(f"{self._plan.name}: out of memory with {len(jobs)} image(s) in one batch")
        except torch.AcceleratorError as error:
            self._broken = f"{self._plan.name}: the device failed: {_line(error)}"
            return InfraFailure(self._broken)
        except Exception as error:  # noqa: BLE001  library code raises anything on a prompt, a reference or a setting
            return InfraFailure(f"{self._plan.name}: {type(error).__name__}: {_line(error)}")
        images, withheld = np.asarray(result.images), getattr(result, "nsfw_content_detected", None)
        if images.ndim != 4 or images.shape[0] != len(jobs) or images.shape[3] != 3:
            return InfraFailure(f"{self._plan.name}: {len(jobs)} RGB image(s) expected, got shape {images.shape}")
        hidden = withheld if isinstance(withheld, list) else [False] * len(jobs)
        cuts = [self._watch.cut(job.prompt) for job in jobs]
        return [self._encoded(*one) for one in zip(images, map(bool, hidden), cuts, strict=True)]

    def _arguments(self, jobs: list[_Job]) -> dict[str, Any]:
        """Return the arguments of one call: plain values for one job, lists with separate generators for several."""
        import torch

        plan, config, several = self._plan, self.config, len(jobs) > 1
        where = "cpu" if config.seed_device == "cpu" else self._device
        generators = [torch.Generator(where).manual_seed(job.seed % (1 << _SEED_BITS)) for job in jobs]
        prompts = [job.prompt for job in jobs]
        arguments: dict[str, Any] = {
            **config.asked,
            "prompt": prompts if several else prompts[0],
            "generator": generators if several else generators[0],
            "output_type": "np",
        }
        if several and config.negative_prompt is not None:
            arguments["negative_prompt"] = [config.negative_prompt] * len(jobs)
        if config.width and config.height and "width" in plan.parameters:
            arguments |= {"width": config.width, "height": config.height}
            if "max_area" in plan.parameters:  # Kontext scales the requested size to this area.
                arguments.setdefault("max_area", config.width * config.height)
        if pictures := jobs[0].pictures:
            if plan.traits.references == "list":
                arguments["image"] = list(pictures)
            else:
                arguments["image"] = [job.pictures[0] for job in jobs] if several else pictures[0]
        return arguments

    def _encoded(self, image: np.ndarray[Any, Any], withheld: bool, cut: str) -> _Drawn | InfraFailure:
        """Return one picture, float[H, W, 3], as PNG, or the reason why it is invalid."""
        from PIL import Image

        name, (height, width) = self._plan.name, image.shape[:2]
        if cut and self.config.long_prompts == "refuse":
            return InfraFailure(f"{name}: {cut} (long_prompts: refuse)")
        if withheld:
            return InfraFailure(f"{name}: withheld by the pipeline's safety checker")
        if not np.isfinite(image).all():
            return InfraFailure(f"{name}: the image is not finite (try dtype bfloat16 or float32)")
        if self.config.width and (width, height) != (self.config.width, self.config.height):
            return InfraFailure(
                f"{name}: {self.config.width} x {self.config.height} pixels requested, got {width} x {height}"
            )
        pixels = (image * 255).round().clip(0, 255).astype(np.uint8)
        if pixels.min() == pixels.max():
            return InfraFailure(f"{name}: the image is uniformly gray or black")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return _Drawn(buffer.getvalue(), cut)


class _OutOfMemory(InfraFailure):
    pass


def _decoded(data: bytes, ordinal: int, config: DiffusersConfig) -> PillowImage:
    """Return a reference as RGB, with transparency on white. Raises InfraFailure when it is not a picture."""
    from PIL import Image

    limits = PictureLimits(max_pixels=config.max_pixels, long_side=config.reference_side)
    try:
        picture: PillowImage = Image.open(io.BytesIO(clean_picture(data, limits).data))
    except ImageRefused as error:
        raise InfraFailure(f"reference {ordinal} cannot be used: {error}") from error
    if picture.mode != "RGB":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    if min(picture.size) < _LEAST_SIDE:
        # Pipelines count in patches, and divide by their number, which must not be 0.
        scale = _LEAST_SIDE / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    picture.load()
    return picture


def _device(name: str) -> str:
    """Return the device to use. Raises ValueError when it does not exist."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}.get(kind)
    if count is None:
        count = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count()
    if int(index or 0) >= count:
        raise ValueError(f"device={name!r}: this machine has {count} of this kind")
    return name


def _load(plan: PipelinePlan, device: str, dtype: str) -> Any:
    """Return the pipeline, on its device, with its LoRA. Raises ValueError naming the part that cannot be loaded."""
    import torch

    config = plan.config
    place, asked = str(Path(config.model).expanduser()), getattr(torch, dtype)
    try:
        pipeline = plan.kind.from_pretrained(place, revision=config.revision, dtype=asked, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model={config.model!r} cannot be loaded as {plan.name}: {_line(error)}") from error
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    if all(module.dtype != asked for module in modules):  # Older versions use another name for the argument.
        pipeline.to(dtype=asked)
    pipeline.set_progress_bar_config(disable=True)
    if config.lora is not None:
        _apply_lora(pipeline, config)
    if config.compile:
        for part in ("transformer", "unet"):
            if isinstance(module := getattr(pipeline, part, None), torch.nn.Module):
                module.compile()
    if config.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif config.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return pipeline


def _apply_lora(pipeline: Any, config: DiffusersConfig) -> None:
    """Add a LoRA to the pipeline. Raises ValueError naming it when it does not fit."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"lora={config.lora!r}: {type(pipeline).__name__} does not support LoRA")
    options = {"weight_name": config.lora_file} if config.lora_file else {}
    try:
        pipeline.load_lora_weights(
            str(Path(config.lora or "").expanduser()), adapter_name="lora", use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"lora={config.lora!r} cannot be loaded: {_line(error)}") from error
    # diffusers only warns where no name in the file is one of the model's.
    if not any("lora" in adapters for adapters in pipeline.get_list_adapters().values()):
        raise ValueError(f"lora={config.lora!r}: none of its weights belongs to {type(pipeline).__name__}")
    if config.lora_fuse:
        pipeline.fuse_lora(lora_scale=config.lora_scale, adapter_names=["lora"])
        pipeline.unload_lora_weights()
    else:
        pipeline.set_adapters("lora", adapter_weights=config.lora_scale)


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
