"""Random batches for the tests of the learner at full size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from genevolve_ray.learning.batch import TeacherContext, TrainSequence

if TYPE_CHECKING:
    from torch import nn

    from genevolve_ray.learning.step import Learner

VOCABULARY = 64


def sequences(count: int = 6, seed: int = 0, longest: int = 20) -> list[TrainSequence]:
    """Return sequences of 5 to `longest` random tokens with behaviour log-probs and advantages."""
    rng, result = random.Random(seed), []
    for _ in range(count):
        length = rng.randint(5, longest)
        mask = [False, *(rng.random() < 0.6 for _ in range(length - 2)), True]
        logprobs = [-rng.random() * 6 if wanted else 0.0 for wanted in mask]
        tokens = [rng.randrange(1, VOCABULARY - 1) for _ in range(length)]
        result.append(TrainSequence(tokens, mask, logprobs, advantage=rng.uniform(-1, 1)))
    return result


def taught(sequence: TrainSequence, guide: Sequence[int], gate: Sequence[bool] = ()) -> TrainSequence:
    """Return the sequence with a teacher that reads `guide` after the first token; `gate` is per policy token."""
    head, tail = list(sequence.tokens[:1]), list(sequence.tokens[1:])
    mask = [False, *[False] * len(guide), *sequence.policy_mask[1:]]
    return replace(sequence, teacher=TeacherContext([*head, *guide, *tail], mask, gate))


def exact(learner: Learner) -> Learner:
    """Return the learner with norms in the dtype of its model."""
    use_exact_norms(learner.model)
    return learner


def siblings(batch: Sequence[TrainSequence]) -> list[TrainSequence]:
    """Return the sequences with the first three tokens of every other one replaced by those of the one before it."""
    return [replace(s, tokens=[*batch[i - i % 2].tokens[:3], *s.tokens[3:]]) for i, s in enumerate(batch)]


def use_exact_norms(model: nn.Module) -> None:
    """Compute norms in the dtype of the model: those of transformers round to float32 in any model."""
    from torch.nn.functional import rms_norm

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            plain: Any = module
            plain.forward = partial(rms_norm, normalized_shape=plain.weight.shape, weight=plain.weight, eps=1e-6)
