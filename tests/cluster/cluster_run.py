"""A small run for the cluster tests; as a script, a driver that starts it, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from genevolve_ray.config import RunConfig, load_config

HERE = Path(__file__).parent
CONTEXT = 640


def build_model(folder: Path) -> str:
    """Write a tiny random Qwen3 with the atlas tokenizer, for the atlas profile to fit its prompt."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from genevolve_ray.atlas.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_config(root: Path, *overrides: str) -> RunConfig:
    """Return the embedded preset over the plug-ins of these tests and the reference engine."""
    environment = f"{{env_vars: {{PYTHONPATH: {HERE}}}}}"
    return load_config(
        "atlas",
        [
            "engine.kind=transformers",
            "engine.max_model_len=null",
            "loop.parity_limit=1.0e-4",
            "learner.threads=1",
            "cluster.object_store_mib=80",
            "cluster.start_timeout=400",
            "tools={type: 'cluster_plugins:Tools'}",
            f"renderer={{type: 'cluster_plugins:Renderer', config: {{marker: {root / 'died'}}}}}",
            "judge={type: 'cluster_plugins:Judge'}",
            *(f"{role}.runtime_env={environment}" for role in ("tools", "renderer", "judge")),
            *overrides,
        ],
    )


async def hold(root: Path) -> None:
    """Start a renderer and a judge on a private cluster, write the ids of all processes, and wait."""
    import psutil

    from genevolve_ray.cluster.launch import launched
    from genevolve_ray.evolution.inference import Wanted

    config: Any = run_config(root)
    wanted = Wanted(policy=None, render=True, judge=True)
    async with launched(config, wanted, run_name="hold", images_uri=str(root / "images")):
        pids = [process.pid for process in psutil.Process().children(recursive=True)]
        temporary = root / "pids.tmp"
        temporary.write_text(" ".join(map(str, pids)), encoding="utf-8")
        temporary.rename(root / "pids")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1])))
