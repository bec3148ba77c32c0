"""Loss of guided re-draws: attempts that mu sampled with a guide in its context, learned by pi without the guide.

Let c be the context with the guide and s the same context without it, token for token. mu(y | c) are the engine's
log-probs, pi(y | s) those of the policy under training, and rho = pi(y | s) / mu(y | c) on each sampled token.

`importance` is the policy gradient with truncated importance sampling (Ionides 2008):

    -1/N sum_tokens sg(min(rho, cap)) A log pi(y | s)

While the cap does not bind, its expected gradient under mu(. | c) is that of sum A log pi over tokens of pi(. | s), in
the states that the guided attempts visited: as in GRPO, a token's weight corrects the choice of that token, and not the
probability of the tokens before it. Truncation bounds the variance and biases the tokens that it affects, which are
counted. The clip of GRPO is not used: ratios begin at 1 there, and far from it here.

`winners` is the cross-entropy -1/N sum_tokens log pi(y | s) of the attempts that were chosen; it needs no mu.

N counts the ordinary batch under `grpo.aggregation`, so that a re-draw's token weighs as one of the policy loss, and the
other losses are the same with and without re-draws.

Shape legend: P policy tokens of a micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genevolve_ray.learning.batch import MicroBatch, TrainSequence
from genevolve_ray.learning.config import LearnerConfig, LossAggregation
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.parts import StepSums
from genevolve_ray.learning.passes import Passes
from genevolve_ray.learning.redraw_config import GuidedDraws, RedrawConfig, RedrawCorrection
from genevolve_ray.learning.streams import token_shares
from genevolve_ray.learning.workers import Workers


def redraw_loss(
    logprobs_P: Tensor,
    behaviour_P: Tensor,
    advantages_P: Tensor,
    config: RedrawConfig,
    normalizer: float,
    weights_P: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return this micro-batch's share of the loss of re-draws, and metric sums over its tokens.

    Args:
        logprobs_P: log pi without the guide; carries the gradient.
        behaviour_P: log mu with the guide.
        advantages_P: the sequence's advantage, repeated on its tokens.
        config: the settings.
        normalizer: N of the module's docstring.
        weights_P: weights of the token losses, as `grpo.aggregation` asks for them.
    """
    with torch.no_grad():
        ratio_P = (logprobs_P - behaviour_P).exp()
        metrics = {"redraw_ratio_mean": ratio_P.sum(), "redraw_truncated": (ratio_P > config.cap).sum()}
    scale = config.coefficient / normalizer
    if config.correction is RedrawCorrection.WINNERS:
        return -scale * (logprobs_P * weights_P).sum(), metrics
    weighted_P = ratio_P.clamp(max=config.cap) * advantages_P * weights_P
    carrier_P = weighted_P * logprobs_P
    # Adds exactly zero to the value, and the score-function gradient to the backward pass.
    return -scale * (weighted_P.sum() + (carrier_P - carrier_P.detach()).sum()), metrics


def add_redraws(
    draws: GuidedDraws | None,
    sums: StepSums,
    passes: Passes,
    workers: Workers,
    ranks: Ranks,
    parameters: Sequence[nn.Parameter],
    config: LearnerConfig,
) -> dict[str, float]:
    """Add gradient and loss of re-draws to those of a step's whole batch, and return their metrics.

    Over ranks it is a collective. `redraw_parity` is mean |mu - learner| log-prob in the GUIDED context over the tokens
    that the version that learns has sampled; it is absent without such tokens. Without re-draws nothing happens.
    """
    if draws is None:
        return {}
    normalizer = sums.count(config.grpo.aggregation)
    in_sequence = config.grpo.aggregation is LossAggregation.SEQ_MEAN_TOKEN_MEAN
    with passes.features.step():
        metrics = _parity(draws.sequences, passes, sums.step)
        batches = passes.split(draws.sequences)

        def loss_of(batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
            logprobs_P, _ = passes.logprobs(batch)
            chosen = [draws.sequences[i] for i in batch.indices]
            behaviour = [x for s in chosen for x, wanted in zip(s.logprobs, s.policy_mask, strict=True) if wanted]
            behaviour_P = logprobs_P.new_tensor(behaviour)
            advantages_P = logprobs_P.new_tensor([s.advantage for s in chosen])[batch.sequence_P]
            weights_P = token_shares(batch.sequence_P, logprobs_P.dtype) if in_sequence else 1.0
            loss, parts = redraw_loss(logprobs_P, behaviour_P, advantages_P, draws.config, normalizer, weights_P)
            return loss, {"redraw_loss": loss.item()} | {name: value.item() for name, value in parts.items()}

        totals: dict[str, float] = defaultdict(float)
        for parts in workers.add_gradients(loss_of, ranks.share(batches, torch.device(config.device)), parameters):
            for name, value in parts.items():
                totals[name] += value
        found = ranks.combine(totals, frozenset())
    sums.totals["loss"] += found.get("redraw_loss", 0.0)
    tokens = sum(s.policy_tokens for s in draws.sequences)
    means = {name: total if name == "redraw_loss" else total / max(1, tokens) for name, total in found.items()}
    return metrics | means | {"redraw_sequences": float(len(draws.sequences)), "redraw_tokens": float(tokens)}


def _parity(sequences: Sequence[TrainSequence], passes: Passes, step: int) -> dict[str, float]:
    """Return `redraw_parity`: the learner scores the re-draws in the contexts in which the engine sampled them."""
    contexts = [s.teacher for s in sequences]
    if any(context is None for context in contexts):
        raise ValueError("a re-draw needs the guided context that it was sampled in")
    gaps = []
    for sequence, scores in zip(sequences, passes.score([c for c in contexts if c is not None]), strict=True):
        versions = sequence.versions or [step] * len(sequence.tokens)
        own = [(x, v) for x, v, m in zip(sequence.logprobs, versions, sequence.policy_mask, strict=True) if m]
        gaps += [abs(mu - score) for (mu, version), score in zip(own, scores, strict=True) if version == step]
    return {"redraw_parity": sum(gaps) / len(gaps)} if gaps else {}
