"""Start of an engine from settings, and what only some engines can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.protocol import Engine


async def let_sleep(engine: Engine) -> None:
    """Let an engine free its GPU until the next update. Only vLLM can; any other keeps its memory."""
    from genevolve_ray.engines.vllm import VllmEngine

    if isinstance(engine, VllmEngine):
        await engine.sleep()


async def create_engine(
    config: EngineConfig, model_dir: str | Path, banned: Sequence[int] = (), transfer: str | None = None
) -> Engine:
    """Start the engine that `config` names on the model in `model_dir`.

    `transfer` names the transport over device memory by which it may receive weights (`VllmEngine.receive`).

    Raises:
        FileNotFoundError: If the model folder or one of its parts is missing.
        ValueError: If the engine cannot run the model.
    """
    if config.kind == "vllm":
        from genevolve_ray.engines.vllm import VllmEngine

        return await VllmEngine.create(
            model_dir,
            dtype=config.dtype,
            banned=banned,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_concurrent,
            device=config.device,
            config=config.vllm,
            transfer=transfer,
        )
    from genevolve_ray.engines.transformers import TransformersEngine

    return TransformersEngine(
        model_dir,
        dtype=config.dtype,
        banned=banned,
        max_model_len=config.max_model_len,
        device=config.device,
        deterministic=config.transformers.deterministic,
        max_batch=config.max_concurrent,
        threads=config.transformers.threads,
    )
