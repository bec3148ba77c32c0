"""The contract of a `summariser` plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from genevolve_ray.contracts.running import check_cancelled, check_identity, check_same_identity, run_all
from genevolve_ray.contracts.samples import REQUEST, pair
from genevolve_ray.judges.protocol import Summariser
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.leaks import LeakError, check_experience
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair


@dataclass(frozen=True)
class SummariserCase:
    """Hold the inputs of the summary checks.

    Attributes:
        request: the request of both attempts.
        pair: two judged attempts at it.
        secrets: texts that must not appear anywhere, such as tokens.
    """

    request: Request = REQUEST
    pair: Pair = field(default_factory=lambda: pair(REQUEST, MemoryImages()))
    secrets: Sequence[str] = ()


async def _compare(summariser: Summariser, request: Request, pair: Pair) -> Experience:
    bundle: Experience = await checked("summariser", summariser, summariser.compare(request, pair))
    return bundle


async def check_bundle(summariser: Summariser, case: SummariserCase) -> None:
    """Check that a pair gives a bundle whose guidance does not reveal the answer."""
    bundle = await _compare(summariser, case.request, case.pair)
    assert bundle.guidance, "the bundle contains no guidance"
    try:
        check_experience(bundle, case.request, [case.pair.best, case.pair.worst])
    except LeakError as leak:
        raise AssertionError(f"the bundle leaks the answer: {leak}") from leak


async def check_origin(summariser: Summariser, case: SummariserCase) -> None:
    """Check that a bundle records its step, request, both attempts and their gap."""
    bundle, of = await _compare(summariser, case.request, case.pair), case.pair
    recorded = (bundle.step, bundle.request_id, bundle.best, bundle.worst, bundle.gap)
    expected = (of.step, of.request_id, str(of.best.key), str(of.worst.key), of.gap)
    assert recorded == expected, f"the bundle records {recorded}, but it came from {expected}"


async def check_equal_attempts(summariser: Summariser, case: SummariserCase) -> None:
    """Check that two attempts that do not differ still give a bundle, which does not reveal the answer."""
    twin = Pair(case.pair.request_id, case.pair.step, case.pair.best, case.pair.best, 0.0)
    bundle = await _compare(summariser, case.request, twin)
    try:
        check_experience(bundle, case.request, [twin.best])
    except LeakError as leak:
        raise AssertionError(f"the bundle leaks the answer: {leak}") from leak


async def check_names_itself(summariser: Summariser, case: SummariserCase) -> None:
    """Check that the plug-in has an identity that is stable and contains no secret."""
    check_identity(summariser, case.secrets)
    identity = summariser.identity
    await _compare(summariser, case.request, case.pair)
    check_same_identity(summariser, identity)


async def check_cancellation(summariser: Summariser, case: SummariserCase) -> None:
    """Check that a canceled comparison ends and leaves nothing running."""
    await check_cancelled(lambda: _compare(summariser, case.request, case.pair))


CHECKS = (check_bundle, check_origin, check_equal_attempts, check_names_itself, check_cancellation)


async def check_summariser(summariser: Summariser, case: SummariserCase | None = None) -> None:
    """Run every check against one `Summariser`. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, summariser, case or SummariserCase())
