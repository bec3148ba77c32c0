"""Settings of the in-process renderer, and their check against a pipeline class before any weight is read."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from genevolve_ray.records.base import Config
from genevolve_ray.renderers.diffusers_traits import References, Traits, traits_of

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_RESERVED = frozenset(
    """prompt image generator latents num_images_per_prompt output_type return_dict callback_on_step_end
    callback_on_step_end_tensor_inputs callback callback_steps num_inference_steps guidance_scale true_cfg_scale
    negative_prompt strength width height""".split()
)


class DiffusersConfig(Config):
    """Configure the pipeline, its device, and its sampling. A value of None means the pipeline's own default."""

    model: str = Field(min_length=1)
    """A folder in diffusers' layout, or an id of the hub; only safetensors are read."""
    revision: str | None = Field(default=None, pattern=r"^[\w./-]+$")
    """Branch, tag or commit on the hub."""
    pipeline: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    """A pipeline class of diffusers; default: the one that `model_index.json` names."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on an accelerator, float32 on a CPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")
    """`auto`: the first GPU, else the CPU."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep the weights in host memory: one part at a time on the device (`model`), or one layer (`sequential`)."""
    compile: bool = False
    """Compile the denoiser; the first picture of each shape then takes minutes."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch in the rendering thread."""
    warm_up: bool = True
    """Render one image at construction. This detects rejected values, insufficient memory and a dtype that gives NaN
    before a run. It takes the time of one image per replica."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps (`num_inference_steps`)."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """The pipeline's parameter of that name."""
    true_cfg_scale: float | None = Field(default=None, ge=0)
    """The pipeline's parameter of that name."""
    negative_prompt: str | None = None
    """Content that the image should not show."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """How far image-to-image departs from the reference."""
    width: int | None = Field(default=None, ge=16, multiple_of=16)
    """Pixels; with `height`."""
    height: int | None = Field(default=None, ge=16, multiple_of=16)
    """Pixels. None: the pipeline's choice, which may follow the first reference."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Any further parameter of the pipeline's call, such as `max_sequence_length`."""
    long_prompts: Literal["mark", "refuse"] = "mark"
    """A prompt that is longer than the text encoder reads: `mark` counts its image as `prompts_cut`; `refuse` makes it an
    infrastructure failure, so that no image of half a program is judged."""
    seed_device: Literal["cpu", "device"] = "cpu"
    """Device of the random noise. From the CPU it is the same for every device."""

    references: Literal["auto", "list", "first", "none"] = "auto"
    """References that the pipeline receives; `auto`: the known value for its class."""
    reference_side: int = Field(default=2048, ge=16)
    """References are scaled down to this many pixels on their longer side."""
    max_pixels: int = Field(default=40_000_000, ge=256)
    """Width times height, of a reference and of the picture."""

    lora: str | None = Field(default=None, min_length=1)
    """A folder with `pytorch_lora_weights.safetensors`, a safetensors file, or an id of the hub."""
    lora_file: str | None = Field(default=None, pattern=r"^[\w.-]+\.safetensors$")
    """Which file of that folder or id."""
    lora_scale: float = 1.0
    """Weight of the LoRA."""
    lora_fuse: bool = False
    """Add it to the weights once, which saves time at each step."""

    max_batch: int = Field(default=1, ge=1, le=256)
    """Calls that arrive together are rendered together, where the class can."""
    batch_wait_ms: float = Field(default=50.0, ge=0, le=60_000)
    """Milliseconds that the first call of a batch waits for others."""

    @field_validator("options")
    @classmethod
    def _not_ours(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(_RESERVED & set(value)):
            raise ValueError(f"options must not contain {', '.join(taken)}: use its own setting, or it is fixed")
        return value

    @model_validator(mode="after")
    def _sizes(self) -> DiffusersConfig:
        if (self.width is None) != (self.height is None):
            raise ValueError(f"width={self.width} and height={self.height}: give both or neither")
        if self.width and self.height and self.width * self.height > self.max_pixels:
            raise ValueError(f"width={self.width} x height={self.height} is more than max_pixels={self.max_pixels}")
        if self.lora is None and (self.lora_file or self.lora_fuse):
            raise ValueError(f"lora_file={self.lora_file!r}, lora_fuse={self.lora_fuse}: lora is not set")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """The parameters of the call that are set, by the pipeline's names."""
        named = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "true_cfg_scale": self.true_cfg_scale,
            "negative_prompt": self.negative_prompt,
            "strength": self.strength,
        }
        return {**{name: value for name, value in named.items() if value is not None}, **self.options}


class PipelinePlan:
    """Match a config with its pipeline class: the class, the call's parameters, the form of references.

    Raises:
        ValueError: naming the setting that the class does not take, or the model, class or LoRA that does not exist.
    """

    def __init__(self, config: DiffusersConfig) -> None:
        """Read `model_index.json` and the signature of the class, but no weights."""
        check_place("model", config.model)
        if config.lora is not None:
            check_place("lora", config.lora)
        self.config = config
        self.kind: Any = pipeline_class(config)
        self.name: str = self.kind.__name__
        self.parameters = frozenset(inspect.signature(self.kind.__call__).parameters) - {"self"}
        self._check_parameters()
        known = traits_of(self.name, self.parameters)
        references: References = known.references if config.references == "auto" else config.references
        if references != "none" and "image" not in self.parameters:
            raise ValueError(f"references={references!r}: {self.name} accepts no image")
        self.traits = Traits(references, known.batches, known.needs_picture)
        if config.max_batch > 1 and known.batches == "never":
            raise ValueError(f"max_batch={config.max_batch}: {self.name} renders one prompt at a time")

    def _check_parameters(self) -> None:
        if "prompt" not in self.parameters or "generator" not in self.parameters:
            raise ValueError(f"pipeline {self.name} does not render from a prompt and a seed")
        if strange := sorted(set(self.config.asked) - self.parameters):
            own = {"num_inference_steps": "steps"}
            names = ", ".join(own.get(name, name) for name in strange)
            takes = ", ".join(sorted(self.parameters - _RESERVED | (self.parameters & set(_NAMED))))
            raise ValueError(f"{self.name} does not accept {names}; it accepts {takes}")

    @property
    def max_sequence_length(self) -> int | None:
        """The tokens that the call's text encoder reads, None where the class has no such parameter."""
        own = inspect.signature(self.kind.__call__).parameters.get("max_sequence_length")
        asked = self.config.options.get("max_sequence_length", own.default if own is not None else None)
        return asked if isinstance(asked, int) else None

    @property
    def settings(self) -> str:
        """The call's settings in one line, for messages."""
        config = self.config
        size = {"width": config.width, "height": config.height} if config.width else {}
        shown = {"dtype": config.dtype, **size, **config.asked}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def identity(self, dtype: str) -> str:
        """Return the name of this generator and its settings: no path, no host, the same on equal machines."""
        config = self.config
        parts = ["diffusers/1", self.name, base_name(config.model) + (f"@{config.revision}" if config.revision else "")]
        shown = {name: config.asked[name] for name in _NAMED if name in config.asked and name != "negative_prompt"}
        parts += [f"{_SHORT.get(name, name)}={value}" for name, value in shown.items()]
        parts += [f"{config.width}x{config.height}" if config.width else "own-size", dtype]
        if config.lora is not None:
            file = f"/{config.lora_file}" if config.lora_file else ""
            parts.append(f"lora={base_name(config.lora)}{file}*{config.lora_scale:g}")
        parts.append("references-ignored" if self.traits.references == "none" else f"refs={self.traits.references}")
        unshown = [config.negative_prompt, config.options, config.reference_side, config.seed_device]
        digest = hashlib.sha256(json.dumps(unshown, sort_keys=True).encode()).hexdigest()[:8]
        return ":".join([*parts, digest])


_NAMED = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "negative_prompt", "strength")
_SHORT = {"num_inference_steps": "steps"}


def base_name(place: str) -> str:
    """Return the last part of a path or hub id, without characters that an identity must not contain."""
    return re.sub(r"[^\w.-]+", "-", Path(place).name or Path(place).resolve().name)


def check_place(key: str, place: str) -> None:
    """Raise ValueError unless a path exists or could be an id of the hub."""
    if not Path(place).expanduser().exists() and not _HUB_ID.match(place):
        raise ValueError(f"{key}={place!r}: no such folder or file, and not a hub id (owner/name)")


def pipeline_class(config: DiffusersConfig) -> Any:
    """Return the configured class, else the one that the model names.

    Raises:
        ValueError: naming the class or the model.
    """
    import diffusers

    name = config.pipeline
    if name is None:
        try:
            index: Any = diffusers.DiffusionPipeline.load_config(
                str(Path(config.model).expanduser()), revision=config.revision
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"model={config.model!r}: {' '.join(str(error).split())[:300]}") from error
        name = str(index.get("_class_name", ""))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ValueError(f"pipeline={name!r}: diffusers {diffusers.__version__} has no such pipeline")
    return kind
