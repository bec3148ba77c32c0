"""The contract of a request source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from genevolve_ray.contracts.running import NotAsked, run_all
from genevolve_ray.evolution.ports import RequestSource
from genevolve_ray.records.images import ImageStore, MemoryImages
from genevolve_ray.records.request import Request


@dataclass(frozen=True)
class RequestsCase:
    """What the checks need to know.

    Attributes:
        images: the store that the source was built over.
        count: how many requests of each part are looked at.
        again: builds the same source anew, over a store of its own.
    """

    images: ImageStore = field(default_factory=MemoryImages)
    count: int = 8
    again: Callable[[], RequestSource] | None = None


def _parts(source: RequestSource, count: int) -> dict[str, list[Request]]:
    train = [source.train(index) for index in range(count)]
    return {"train": train, "validation": source.validation(count), "heldout": source.heldout(count)}


async def check_requests(source: RequestSource, case: RequestsCase) -> None:
    """Every part gives requests of ours, as many as were asked for, each with an id and a prompt."""
    for part, requests in _parts(source, case.count).items():
        assert len(requests) == case.count, f"{part}: expected {case.count} requests, got {len(requests)}"
        for request in requests:
            assert isinstance(request, Request), f"{part} gave {type(request).__name__}, not a Request"
            assert request.id.strip() and request.prompt.strip(), f"{part}: a request lacks id or prompt: {request}"


async def check_same_index(source: RequestSource, case: RequestsCase) -> None:
    """The same index is always the same request, in whatever order it is asked for."""
    forward = [source.train(index) for index in range(case.count)]
    backward = [source.train(index) for index in reversed(range(case.count))][::-1]
    wrong = [i for i, (one, other) in enumerate(zip(forward, backward, strict=True)) if one != other]
    assert not wrong, f"training requests {wrong} changed in a second call"


async def check_built_anew(source: RequestSource, case: RequestsCase) -> None:
    """A source that is built anew from the same settings poses the same requests: that is what resuming needs."""
    if case.again is None:
        raise NotAsked("no factory for a rebuild was given")
    first, second = _parts(source, case.count), _parts(case.again(), case.count)
    for part, requests in first.items():
        wrong = [i for i, (one, other) in enumerate(zip(requests, second[part], strict=True)) if one != other]
        assert not wrong, f"{part} requests {wrong} changed after the source was rebuilt"


async def check_prefix(source: RequestSource, case: RequestsCase) -> None:
    """The first requests of a part are the same however many are asked for."""
    for part in (source.validation, source.heldout):
        few, many = part(case.count // 2), part(case.count)
        assert few == many[: len(few)], "the first requests depend on the requested number"


async def check_apart(source: RequestSource, case: RequestsCase) -> None:
    """Training, validation and held-out requests share neither id nor prompt."""
    parts = list(_parts(source, case.count).items())
    for i, (name, requests) in enumerate(parts):
        for other, others in parts[i + 1 :]:
            for what in ("id", "prompt"):
                both = {getattr(r, what) for r in requests} & {getattr(r, what) for r in others}
                assert not both, f"{name} and {other} share the {what} {sorted(both)[0]!r}"


async def check_truths(source: RequestSource, case: RequestsCase) -> None:
    """The truth images that requests name lie in the store."""
    for part, requests in _parts(source, case.count).items():
        for request in requests:
            if request.truth_image is not None:
                try:
                    case.images.get(request.truth_image)
                except FileNotFoundError as error:
                    raise AssertionError(
                        f"{part}: the ground-truth image of {request.id} is not in the store"
                    ) from error


CHECKS = (check_requests, check_same_index, check_built_anew, check_prefix, check_apart, check_truths)


async def check_request_source(source: RequestSource, case: RequestsCase) -> None:
    """Run every check against one source. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, source, case)
