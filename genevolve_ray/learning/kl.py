"""KL to the reference policy, estimated on the sampled tokens so that its GRADIENT is the reverse KL's.

Let l = log pi - log ref on tokens y ~ mu. The right value and the right gradient need different estimators. k3(l) =
exp(-l) - 1 + l has the right value: it is unbiased for KL(pi || ref) when mu = pi, and never negative. But
differentiating it through l alone on sampled tokens gives E[(1 - exp(-l)) grad log pi] = -E_ref[grad log pi]. That is
the gradient of the FORWARD KL(ref || pi): the sampling distribution depends on pi as well, and this part is lost. So
the reported value is k3, and the loss is the score-function form

    sg(rho * l) * log pi,    rho = min(pi / mu, rho_cap)

Its expected gradient under mu is that of the token-level KL(pi || ref) on the states that mu visited: E_pi[(l + 1) grad
log pi], where the 1 integrates to zero. The cap on rho bounds the variance of stale tokens and biases the tokens that
it affects, which are counted.

This is the form `score`. The form `low_var_kl` is verl's estimator of that name: k3 differentiated through l after all,
without an importance weight. It clamps -l to [-20, 20] and k3 to at most 10; a token at either bound has no gradient. It
is a named choice because the paper's settings name it, not because its gradient is better.

Shape legend: P policy tokens of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genevolve_ray.learning.config import KlConfig, KlForm, LossAggregation
from genevolve_ray.learning.streams import TokenStreams

GAP_CLAMP, KL_CLAMP = 20.0, 10.0
"""Bounds of |l| and of k3 in the form `low_var_kl`, as in verl."""


def reference_kl(
    streams: TokenStreams, config: KlConfig, aggregation: LossAggregation = LossAggregation.SEQ_MEAN_TOKEN_SUM
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return coefficient * KL(pi || ref) for this micro-batch, with the aggregation of the policy loss.

    The module's docstring derives the scalar's gradient; its value is the k3 estimate. The metrics are sums over the
    micro-batch's tokens.

    Raises:
        ValueError: when there are no reference log-probs.
    """
    if streams.reference_P is None:
        raise ValueError("the reference term needs reference log-probs")
    scale, weights_P = config.coefficient / streams.normalizer(aggregation), streams.loss_weights(aggregation)
    if config.form is KlForm.LOW_VAR_KL:
        opposite_P = (streams.reference_P - streams.logprobs_P).clamp(-GAP_CLAMP, GAP_CLAMP)
        raw_P = opposite_P.expm1() - opposite_P
        token_P = raw_P.clamp(max=KL_CLAMP)
        clamped = (raw_P.detach() > KL_CLAMP).sum()
        return scale * (token_P * weights_P).sum(), {"kl": token_P.detach().sum(), "kl_clamped": clamped}
    with torch.no_grad():
        gap_P = streams.logprobs_P - streams.reference_P
        raw_rho_P = (streams.logprobs_P - streams.behaviour_P).exp()
        rho_P = raw_rho_P.clamp(max=config.rho_cap)
        k3_P = gap_P.neg().expm1() + gap_P
        metrics = {"kl": k3_P.sum(), "kl_rho_capped": (raw_rho_P > config.rho_cap).sum()}
    value = (rho_P * k3_P * weights_P).sum()
    carrier_P = rho_P * gap_P * weights_P * streams.logprobs_P
    # Adds exactly zero to the value, and the score-function gradient to the backward pass.
    return scale * (value + (carrier_P - carrier_P.detach()).sum()), metrics
