"""Arguments of vLLM that depend on the model folder and the device, and the environment of its processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genevolve_ray.engines.checks import check_pictures, context_length, read_model_config, sees
from genevolve_ray.engines.config import MIB, VllmConfig
from genevolve_ray.models.adapters import parameter_count, weight_files
from genevolve_ray.models.architecture import text_part

_CPU_BLOCK = 32
"""vLLM's own blocks on a CPU have 128 tokens, of which every turn of a conversation computes up to 127 again."""
_CPU_BATCHED_TOKENS, _GPU_BATCHED_TOKENS = 4096, 8192
_SHARED_FROM, _SHARED_THREADS = 10_000_000, 2
"""Parameters from which a CPU engine has more than one thread, and how many it has then."""


def vllm_environment(*, device: str = "cpu", threads: int = 1, eager: bool = True) -> dict[str, str]:
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
        # Pinning threads to cores would put several engines on the same cores.
        environment |= {"TORCHDYNAMO_DISABLE": str(int(eager)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # AsyncLLM starts its engine process in either case. On CPU this only decides whether the model gets another
        # process below it (seconds of import and half a gigabyte), which a single worker does not need.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment | waiting_threads(device)


def placement(config: VllmConfig, device: str) -> dict[str, Any]:
    """Return the settings of memory and processes."""
    settings: dict[str, Any] = {}
    if config.kv_cache_mib is not None:
        settings["kv_cache_memory_bytes"] = config.kv_cache_mib * MIB
    if device != "cpu":
        settings["gpu_memory_utilization"] = config.gpu_memory_utilization
        if config.sleep:
            settings["enable_sleep_mode"] = True
    return settings | executor(config.tensor_parallel_size, device)


def executor(ways: int, device: str) -> dict[str, str]:
    """Return the setting of vLLM's executor for a model that is sharded over `ways` GPUs.

    In a placement group vLLM would choose its Ray executor, which takes bundles of one GPU each. Ours holds all GPUs of
    an engine in one bundle, so that they are on one node: there vLLM's own processes serve them.
    """
    if ways > 1:
        return {"distributed_executor_backend": "mp"}
    return {"distributed_executor_backend": "uni"} if device == "cpu" else {}


def scheduler(device: str) -> dict[str, Any]:
    """Return the settings of the scheduler; on a CPU vLLM schedules no pass while another one runs."""
    if device == "cpu":
        return {"scheduler_cls": "genevolve_ray.engines.vllm_scheduler.HeldScheduler"}
    return {"scheduler_cls": "genevolve_ray.engines.vllm_scheduler.HeldAsyncScheduler", "async_scheduling": True}


def batching(config: VllmConfig, device: str, max_model_len: int, max_num_seqs: int) -> dict[str, Any]:
    """Return the settings of passes and of the cache's blocks.

    Raises ValueError for fewer tokens than a prompt may have, where prompts are read in one piece.
    """
    tokens = config.max_batched_tokens
    if device == "cpu":
        if tokens is not None and tokens < max_model_len:
            raise ValueError(
                f"engine.vllm.max_batched_tokens={tokens}, but on a CPU a prompt is read in one piece and may have "
                f"max_model_len={max_model_len} tokens"
            )
        # The CPU sampler cannot rewind the generator of a seeded request between two pieces of its prompt.
        settings = {"enable_chunked_prefill": False, "block_size": config.block_size or _CPU_BLOCK}
        return settings | {"max_num_batched_tokens": tokens or max(max_model_len, _CPU_BATCHED_TOKENS)}
    blocks = {} if config.block_size is None else {"block_size": config.block_size}
    # A larger pass over a prompt would delay the next token of all other sequences; each needs one in every pass.
    return {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": max(tokens or _GPU_BATCHED_TOKENS, max_num_seqs),
    } | blocks


def waiting_threads(device: str) -> dict[str, str]:
    """Return the environment variables by which idle threads of OpenMP leave a CPU to others; {} for a GPU.

    Engine, learner and services share the cores. Threads that wait in a loop multiply the time of all of them. Values
    that are set already stay.
    """
    passive = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return {name: os.environ.get(name, value) for name, value in passive.items()} if device == "cpu" else {}


def sight(model_dir: str | Path, max_images: int, device: str) -> dict[str, Any]:
    """Return the settings that depend on whether the model sees. Raises ValueError as `check_pictures`."""
    check_pictures(model_dir, max_images)
    if not sees(read_model_config(model_dir)):
        return {"skip_tokenizer_init": True}
    return {
        # vLLM requires the tokenizer of a model that sees, for text alone too.
        "skip_tokenizer_init": False,
        "limit_mm_per_prompt": {"image": max_images, "video": 0},
        # On the device vLLM leaves pixels raw where a folder's file does not repeat the defaults of its processor.
        "mm_device_do_normalize": False,
        # The largest picture of the processor's settings would take minutes; kv_cache_mib bounds the memory there.
        "skip_mm_profiling": device == "cpu",
    }


def own_threads(model_dir: str | Path, device: str) -> int:
    """Return the OpenMP threads of an engine whose settings give none.

    On a CPU the passes of a small model are too short to be shared. A GPU's engine computes little beside it.
    """
    if device != "cpu" or parameter_count(weight_files(model_dir)) < _SHARED_FROM:
        return 1
    return min(_SHARED_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def positions(model_dir: str | Path) -> dict[str, Any]:
    """Return the change of the model's configuration by which vLLM accepts all positions that a factor allows.

    vLLM expects a `max_position_embeddings` that includes the factor, and rejects longer contexts.
    """
    config = read_model_config(model_dir)
    limit = context_length(model_dir)
    if limit is None or limit <= int(text_part(config)["max_position_embeddings"]):
        return {}
    override = {"max_position_embeddings": limit}
    return {"text_config": override} if config.get("text_config") else override


def quantization(config: VllmConfig) -> dict[str, str]:
    """Return the setting by which vLLM quantizes full-precision weights, at the start and in every update.

    vLLM's own `fp8` accepts only weights that are quantized in their files. A scale for each output channel does not
    depend on the number of GPUs that share a layer.
    """
    return {"quantization": "fp8_per_channel"} if config.quantization == "fp8" else {}


def head(config: VllmConfig) -> dict[str, str]:
    """Return the change of the model's configuration by which vLLM keeps logits in float32."""
    return {"head_dtype": "float32"} if config.fp32_head else {}
