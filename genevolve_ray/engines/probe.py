"""The probe of a weight update: a sequence on which the engine must give the learner's log-probs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from genevolve_ray.engines.protocol import Probe, WeightUpdateError

_LOG = logging.getLogger(__name__)


class ProbeDiffers(WeightUpdateError):
    """Report a reading of the probe beyond its tolerance, and the difference."""

    def __init__(self, message: str, difference: float) -> None:
        """Keep the mean absolute difference."""
        super().__init__(message)
        self.difference = difference


def mean_difference(probe: Probe, scored: list[float], version: int) -> float:
    """Return the mean absolute difference between the learner's log-probs on the probe and the engine's.

    Raises:
        WeightUpdateError: for another number of log-probs.
    """
    if len(scored) != len(probe.logprobs):
        raise WeightUpdateError(
            f"the probe of version {version} has {len(probe.logprobs)} log-probs, but the engine scored {len(scored)}"
        )
    return sum(abs(a - b) for a, b in zip(scored, probe.logprobs, strict=True)) / max(len(scored), 1)


def probe_difference(probe: Probe, scored: list[float], version: int, remark: str = "") -> float:
    """Return `mean_difference`; `remark` ends the message of an error.

    Raises:
        ProbeDiffers: if it exceeds the probe's tolerance (or is not a number).
        WeightUpdateError: for another number of log-probs.
    """
    difference = mean_difference(probe, scored, version)
    if not difference <= probe.tolerance:
        raise ProbeDiffers(
            f"after the update to version {version} the engine is off by {difference:.3g} (mean absolute log-prob) "
            f"on the probe, tolerance {probe.tolerance:.3g}{remark}",
            difference,
        )
    return difference


async def read_probe(
    probe: Probe, score: Callable[[], Awaitable[list[float]]], version: int, remark: str = ""
) -> float:
    """Score the probe and return the difference; see `probe_difference`.

    A first reading beyond the tolerance is repeated once. By then the checksums of all tensors have agreed, so a kernel that
    erred once would end a run whose weights are right. Where the second reading agrees, a warning names both, and the
    difference of the first is returned, so that metrics show it.

    Raises:
        WeightUpdateError: when both readings exceed the tolerance; the message has both.
    """
    try:
        return probe_difference(probe, await score(), version, remark)
    except ProbeDiffers as first:
        again = mean_difference(probe, await score(), version)
        if not again <= probe.tolerance:
            raise WeightUpdateError(f"{first}; a second reading is off by {again:.3g}") from first
        _LOG.warning(
            "%s; a second reading agrees (%.3g), and the first one is taken as an error of a kernel", first, again
        )
        return first.difference
