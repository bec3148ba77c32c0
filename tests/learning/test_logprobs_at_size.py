"""Log-probs of a long context over a real vocabulary stay small: a [T, V] tensor of this size would take 18.5 GiB."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOKENS, VOCABULARY, HIDDEN = 32_768, 151_936, 16
LIMIT_GIB = 1.5
CODE = f"""
import resource, torch
from genevolve_ray.learning.logprobs import token_logprobs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)

loaded = peak()
torch.manual_seed(0)
hidden = torch.randn({TOKENS}, {HIDDEN}, requires_grad=True)
weight = torch.randn({VOCABULARY}, {HIDDEN}, requires_grad=True)
logprobs, _ = token_logprobs(hidden, weight, torch.randint({VOCABULARY}, ({TOKENS},)))
logprobs.sum().backward()
assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
print(peak() - loaded)
"""


def test_value_and_gradient_fit_into_less_than_one_and_a_half_gib() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < LIMIT_GIB
