"""GRPO's clipped surrogate over the policy tokens of a micro-batch, summed so that any split of a batch adds up.

Shape legend: P policy tokens of a micro-batch (all its sequences, in order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from genevolve_ray.learning.config import GrpoConfig, ImportanceCorrection
from genevolve_ray.learning.streams import TokenStreams


def grpo_loss(streams: TokenStreams, config: GrpoConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return this micro-batch's share of the GRPO loss, and metric sums over its tokens.

    The importance correction defines r, and the factors of w besides the sequence's weight. Here mu is the behavior
    policy, and prox the policy before the step, a constant in its gradient:
        bypass      r = pi / mu
        recompute   r = pi / prox
        decoupled   r = pi / prox, w * min(prox / mu, behaviour_cap), 0 where prox / mu leaves [floor, ceiling]

    Loss (PAPER section 3):
        -1/N sum_sequences sum_tokens w * min(r A, clip(r, 1 - low, 1 + high) A)
    where N counts the global batch: its policy tokens under token-mean, else its sequences. Under seq-mean-token-mean, w
    has the factor 1 / (policy tokens of the sequence).

    The metrics are SUMS over the micro-batch's tokens (divide by the batch's token count), `ratio_max` a maximum.

    Raises:
        ValueError: when the correction needs proximal log-probs and there are none.
    """
    anchor_P = streams.behaviour_P
    if config.needs_proximal:
        if streams.proximal_P is None:
            raise ValueError(f"correction {config.correction.value!r} needs proximal log-probs")
        anchor_P = streams.proximal_P
    log_ratio_P = streams.logprobs_P - anchor_P
    ratio_P = log_ratio_P.exp()
    advantages_P = streams.advantages_P
    clipped_P = ratio_P.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_P = torch.minimum(ratio_P * advantages_P, clipped_P * advantages_P)
    surrogate_P = surrogate_P * streams.loss_weights(config.aggregation)
    metrics: dict[str, Tensor] = {}
    if config.correction is ImportanceCorrection.DECOUPLED:
        behaviour_weight_P = (anchor_P - streams.behaviour_P).exp()
        kept_P = torch.ones_like(behaviour_weight_P, dtype=torch.bool)
        if config.behaviour_floor is not None:
            kept_P = behaviour_weight_P >= config.behaviour_floor
        if config.behaviour_ceiling is not None:
            kept_P = kept_P & (behaviour_weight_P <= config.behaviour_ceiling)
        surrogate_P = surrogate_P * behaviour_weight_P.clamp(max=config.behaviour_cap) * kept_P
        metrics["behaviour_weight"] = behaviour_weight_P.sum()
        metrics["behaviour_capped"] = (behaviour_weight_P > config.behaviour_cap).sum()
        metrics["behaviour_masked"] = (~kept_P).sum()
    with torch.no_grad():
        metrics["clip_low"] = ((ratio_P < 1 - config.clip_low) & (advantages_P < 0)).sum()
        metrics["clip_high"] = ((ratio_P > 1 + config.clip_high) & (advantages_P > 0)).sum()
        metrics["ratio_mean"] = ratio_P.sum()
        metrics["approx_kl"] = (ratio_P - 1 - log_ratio_P).sum()
        metrics["ratio_max"] = ratio_P.max() if len(ratio_P) else ratio_P.new_zeros(())
    return -surrogate_P.sum() / streams.normalizer(config.aggregation), metrics
