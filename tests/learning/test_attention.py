"""Attention over a tree equals attention under a dense mask, forward and backward, on every path."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from zoo import build

from genevolve_ray.learning.attention import NAME, attend_by_parts, tree_attention, tree_mask, use_trees
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.tree import PrefixOrder, TreeLayout, lay_out

CPU = torch.device("cpu")


def forest(seed: int = 0) -> TreeLayout:
    """Return the layout of sequences with nested prefixes, of a prefix of another and of a stranger."""
    rng = random.Random(seed)
    stem = [rng.randrange(9) for _ in range(20)]
    keys = [[*stem[: rng.randint(0, 20)], *(rng.randrange(9) for _ in range(rng.randint(0, 9)))] for _ in range(8)]
    return lay_out(PrefixOrder([*keys, stem[:7], [10] * 5]).pairs(range(10)))[0]


def dense(layout: TreeLayout) -> torch.Tensor:
    ends, places = torch.tensor(layout.ends()), torch.arange(layout.length)
    return (places[None] <= places[:, None]) & (places[:, None] < ends[None])


def heads(layout: TreeLayout, dtype: torch.dtype, keys: int = 2) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, layout.length, 8, generator=random, dtype=dtype).requires_grad_()
        for count in (2, keys, keys)
    ]


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_parts_equal_a_dense_mask(dtype: torch.dtype, error: float, keys: int) -> None:
    layout = forest()
    inputs = heads(layout, dtype, keys)
    output, _ = tree_attention(torch.nn.Identity(), *inputs, None, scaling=0.3, tree_layout=layout)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = scaled_dot_product_attention(*wide, attn_mask=dense(layout), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output.transpose(1, 2).double(), expected, rtol=0, atol=error)
    arrow = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(output.transpose(1, 2), inputs, arrow.to(dtype))
    for grad, wanted in zip(grads, torch.autograd.grad(expected, wide, arrow), strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=2 * error)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_of_a_gpu_sees_the_same_tokens() -> None:
    layout = forest()
    query, key, value = (tensor.detach() for tensor in heads(layout, torch.float32))  # no backward pass on a CPU
    output = flex_attention(query, key, value, block_mask=tree_mask(layout, CPU))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=dense(layout))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranges", [[(0, 20), (40, 50)], [(20, 40)], [(3, 4), (5, 49)]])
def test_some_queries_attend_as_in_the_whole_row(ranges: list[tuple[int, int]]) -> None:
    layout = forest()
    inputs = heads(layout, torch.float64)
    ranges = [(start, min(end, layout.length)) for start, end in ranges]
    own = torch.cat([torch.arange(*part) for part in ranges])
    output = attend_by_parts(inputs[0][:, :, own], *inputs[1:], layout.parts(ranges), 0.3).transpose(1, 2)
    expected = scaled_dot_product_attention(*inputs, attn_mask=dense(layout), scale=0.3)[:, :, own]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    arrow = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [torch.autograd.grad(result, inputs, arrow) for result in (output, expected)]
    for grad, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)
    mask = tree_mask(layout, CPU, own)
    mask_mod: Any = mask.mask_mod
    keys = torch.arange(layout.length)
    seen = torch.stack([mask_mod(0, 0, torch.tensor(query), keys) for query in range(len(own))])
    assert torch.equal(seen, dense(layout)[own])


def test_without_a_layout_attention_is_causal() -> None:
    layout = forest()
    inputs = heads(layout, torch.float32)
    module: Any = torch.nn.Identity()
    module.is_causal = True
    output, _ = tree_attention(module, *inputs, None)
    expected = scaled_dot_product_attention(*inputs, is_causal=True)
    torch.testing.assert_close(output.transpose(1, 2), expected)


@pytest.mark.parametrize(
    ("name", "packs"), [("qwen3", True), ("qwen3-vl", True), ("mistral", False), ("gemma3", False)]
)
def test_windows_cannot_attend_over_trees(name: str, packs: bool, tmp_path: Path) -> None:
    model = load_policy(build(name, tmp_path / name))
    assert use_trees(model, CPU) is packs
    assert (model.get_decoder().config._attn_implementation == NAME) is packs
    assert not use_trees(model, torch.device("meta"))
