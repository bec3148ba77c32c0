"""Checks of a model folder and a request before anything expensive starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genevolve_ray.engines.protocol import Probe, PromptTooLong, WeightUpdateError
from genevolve_ray.models.adapters import AdapterMisfit, check_published, is_adapter

MIN_CPU_HEAD_DIM = 32


def read_model_config(model_dir: str | Path) -> dict[str, Any]:
    """Return the parsed `config.json` of a model folder in Hugging Face layout.

    Raises:
        FileNotFoundError: If the folder, its config.json or its safetensors are missing; the message names the path.
        ValueError: If config.json is not a JSON object.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder does not exist: {folder}")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"model folder has no config.json: {folder}")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"model folder has no *.safetensors: {folder}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{config_file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{config_file} must hold a JSON object, got {type(config).__name__}")
    return config


def sees(config: dict[str, Any]) -> bool:
    """Return whether a model's configuration is that of a vision-language model."""
    return "vision_config" in config


def vocabulary_size(model_dir: str | Path) -> int:
    """Return V, the rows of the model's embedding; its tokenizer may know fewer ids. Raises like `read_model_config`."""
    config = read_model_config(model_dir)
    return int((config.get("text_config") or config)["vocab_size"])


def context_length(model_dir: str | Path) -> int | None:
    """Return the most tokens that the model's positions allow, None where its config does not state it."""
    config = read_model_config(model_dir)
    limit = (config.get("text_config") or config).get("max_position_embeddings")
    return None if limit is None else int(limit)


def check_model(model_dir: str | Path, *, device: str = "cpu") -> None:
    """Check that vLLM can sample from the model in `model_dir` on `device`, without importing torch or vLLM.

    Raises:
        FileNotFoundError: If the folder or one of its parts is missing.
        ValueError: On a CPU, if head_dim is below 32 (the attention kernel fails at the first token) or the model has
            vision (vLLM needs torchvision for it, which a CPU torch does not have).
    """
    config = read_model_config(model_dir)
    if device == "cpu" and sees(config):
        name = (config.get("architectures") or [config.get("model_type")])[0]
        raise ValueError(
            f"vLLM needs torchvision for {name} ({Path(model_dir) / 'config.json'}), which is not available on a CPU: "
            "use engine.kind=transformers"
        )
    text = config.get("text_config") or config
    head_dim = text.get("head_dim")
    if head_dim is None and text.get("hidden_size") and text.get("num_attention_heads"):
        head_dim = text["hidden_size"] // text["num_attention_heads"]
    if device == "cpu" and head_dim is not None and head_dim < MIN_CPU_HEAD_DIM:
        raise ValueError(
            f"head_dim is {head_dim} in {Path(model_dir) / 'config.json'}: "
            f"vLLM on CPU needs head_dim >= {MIN_CPU_HEAD_DIM}"
        )


def check_weights(folder: str | Path, base: str | Path) -> None:
    """Check that `folder` holds loadable weights: whole weights, or an adapter that fits the model folder `base`.

    Raises:
        FileNotFoundError: If it holds no *.safetensors; the message names the path.
        WeightUpdateError: If it holds an adapter that cannot be merged into the base; the message names both.
    """
    try:
        check_published(folder, base)
    except AdapterMisfit as error:
        raise WeightUpdateError(f"nothing was loaded from {folder}: {error}") from error


def room_for(prompt_tokens: int, max_tokens: int, max_model_len: int) -> int:
    """Return the number of tokens that may be sampled: `max_tokens`, or fewer where the context ends first.

    Raises:
        PromptTooLong: If the prompt leaves no room.
        ValueError: If the prompt is empty.
    """
    if prompt_tokens == 0:
        raise ValueError("the prompt is empty")
    if prompt_tokens >= max_model_len:
        raise PromptTooLong(f"the prompt has {prompt_tokens} tokens, but the context holds {max_model_len}")
    return min(max_tokens, max_model_len - prompt_tokens)


def merged_into(folder: str | Path, base: str | Path) -> str:
    """Return the part of an update's error message that names the base; "" where the update does not use it."""
    return (
        f"; the adapter was merged into the base {base}: check that it is the learner's base"
        if is_adapter(folder)
        else ""
    )


def probe_difference(probe: Probe, scored: list[float], version: int, remark: str = "") -> float:
    """Return the mean absolute difference between the learner's log-probs on the probe and the engine's.

    `remark` ends the message of an error.

    Raises:
        WeightUpdateError: If it exceeds the probe's tolerance (or is not a number).
    """
    if len(scored) != len(probe.logprobs):
        raise WeightUpdateError(f"the probe has {len(probe.logprobs)} log-probs, but the engine scored {len(scored)}")
    difference = sum(abs(a - b) for a, b in zip(scored, probe.logprobs, strict=True)) / max(len(scored), 1)
    if not difference <= probe.tolerance:
        raise WeightUpdateError(
            f"after the update to version {version} the engine is off by {difference:.3g} (mean absolute log-prob) "
            f"on the probe, tolerance {probe.tolerance:.3g}{remark}"
        )
    return difference
