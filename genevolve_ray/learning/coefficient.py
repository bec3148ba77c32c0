"""The coefficient of distillation: a number, or what keeps a ratio between the norms of two gradients.

The scale of a distillation loss depends on the world: on the length of a trajectory, on the size of the gaps, on the
aggregation. Where the coefficient is a ratio R, a step that measures takes two gradients over its whole batch, g_grpo of
policy loss and KL term, g_ved of the distillation at coefficient 1, and their part of its gradient is

    g_grpo + c g_ved,    c = R |g_grpo| / |g_ved|, held within [minimum, maximum]

before the gradient's norm is clipped. Guided re-draws are added to it afterwards, and enter neither norm. Other steps take
one gradient with the last c. c follows from weights and batch alone, so that a step which is applied again has the same
one. It is kept among the optimizer's settings, as the learning rate is, so that every checkpoint has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genevolve_ray.learning.distributed import full
from genevolve_ray.learning.ved_config import GradientRatio, VedConfig

COEFFICIENT = "ved_coefficient"
"""Its key among the optimizer's settings."""
Gradients = list[Tensor | None]
_ROUNDING = 1e-6
"""Norm of a distillation's gradient, as share of the other, up to which it is zero but for rounding: the teacher says what
the student says."""


class Coefficient:
    """Hold the coefficient of the distillation loss, and measure it where it is a ratio."""

    def __init__(self, config: VedConfig, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        """Keep the settings. Several ranks must shard all parameters: gradients of whole ones are summed later."""
        self._setting, self._optimizer, self._parameters = config.coefficient, optimizer, parameters
        self.figures: dict[str, float] = {}
        """Of the last step: the coefficient, and what was measured; empty where it is a number."""

    @property
    def _ratio(self) -> GradientRatio | None:
        return self._setting if isinstance(self._setting, GradientRatio) else None

    @property
    def _last(self) -> float | None:
        last: float | None = self._optimizer.param_groups[0].get(COEFFICIENT)
        return last

    @property
    def value(self) -> float:
        """The coefficient of a step that does not measure."""
        if not isinstance(self._setting, GradientRatio):
            return self._setting
        return self._setting.minimum if self._last is None else self._last

    def measures(self, step: int) -> bool:
        """Return whether a step takes both gradients; a step that does not notes the coefficient."""
        self.figures = {} if self._ratio is None else {COEFFICIENT: self.value}
        return self._ratio is not None and (self._last is None or step % self._ratio.every == 0)

    def take(self) -> Gradients:
        """Take the gradients from the parameters, which then have none."""
        taken: Gradients = [p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return taken

    def combine(self, grpo: Gradients) -> float:
        """Add to `grpo` the gradients on the parameters times the coefficient, and return it (a collective).

        The sum is on the parameters afterwards. Where a gradient is zero or not finite, the last coefficient stays.
        """
        assert self._ratio is not None
        ved: Gradients = [p.grad for p in self._parameters]
        *squares, inner = _products((grpo, grpo), (ved, ved), (grpo, ved))
        norms = [math.sqrt(square) for square in squares]
        found = self._ratio.ratio_to_grpo * norms[0] / norms[1] if norms[1] > _ROUNDING * norms[0] else 0.0
        if found > 0 and math.isfinite(found):
            self._optimizer.param_groups[0][COEFFICIENT] = min(max(found, self._ratio.minimum), self._ratio.maximum)
        cosine = inner / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
        self.figures = {
            COEFFICIENT: self.value,
            "grad_norm_grpo": norms[0],
            "grad_norm_ved": norms[1],
            "grad_cosine_ved": cosine,
        }
        for parameter, first, second in zip(self._parameters, grpo, ved, strict=True):
            if second is None:
                parameter.grad = first
            elif first is None:
                second.mul_(self.value)
            else:
                parameter.grad = first.add_(second, alpha=self.value)
        return self.value


def _products(*pairs: tuple[Gradients, Gradients]) -> list[float]:
    """Return the inner products of pairs of gradients over all parameters and ranks (a collective).

    A parameter's part is summed in float32, in float64 for a float64 parameter, and the parts in float64 in their order.
    """
    places, parts = [], []
    for place, (first, second) in enumerate(pairs):
        for a, b in zip(first, second, strict=True):
            if a is not None and b is not None:
                wide = torch.promote_types(a.dtype, torch.float32)
                places.append(place)
                parts.append((a.to(wide) * b.to(wide)).sum())
    totals = [0.0] * len(pairs)
    for place, value in zip(places, _values(parts), strict=True):
        totals[place] += value
    return totals


def _values(scalars: Sequence[Tensor]) -> list[float]:
    """Return scalars on the host, by one collective and one copy for all that are sharded alike."""
    alike: dict[object, list[int]] = {}
    for place, scalar in enumerate(scalars):
        key = (scalar.device_mesh, scalar.placements) if isinstance(scalar, DTensor) else scalar.device
        alike.setdefault(key, []).append(place)
    values = [0.0] * len(scalars)
    for members in alike.values():
        first = scalars[members[0]]
        chosen = [scalars[place] for place in members]
        local = torch.stack([(s.to_local() if isinstance(s, DTensor) else s).double() for s in chosen])
        if isinstance(first, DTensor):
            local = full(DTensor.from_local(local, first.device_mesh, first.placements, run_check=False))
        for place, value in zip(members, local.tolist(), strict=True):
            values[place] = value
    return values
