"""A trained policy inside wider and deeper models that behave exactly as it does.

A larger policy costs more per token. One with random weights would also play other episodes, and a measurement would
compare different work. Here the additional width and the additional layers add nothing to the residual stream at first,
so the first step plays the same turns at every size. The new weights learn from then on.

Shape legend: D hidden, H heads times head size, F width of the feed-forward part, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """Hold the shape of a larger model; the head size stays that of the trained policy."""

    hidden: int
    heads: int
    feed_forward: int
    layers: int


SHAPES = {"11M": Shape(384, 12, 1024, 6), "30M": Shape(512, 16, 1728, 8)}
"""Shapes for the shipped policy of 1M parameters (128, 4, 384, 4), by number of parameters."""


def embed_policy(source: Path, target: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a larger model folder with the behavior of `source`, and return it.

    Raises:
        ValueError: for a policy that is no Qwen3 with tied embeddings and one key head for each query head, and for a
            shape that is smaller than the policy.
    """
    from genevolve_ray.learning.policy import load_policy
    from genevolve_ray.models.companions import copy_companions

    embedded(load_policy(source), shape, seed).save_pretrained(target)
    copy_companions(source, target, config=False)
    return target


def embedded(policy: PreTrainedModel, shape: Shape, seed: int = 0) -> PreTrainedModel:
    """Return the policy inside a model of `shape`; the same for the same seed. Raises ValueError as `embed_policy`."""
    import copy

    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    small = policy.config
    if not isinstance(small, Qwen3Config) or not small.tie_word_embeddings:
        raise ValueError(f"a Qwen3 with tied embeddings is needed, got {small.model_type!r}")
    if small.num_key_value_heads != small.num_attention_heads:
        raise ValueError(f"{small.num_key_value_heads} key heads for {small.num_attention_heads} query heads")
    size = Shape(small.hidden_size, small.num_attention_heads, small.intermediate_size, small.num_hidden_layers)
    if any(new < old for new, old in zip(vars(shape).values(), vars(size).values(), strict=True)):
        raise ValueError(f"{shape} is smaller than the policy, {size}")
    config = copy.deepcopy(small)
    config.hidden_size, config.intermediate_size = shape.hidden, shape.feed_forward
    config.num_attention_heads = config.num_key_value_heads = shape.heads
    config.num_hidden_layers = shape.layers
    config.layer_types = ["full_attention"] * shape.layers
    # The new dimensions are 0, so a mean of squares falls by this factor: the limit below it falls as well.
    config.rms_norm_eps = small.rms_norm_eps * size.hidden / shape.hidden
    torch.manual_seed(seed)
    model: PreTrainedModel = Qwen3ForCausalLM(config)
    torch.nn.Module.eval(model)
    state = dict(policy.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, state.get(name))
    return model


def _fill(name: str, new: Tensor, old: Tensor | None) -> None:
    """Copy a trained tensor into the beginning of the larger one, and remove what would change the residual stream.

    `old` is None in an additional layer. Weights that only read the stream keep their random values: the new dimensions
    hold 0, and what new heads and new units compute is multiplied by 0.
    """
    if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
        new.zero_()
    if old is None:
        return
    beginning = tuple(slice(0, length) for length in old.shape)
    widened = name.endswith("norm.weight") and new.shape != old.shape
    # x / rms(x) grows by the root of the factor by which the mean of squares falls.
    new[beginning] = old * (old.shape[0] / new.shape[0]) ** 0.5 if widened else old


def sizes(source: Path, folder: Path, *, quick: bool) -> Iterator[tuple[str, Path]]:
    """Yield name and model folder of the policy and, where measured, of each larger model, written to `folder`."""
    from genevolve_ray.learning.policy import load_policy

    count = sum(parameter.numel() for parameter in load_policy(source).parameters())
    yield f"{count / 1e6:.0f}M", source
    if quick:
        return
    for name, shape in SHAPES.items():
        yield name, embed_policy(source, folder / name, shape)
