"""Arguments of vLLM that depend on the model folder and the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genevolve_ray.engines.checks import check_pictures, context_length, read_model_config, sees
from genevolve_ray.engines.config import MIB, VllmConfig
from genevolve_ray.models.architecture import text_part


def placement(config: VllmConfig, device: str) -> dict[str, Any]:
    """Return the settings of memory and processes."""
    settings: dict[str, Any] = {}
    if config.kv_cache_mib is not None:
        settings["kv_cache_memory_bytes"] = config.kv_cache_mib * MIB
    if device != "cpu":
        settings["gpu_memory_utilization"] = config.gpu_memory_utilization
    return settings | executor(config.tensor_parallel_size, device)


def executor(ways: int, device: str) -> dict[str, str]:
    """Return the setting of vLLM's executor for a model that is sharded over `ways` GPUs.

    In a placement group vLLM would choose its Ray executor, which takes bundles of one GPU each. Ours holds all GPUs of
    an engine in one bundle, so that they are on one node: there vLLM's own processes serve them.
    """
    if ways > 1:
        return {"distributed_executor_backend": "mp"}
    return {"distributed_executor_backend": "uni"} if device == "cpu" else {}


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
