"""Settings of the engines. Importing this module is cheap: no torch, no vLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.records.base import Config

MIB = 1 << 20


class TransformersConfig(Config):
    """Configure the reference engine."""

    deterministic: bool = False
    """Waves form only when the event loop is quiet, in the order of request ids, on one thread: bit-equal runs."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of the engine's thread; None leaves torch as it is."""


class VllmConfig(Config):
    """Configure the vLLM engine."""

    kv_cache_mib: int | None = Field(default=256, ge=1)
    """Memory of the key-value cache. None, which is the default on a GPU: vLLM takes its share of the GPU
    (`gpu_memory_utilization`)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM may take, where `kv_cache_mib` is None."""
    enforce_eager: bool = True
    """False captures CUDA graphs and compiles. An update copies weights into the memory that the graphs read, so they stay
    valid. Not run on a GPU. On a CPU it compiles alone, by torch's C++ backend, which needs g++: the first start takes a
    minute longer, and passes of a small model take 0.9 of the time."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one engine is sharded over."""
    keep_cache: bool = False
    """Keep the key-value cache over a weight update instead of computing it again. Sequences then continue on keys and
    values of older versions, and so do prompts that begin alike: `parity` of the next step shows what this costs."""
    sleep: bool = False
    """Free the engine's weights and cache during the learner's step, where both share a GPU: the engine may then take
    what the learner's weights and optimizer leave, and the learner's activations what the engine leaves. Needs
    `loop.mode=sync`. Not run on a GPU; on a CPU the engine only pauses."""
    max_batched_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one pass of the engine. None: 8,192 on a GPU, where longer prompts are read in pieces between the
    tokens of other sequences. On a CPU a prompt is read in one piece, so None holds the longest, and at least 4,096."""
    block_size: int | None = Field(default=None, ge=16, multiple_of=16)
    """Tokens in one block of the key-value cache, the unit in which sequences share a prefix. None: 32 on a CPU, vLLM's
    choice on a GPU."""
    fp32_head: bool = False
    """Compute logits in float32 over bfloat16 activations, as the learner always does: a smaller `parity`."""
    quantization: Literal["fp8"] | None = None
    """`fp8`: linear layers sample with 8-bit weights, one scale for each output channel, and 8-bit activations. Every
    update quantizes the learner's weights anew (vLLM's `fp8_per_channel`). Policy and learner then differ: `parity` shows
    by how much, and `loop.parity_limit` may need to be set. Needs a 16-bit `engine.dtype`. Not run on a GPU."""
    threads: int | None = Field(default=None, ge=1)
    """OpenMP threads of the engine process. None: 1, and on a CPU 2 for a model of at least 10 million parameters, where
    there are two cores. Thread pools that overlap with the learner's may cost up to ten times."""
    seed: int = 0
    """Seeds requests that carry no seed of their own."""
    max_images: int = Field(default=0, ge=0)
    """Most pictures of one sequence, for a policy that sees; by default as many as the profile can show in one episode."""

    @model_validator(mode="after")
    def _sleep_keeps_no_cache(self) -> VllmConfig:
        if self.sleep and self.keep_cache:
            raise ValueError("vllm.sleep=true frees the cache that vllm.keep_cache=true would keep: set one of them")
        return self


class EngineConfig(Config):
    """Configure the engine that samples."""

    kind: Literal["vllm", "transformers"] = "vllm"
    """`vllm`, or `transformers`, the reference engine."""
    device: str = "cpu"
    """Torch device of the engine, such as `cpu` or `cuda`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens a sequence may have in all; by default the longest episode of the profile, or fewer where the model holds
    fewer."""
    max_concurrent: int = Field(default=64, ge=1)
    """Most sequences that are decoded together; more requests wait their turn. In a run it is by default the samples of a
    step that one engine plays, at least 48 and at most 256."""
    vllm: VllmConfig = VllmConfig()
    """Settings of the vLLM engine."""
    transformers: TransformersConfig = TransformersConfig()
    """Settings of the reference engine."""

    @model_validator(mode="after")
    def _cache_on_a_gpu(self) -> EngineConfig:
        """Let vLLM size its cache on a GPU, unless a size is given; the resolved configuration shows it."""
        if self.device != "cpu" and "kv_cache_mib" not in self.vllm.model_fields_set:
            object.__setattr__(self, "vllm", self.vllm.model_copy(update={"kv_cache_mib": None}))
        return self

    @model_validator(mode="after")
    def _only_in_vllm(self) -> EngineConfig:
        if self.vllm.sleep and self.kind != "vllm":
            raise ValueError(f"vllm.sleep=true needs kind=vllm, got {self.kind}: the reference engine keeps its memory")
        if self.vllm.quantization and (self.kind != "vllm" or self.dtype == "float32"):
            raise ValueError(
                f"vllm.quantization={self.vllm.quantization} needs kind=vllm and dtype=bfloat16 or float16, "
                f"got kind={self.kind} and dtype={self.dtype}"
            )
        return self

    @model_validator(mode="after")
    def _deterministic_needs_transformers(self) -> EngineConfig:
        if self.transformers.deterministic and self.kind != "transformers":
            raise ValueError(
                f"transformers.deterministic is set, but kind is {self.kind!r}: only that engine is bit-exact"
            )
        return self
