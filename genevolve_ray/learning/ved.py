"""Visual Experience Distillation: a teacher that reads experience re-scores the student's tokens (PAPER section 4).

pi is the current policy, and mu the behavior policy (the engine's). The teacher q has the same weights, gradient
stopped, on the student's context with a bundle of experience in it. Let l = log pi - log q and rho = pi / mu on tokens
y ~ mu. The aim is the token-level reverse KL(pi || q) on the states that mu visited. Two forms have its gradient, rho *
l * grad log pi:

    score   sg(min(rho, c) * clip(l, -b, b)) * log pi
    paper   min(rho * k3(l), c_tok),  k3(l) = exp(-l) - 1 + l,  gradient through rho = min(pi / mu, c)

since grad(rho * k3) = rho * (k3 + 1 - exp(-l)) * grad log pi = rho * l * grad log pi. With a rho that is detached, or
held by its cap, only (1 - exp(-l)) * grad log pi remains: the gradient of the FORWARD KL(q || pi). And where the clamp
k3 <= b binds (l < -2.61 for b = 10: the tokens that the teacher prefers most), rho * b would push these tokens DOWN.
There the gradient of `paper` is zero. The cap on rho, the clip of l, c_tok and the gate (it selects on the sampled
token) each add bias: the fraction of tokens that each affects is a metric.

The exact forms (`learning.divergences`) take the expectation over the next token instead of one sample. The token's own
rho then has no place: at each state, `reverse_kl` has the gradient that `score` has on average over y ~ mu, without its
variance. Two things stay as they are. States are those that mu visited, unweighted, although pi would visit others. And
the gate looks at the sampled token: in the exact forms it weighs states, and the gradient at each is exact.

Shape legend: P policy tokens of a micro-batch, S sequences of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genevolve_ray.learning.streams import TokenStreams, gate_size
from genevolve_ray.learning.ved_config import GradientRatio, TokenAggregation, VedConfig, VedForm, VedGate


def top_gate(gap_P: Tensor, eligible_P: Tensor, sequence_P: Tensor, fraction: float) -> Tensor:
    """Return the mask [P] of the ceil(fraction * n) tokens with the largest |gap| in their sequence of n policy tokens.

    Only eligible tokens enter; of equal gaps the earlier token does.
    """
    size_P = gap_P.abs().masked_fill(~eligible_P, -1.0)
    order_P = size_P.argsort(descending=True, stable=True)
    order_P = order_P[sequence_P[order_P].argsort(stable=True)]
    owner_P = sequence_P[order_P]
    count_S = torch.bincount(sequence_P)
    rank_P = torch.arange(len(gap_P), device=gap_P.device) - (count_S.cumsum(0) - count_S)[owner_P]
    kept_S = torch.tensor([gate_size(n, fraction) for n in count_S.tolist()], dtype=torch.long, device=gap_P.device)
    gate_P = torch.zeros_like(eligible_P)
    gate_P[order_P] = rank_P < kept_S[owner_P]
    return gate_P & eligible_P


def selected(gap_P: Tensor, eligible_P: Tensor, sequence_P: Tensor, config: VedConfig) -> Tensor:
    """Return the mask [P] of the tokens that the gate lets through, by their gap log pi - log q."""
    if config.gate is VedGate.TOP:
        return top_gate(gap_P, eligible_P, sequence_P, config.gate_fraction)
    return eligible_P


def ved_loss(
    streams: TokenStreams, config: VedConfig, coefficient: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return coefficient * VED for this micro-batch, its share of the sum over all gated tokens divided by N.

    N counts the GLOBAL batch: the sequences that have a bundle (`sum`, `mean`), or the gated tokens
    (`batch_token_mean`). Either keeps the coefficient's meaning when the hit rate changes. The value is that of rho *
    k3 in the forms on sampled tokens, and the divergence in exact ones; the module's docstring derives the gradients.
    The metrics are sums over taught tokens, those of sequences with a bundle, and `ved_tokens` is their number.

    Args:
        streams: the tokens of a micro-batch.
        config: the settings.
        coefficient: lambda; by default that of the settings, which must then be a number.

    Raises:
        ValueError: when there are no teacher log-probs, or no divergences for an exact form.
    """
    if coefficient is None:
        assert not isinstance(config.coefficient, GradientRatio), "a ratio gives no coefficient by itself"
        coefficient = config.coefficient
    if streams.teacher_P is None or streams.taught_P is None or streams.sequence_P is None:
        raise ValueError("VED needs teacher log-probs, the tokens they are for, and the tokens' sequences")
    taught_P, eligible_P = streams.taught_P, streams.taught_P
    if streams.gate_P is not None:
        eligible_P = eligible_P & streams.gate_P
    with torch.no_grad():
        detached_gap_P = torch.where(taught_P, streams.logprobs_P - streams.teacher_P, 0.0)
        gate_P = selected(detached_gap_P, eligible_P, streams.sequence_P, config)
        scale_P = gate_P * streams.weights_P
        if config.gate is VedGate.SIGMOID:
            weight_P = (-config.sigmoid_slope * detached_gap_P).sigmoid()
            scale_P = scale_P * weight_P
        if config.aggregation is TokenAggregation.MEAN:
            gated_S = torch.bincount(streams.sequence_P, weights=gate_P.to(scale_P.dtype))
            scale_P = scale_P / gated_S.clamp(min=1)[streams.sequence_P]
    token_P, metrics = _FORMS.get(config.form, _exact)(streams, detached_gap_P, gate_P, config)
    with torch.no_grad():
        metrics |= {
            "ved_tokens": taught_P.sum(),
            "ved_gap": detached_gap_P.sum(),
            "ved_gap_abs": detached_gap_P.abs().sum(),
            "ved_gated": gate_P.sum(),
            "ved_gated_gap_abs": (detached_gap_P.abs() * gate_P).sum(),
        }
        if config.gate is VedGate.SIGMOID:
            metrics["ved_gate_weight"] = (weight_P * gate_P).sum()
    batch_mean = config.aggregation is TokenAggregation.BATCH_TOKEN_MEAN
    count = streams.gated_tokens if batch_mean else streams.taught_sequences
    loss = coefficient / max(1, count) * (token_P * scale_P).sum()
    return loss, metrics


def _ratio(streams: TokenStreams) -> Tensor:
    """Return rho [P] = pi / mu with its gradient."""
    return (streams.logprobs_P - streams.behaviour_P).exp()


def _score(streams: TokenStreams, gap_P: Tensor, gate_P: Tensor, config: VedConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the token losses [P] of the `score` form, and the counts of its cap and clip inside the gate."""
    with torch.no_grad():
        ratio_P = _ratio(streams)
        rho_P = ratio_P.clamp(max=config.rho_cap)
        clipped_P = gap_P.clamp(-config.gap_clip, config.gap_clip)
        value_P = rho_P * (clipped_P.neg().expm1() + clipped_P).clamp(max=config.gap_clip)
        metrics = {
            "ved_rho_capped": ((ratio_P > config.rho_cap) & gate_P).sum(),
            "ved_gap_clipped": ((gap_P.abs() > config.gap_clip) & gate_P).sum(),
            "ved_loss": (value_P * gate_P).sum(),
        }
    carrier_P = rho_P * clipped_P * streams.logprobs_P
    # Adds exactly zero to the value, and the score-function gradient to the backward pass.
    return value_P + (carrier_P - carrier_P.detach()), metrics


def _paper(streams: TokenStreams, gap_P: Tensor, gate_P: Tensor, config: VedConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the token losses [P] of the `paper` form, and the counts of its caps and clamp inside the gate."""
    assert streams.teacher_P is not None and streams.taught_P is not None
    ratio_P = _ratio(streams)
    rho_P = ratio_P.clamp(max=config.rho_cap)
    with torch.no_grad():
        clamped_P = gap_P.neg().expm1() + gap_P >= config.gap_clip
    # Where the clamp binds, the gap is replaced before k3: its exponential could be infinite, and inf * 0 is no gradient.
    live_P = torch.where(streams.taught_P & ~clamped_P, streams.logprobs_P - streams.teacher_P, 0.0)
    token_P = torch.where(clamped_P, rho_P.detach() * config.gap_clip, rho_P * (live_P.neg().expm1() + live_P))
    capped_P = torch.zeros_like(clamped_P)
    if config.token_cap is not None:
        capped_P = token_P.detach() > config.token_cap
        token_P = token_P.clamp(max=config.token_cap)
    with torch.no_grad():
        metrics = {
            "ved_rho_capped": ((ratio_P > config.rho_cap) & gate_P).sum(),
            "ved_gap_clipped": (clamped_P & gate_P).sum(),
            "ved_token_capped": (capped_P & gate_P).sum(),
            "ved_loss": (token_P * gate_P).sum(),
        }
    return token_P, metrics


def _exact(streams: TokenStreams, gap_P: Tensor, gate_P: Tensor, config: VedConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the divergences [P] of an exact form."""
    if streams.divergence_P is None:
        raise ValueError(f"form {config.form.value!r} needs the divergence from the teacher at each token")
    return streams.divergence_P, {"ved_loss": (streams.divergence_P.detach() * gate_P).sum()}


_FORMS = {VedForm.SCORE: _score, VedForm.PAPER: _paper}
