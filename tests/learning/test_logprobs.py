"""Token log-probs in chunks equal the plain ones, and never hold a [T, V] tensor.

Shape legend: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genevolve_ray.learning import logprobs, rescoring
from genevolve_ray.learning.logprobs import default_chunk, token_logprobs

T, H, V = 37, 16, 53


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, ban: Tensor | None
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T / temperature
    if ban is not None:
        logits = logits.masked_fill(ban, float("-inf"))
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), torch.special.entr(logprobs.exp()).sum(-1)


def inputs(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, H, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(V, H, dtype=dtype, generator=generator).requires_grad_()
    ban = torch.zeros(V, dtype=torch.bool)
    ban[-5:] = True
    targets = torch.randint(0, V - 5, (T,), generator=generator)
    upstream = torch.randn(T, dtype=dtype, generator=generator)
    return hidden, weight, ban, targets, upstream


@settings(deadline=None, max_examples=25)
@given(
    chunk=st.integers(1, T + 3),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
    banned=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_chunked_equals_naive_in_value_and_gradient(
    chunk: int, temperature: float, banned: bool, dtype: torch.dtype
) -> None:
    hidden, weight, mask, targets, upstream = inputs(dtype)
    ban = mask if banned else None
    expected, expected_entropy = naive(hidden, weight, targets, temperature, ban)
    expected_grads = torch.autograd.grad(expected, (hidden, weight), upstream)
    logprobs, entropy = token_logprobs(
        hidden, weight, targets, temperature=temperature, ban_mask_V=ban, chunk=chunk, entropy=True
    )
    grads = torch.autograd.grad(logprobs, (hidden, weight), upstream)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    assert entropy is not None and not entropy.requires_grad
    for got, want in zip((logprobs, entropy, *grads), (expected, expected_entropy, *expected_grads), strict=True):
        scale = max(1.0, float(want.detach().abs().max()))
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale)


def test_gradcheck() -> None:
    hidden, weight, ban, targets, _ = inputs(torch.float64)
    small = hidden[:5].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets[:5], temperature=0.7, ban_mask_V=ban, chunk=2)[0], (small, weight)
    )


def test_bfloat16_states_give_float32_logprobs_and_bfloat16_gradients() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk=8)
    logprobs.sum().backward()
    assert logprobs.dtype == torch.float32
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_logits_of_bfloat16_states_are_not_rounded() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    hidden, weight = (x.detach().mul(4).bfloat16() for x in (hidden, weight))
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk=8)
    expected, _ = token_logprobs(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=1e-4)


class ConvertedHeads(TorchDispatchMode):
    """Counts conversions of a whole head to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        converts = func is torch.ops.aten._to_copy.default and args[0].shape == (V, H)
        self.count += converts and kwargs["dtype"] == torch.float32
        return func(*args, **(kwargs or {}))


def test_a_bfloat16_head_is_converted_once_a_pass_on_a_cpu() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    with ConvertedHeads() as converted, torch.no_grad():
        token_logprobs(hidden.bfloat16(), weight.bfloat16(), targets, chunk=8)
    assert converted.count == 1


def test_a_large_vocabulary_does_not_shrink_chunks_below_what_a_product_needs() -> None:
    assert default_chunk(49_152) == default_chunk(151_936) == 128
    assert default_chunk(512) == 2048


def test_rescoring_holds_fewer_rows_of_a_large_vocabulary(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def counted(logpi_C_V: torch.Tensor, targets_C: torch.Tensor, top_p: float) -> torch.Tensor:
        rows.append(len(logpi_C_V))
        return torch.zeros(4, len(logpi_C_V), dtype=torch.float64)

    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)  # as if the vocabulary were large
    monkeypatch.setattr(rescoring, "_moments", counted)
    rescoring.Rescorer(model_dir).score([1] * 41, [False] + [True] * 40, 1.0)
    assert rows == [16, 16, 8]


def test_a_banned_target_is_an_error() -> None:
    hidden, weight, ban, targets, _ = inputs(torch.float32)
    targets[3] = V - 1
    with pytest.raises(ValueError, match=rf"banned tokens among the targets: \[{V - 1}\]"):
        token_logprobs(hidden, weight, targets, ban_mask_V=ban)


def test_temperature_must_be_positive() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        token_logprobs(hidden, weight, targets, temperature=0.0)


def test_no_targets_give_no_logprobs_and_zero_gradient() -> None:
    hidden, weight, _, targets, _ = inputs(torch.float32)
    logprobs, _ = token_logprobs(hidden[:0], weight, targets[:0])
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_grows_with_tokens_times_vocabulary() -> None:
    tokens, hidden_size, vocabulary, chunk = 512, 4, 256, 16
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    ban = torch.zeros(vocabulary, dtype=torch.bool)
    with LargestTensor() as largest, torch.autograd.set_multithreading_enabled(False):
        logprobs, _ = token_logprobs(hidden, weight, targets, chunk=chunk, ban_mask_V=ban, entropy=True)
        logprobs.sum().backward()
    assert largest.elements == chunk * vocabulary
