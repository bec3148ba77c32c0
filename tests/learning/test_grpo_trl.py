"""The surrogate equals TRL's, in value and gradient.

Shape legend: B sequences, T tokens (padded), P policy tokens.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from genevolve_ray.learning.config import GrpoConfig
from genevolve_ray.learning.grpo import grpo_loss
from genevolve_ray.learning.streams import TokenStreams

LENGTHS = (4, 1, 7)
ADVANTAGES = (1.5, -0.7, -1.0)


def padded(values_P: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values_P.split(LENGTHS)), batch_first=True)


def trl_loss(logprobs_P: Tensor, behaviour_P: Tensor) -> Tensor:
    """Return TRL's loss; its `luspo` aggregation with token-level ratios is the token sum, mean over sequences."""
    trl = pytest.importorskip("trl")
    mask_B_T = padded(torch.ones(sum(LENGTHS))).long()
    prompt = torch.ones(len(LENGTHS), 1, dtype=torch.long)
    trainer = SimpleNamespace(
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_args, **_kwargs: (
            padded(logprobs_P),
            torch.zeros(mask_B_T.shape, dtype=torch.float64),
            None,
        ),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(gather=lambda x: x.reshape(-1), reduce=lambda x, **_kwargs: x, num_processes=1),
        args=SimpleNamespace(delta=None),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_high=0.28,
        epsilon_low=0.20,
        importance_sampling_level="token",
        loss_type="luspo",
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.zeros_like(mask_B_T),
        "completion_mask": mask_B_T,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "old_per_token_logps": padded(behaviour_P),
    }
    loss: Tensor = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.slow
def test_loss_and_gradient_equal_trl() -> None:
    generator = torch.Generator().manual_seed(0)
    behaviour_P = -3 * torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64)
    logprobs_P = behaviour_P + 0.4 * torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)
    logprobs_P.requires_grad_()
    advantages_P = torch.tensor(ADVANTAGES, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    streams = TokenStreams(logprobs_P, behaviour_P, advantages_P, torch.ones_like(advantages_P), len(LENGTHS))
    mine = grpo_loss(streams, GrpoConfig())[0]
    theirs = trl_loss(logprobs_P, behaviour_P)
    torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(loss, logprobs_P)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-15)
