"""The policy as a transformers model: load it, save it, publish its weights, hash its state.

A policy is any causal language model, or a vision-language model. In the latter the text decoder is trained, and the
vision tower (including the projectors into the decoder) stays unchanged.

Shape legend: B sequences, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genevolve_ray.learning.attention import tree_arguments
from genevolve_ray.learning.batch import ImageInputs
from genevolve_ray.learning.tree import TreeLayout
from genevolve_ray.models.companions import copy_companions, copy_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)
_UNSUPPORTED_LOGITS = {"final_logit_softcapping": (None, 0), "logits_scaling": (None, 1), "logit_scale": (None, 1)}


def load_policy(model_dir: str | Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a policy from a local folder in HF layout, in evaluation mode (no dropout).

    The vision tower of a vision-language model is frozen.

    Raises:
        FileNotFoundError: when the folder or its config.json is missing.
        ValueError: for an unknown dtype, a missing device, or a head whose logits are not hidden @ weight.T.
    """
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"policy model folder {str(folder)!r} {what}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown policy dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"policy device {device!r} was asked for, but torch {torch.__version__} sees no GPU")
    sees = hasattr(AutoConfig.from_pretrained(folder, local_files_only=True), "vision_config")
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    # Its own sampling settings have no effect here, and transformers rejects those of some models.
    unused = GenerationConfig()
    model: PreTrainedModel = kind.from_pretrained(
        folder, dtype=DTYPES[dtype], generation_config=unused, local_files_only=True
    )
    head_weight(model)
    if (tower := vision_tower(model)) is not None:
        tower.requires_grad_(False)
    nn.Module.to(model, torch.device(device))
    nn.Module.eval(model)
    return model


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | str | Path, folder: str | Path) -> Path:
    """Write `folder` in HF layout: config, safetensors and tokenizer.

    Args:
        model: the policy.
        tokenizer: a tokenizer, or the folder that the policy was loaded from, whose files are copied unchanged.
        folder: the target; created when missing.

    Raises:
        FileNotFoundError: when the folder of the tokenizer holds no tokenizer file.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, str | Path):
        if not has_tokenizer(tokenizer):
            raise FileNotFoundError(f"no tokenizer files in {str(tokenizer)!r}")
        save_beside(model, tokenizer, target)
    else:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


def save_beside(
    model: PreTrainedModel,
    source: str | Path,
    target: Path,
    state: Mapping[str, Tensor] | None = None,
    dtype: str | None = None,
) -> None:
    """Write the weights of a policy to `target`, and next to them every other file of the folder it came from.

    Only the weights are written by transformers. It reads some files that it then refuses to write, such as sampling
    settings that contradict each other, and it drops others, such as the settings of image processors.

    Args:
        model: the policy, loaded from `source`.
        source: its model folder.
        target: an existing folder.
        state: the weights; by default those of the model.
        dtype: the dtype of `state`, for `config.json`; by default the model's.
    """
    with _other_files_left(model):
        model.save_pretrained(target, state_dict=None if state is None else dict(state))
    copy_companions(source, target, config=False)
    copy_config(source, target, dtype or str(model.dtype).removeprefix("torch."))


@contextmanager
def _other_files_left(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's `save_pretrained` write its weights and nothing else."""
    parts = [part for part in (model.config, getattr(model, "generation_config", None)) if part is not None]
    for part in parts:
        object.__setattr__(part, "save_pretrained", lambda *args, **options: None)
    try:
        yield
    finally:
        for part in parts:
            object.__delattr__(part, "save_pretrained")


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether a folder holds any tokenizer file."""
    return any((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def state_to_folder(state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write a model's state to `folder`/model.safetensors, each tied tensor once."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(unique_weights(state), target / WEIGHTS_FILE, metadata={"format": "pt"})


def unique_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state on the CPU without second names of tied tensors (the first name in module order stays)."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and the SHA-256 of each tensor's bytes: equal means bit-equal state.

    Tensors are hashed in parallel, on all cores: one core does some 2 GB/s.
    """

    def part(name: str) -> bytes:
        tensor = tensors[name].detach().cpu().contiguous()
        body = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1e".encode() + body.digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(part, sorted(tensors)))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def hidden_states(
    model: PreTrainedModel,
    ids_B_T: Tensor,
    images: ImageInputs | None = None,
    cache: Cache | None = None,
    features: Callable[[ImageInputs], Any] | None = None,
    positions: Tensor | None = None,
    layout: TreeLayout | None = None,
    attention: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return the last hidden states [B, T, H] of right-padded sequences, or of one packed row.

    Padded sequences have no attention mask. Padding comes after a causal model's tokens, so it cannot change their
    states, and SDPA keeps its causal fast path. States at padded positions have no meaning.

    Args:
        model: the policy.
        ids_B_T: token ids.
        images: the pictures behind the image tokens, in the order of rows and tokens, for a model with vision.
        cache: receives the keys and values of the tokens.
        features: returns the output of the model's `get_image_features` for pictures; by default it is computed.
        positions: positions of the tokens of a packed row.
        layout: which of them see which, for a model that attends over trees.
        attention: other arguments of the model's attention.
    """
    untyped: Any = model
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None, "position_ids": positions}
    options |= attention or {}
    if layout is not None:
        options |= tree_arguments(layout, ids_B_T.device)
    if images is None:
        states: Tensor = untyped.get_decoder()(input_ids=ids_B_T, **options).last_hidden_state
        return states
    pixels: dict[str, Any] = (
        {"pixel_values": images.pixel_values.to(ids_B_T.device)}
        if features is None
        else {"mm_encoder_outputs": {"image": features(images)}}
    )
    # The model derives the positions (M-RoPE) from the places of the image tokens and the grids.
    seen: Tensor = untyped.base_model(
        input_ids=ids_B_T,
        image_grid_thw=images.grid_thw.to(ids_B_T.device),
        mm_token_type_ids=(ids_B_T == model.config.image_token_id).int(),
        **pixels,
        **options,
    ).last_hidden_state
    return seen


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of the text decoder: its largest list of modules.

    Raises:
        ValueError: when it has none.
    """
    untyped: Any = model
    lists = [m for m in untyped.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder layers")
    # The outermost list comes first, and lists inside it (experts) are smaller.
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def vision_tower(model: nn.Module) -> nn.Module | None:
    """Return the vision tower with its projectors (merger, deepstack mergers), None for a model without vision."""
    tower: nn.Module | None = getattr(getattr(model, "base_model", None), "visual", None)
    return tower


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the output projection [V, H], for logits = hidden @ weight.T.

    Raises:
        ValueError: when this model's logits are more than that product (a bias, soft-capping or scaling).
    """
    untyped: Any = model
    head = untyped.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(f"{type(model).__name__} has no bias-free output projection")
    for key, neutral in _UNSUPPORTED_LOGITS.items():
        if getattr(model.config, key, None) not in neutral:
            raise ValueError(f"{type(model).__name__} changes its logits: {key}={getattr(model.config, key)}")
    weight: Tensor = head.weight
    return weight


def use_threads(count: int) -> None:
    """Let torch use `count` threads in this process."""
    torch.set_num_threads(count)


def release_cached_memory() -> None:
    """Return to the GPU what torch keeps of freed tensors in this process; without effect where it uses none."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def use_deterministic_kernels() -> None:
    """Let torch use in this process only kernels that give equal bits each time; call it before the first on a GPU.

    With `warn_only`, which is not set here, the backward pass of flash attention would stay as it is.
    """
    # cuBLAS reads it once, when the first product is computed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
