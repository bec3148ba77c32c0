"""Checks of a model folder and a request before anything expensive starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.protocol import PromptTooLong, WeightUpdateError
from genevolve_ray.models import architecture
from genevolve_ray.models.adapters import AdapterMisfit, check_published, is_adapter
from genevolve_ray.models.image_processor import check_image_processor, check_torchvision, json_object

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
    return json_object(config_file)


def sees(config: dict[str, Any]) -> bool:
    """Return whether a model's configuration is that of a vision-language model."""
    return config.get("vision_config") is not None


def vocabulary_size(model_dir: str | Path) -> int:
    """Return V, the rows of the model's embedding; its tokenizer may know fewer ids. Raises like `read_model_config`."""
    size = architecture.text_part(read_model_config(model_dir)).get("vocab_size")
    if size is None:
        raise ValueError(f"{Path(model_dir) / 'config.json'} has no vocab_size")
    return int(size)


def check_vocabulary(model_dir: str | Path, tokenizer: Any) -> None:
    """Check that the model embeds every id of its tokenizer. Raises ValueError naming the first that it does not."""
    rows = vocabulary_size(model_dir)
    beyond = {i: text for text, i in tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"the tokenizer in {model_dir} has {len(tokenizer)} ids, but the model embeds {rows}: it has no row for "
            f"{beyond[first]!r} (id {first})"
        )


def context_length(model_dir: str | Path) -> int | None:
    """Return the most tokens that the model's positions allow, None where its config does not state it."""
    return architecture.context_length(read_model_config(model_dir))


def engine_context(model_dir: str | Path, asked: int | None) -> int | None:
    """Return the tokens of an engine's context: as many as requested, by default the model's own limit.

    Raises:
        ValueError: when more are requested than the model's positions allow; the message names both.
    """
    config = read_model_config(model_dir)
    own = architecture.context_length(config)
    if asked is None or own is None:
        return asked or own
    if asked > own:
        kind = architecture.changing_rope(config)
        why = f": with rope_type {kind}, positions beyond it would change while a sequence grows" if kind else ""
        raise ValueError(
            f"engine.max_model_len={asked}, but the model supports only {own} ({Path(model_dir) / 'config.json'}){why}"
        )
    return asked


def check_samplable(model_dir: str | Path, engine: EngineConfig) -> None:
    """Check that an engine can sample from the model in `model_dir`, without importing torch or vLLM.

    Raises:
        FileNotFoundError: If the folder or one of its parts is missing.
        ValueError: Naming the file, the key and the value that the engine cannot compute.
    """
    if engine.kind == "vllm":
        check_model(model_dir, device=engine.device)
        check_shards(model_dir, engine.vllm.tensor_parallel_size)
        check_pictures(model_dir, engine.vllm.max_images)
    else:
        check_reference(model_dir)


def check_shards(model_dir: str | Path, ways: int) -> None:
    """Check that vLLM can divide the model's attention heads by `ways`. Raises ValueError naming key and file."""
    heads = architecture.text_part(read_model_config(model_dir)).get("num_attention_heads")
    if heads is not None and int(heads) % ways:
        raise ValueError(
            f"engine.vllm.tensor_parallel_size={ways} does not divide the {heads} attention heads of the model "
            f"({Path(model_dir) / 'config.json'})"
        )


def check_pictures(model_dir: str | Path, max_images: int) -> None:
    """Check that the model in `model_dir` can take pictures, where there may be any (`engine.vllm.max_images`).

    Raises ValueError naming the setting or the file that prevents it.
    """
    if not max_images:
        return
    if not sees(read_model_config(model_dir)):
        raise ValueError(f"engine.vllm.max_images={max_images}, but the model in {model_dir} does not see")
    check_image_processor(model_dir)


def check_reference(model_dir: str | Path) -> None:
    """Check that the reference engine can decode the model in `model_dir`. Raises like `check_samplable`."""
    config = read_model_config(model_dir)
    if strange := architecture.strange_layers(config):
        raise ValueError(
            f"layer_types in {Path(model_dir) / 'config.json'} has {', '.join(strange)}: engine.kind=transformers decodes "
            f"only {' and '.join(sorted(architecture.DECODED_LAYERS))}"
        )


def check_model(model_dir: str | Path, *, device: str = "cpu") -> None:
    """Check that vLLM can sample from the model in `model_dir` on `device`, without importing torch or vLLM.

    Raises:
        FileNotFoundError: If the folder or one of its parts is missing.
        ValueError: If the model has vision and torchvision is not installed; on a CPU, if head_dim is below 32 (the
            attention kernel fails at the first token).
    """
    config = read_model_config(model_dir)
    if sees(config):
        check_torchvision(model_dir)  # vLLM imports it for such a model, also where observations are text.
    if architecture.changing_rope(config) == "dynamic":
        raise ValueError(
            f"rope_type dynamic in {Path(model_dir) / 'config.json'}: vLLM fixes the angles that the learner derives from "
            "the length of each sequence: use engine.kind=transformers"
        )
    text = architecture.text_part(config)
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
