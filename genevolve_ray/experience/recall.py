"""Retrieval with an embedder: bundles are inserted and searched under one function of the request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genevolve_ray.experience.config import ExperienceConfig, KeyConfig, MergeConfig, RecallOrder
from genevolve_ray.experience.memory import ExperienceMemory, Hit
from genevolve_ray.experience.merging import merge_bundles
from genevolve_ray.experience.protocol import Embedder
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.leaks import mask
from genevolve_ray.records.plugin_results import check_rows, checked
from genevolve_ray.records.request import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


async def remember(
    memory: ExperienceMemory,
    embedder: Embedder,
    bundles: Sequence[tuple[Request, Experience]],
    key: KeyConfig | None = None,
) -> list[int]:
    """Insert bundles in the order given (request order) and return their numbers.

    Raises:
        InfraFailure: when the embedder gave up; then nothing is inserted.
        ValueError: when a bundle is not of its request.
    """
    for request, experience in bundles:
        if experience.request_id != request.id:
            raise ValueError(f"the bundle of request {experience.request_id!r} was passed with request {request.id!r}")
    if not bundles:
        return []
    texts = [retrieval_text(request, key) for request, _ in bundles]
    vectors = await embedded(embedder, texts)
    return [
        memory.insert(experience, vector, text)
        for (_, experience), vector, text in zip(bundles, vectors, texts, strict=True)
    ]


@dataclass(frozen=True)
class RecallRule:
    """Hold what decides which requests of a step recall what, apart from the threshold; by default as in the paper."""

    order: RecallOrder = RecallOrder.NEAREST
    most: int | None = None
    """Most requests that recall anything."""
    merge: MergeConfig | None = None

    @classmethod
    def of(cls, config: ExperienceConfig) -> RecallRule:
        """Return the rule of a run."""
        return cls(config.recall, config.max_taught, config.merge)


async def recall(
    memory: ExperienceMemory,
    embedder: Embedder,
    requests: Sequence[Request],
    step: int,
    key: KeyConfig | None = None,
    rule: RecallRule | None = None,
    stuck: Collection[str] = (),
    clean: Callable[[Hit, Request], Hit | None] = lambda hit, request: hit,
) -> list[Hit | None]:
    """Return what each request recalls, None where no bundle is near enough or `rule.most` is reached.

    Uses are recorded, those of a merged bundle with every bundle that it consists of.

    Args:
        memory: the bundles.
        embedder: embeds the requests' keys.
        requests: the requests of a step, in its order.
        step: the step.
        key: how a request becomes a key.
        rule: by default, every request recalls the nearest bundle whole.
        stuck: ids of requests whose groups have no pair; they come first under `stuck_first`.
        clean: returns what may be told of a hit to its request, None for nothing; such a request recalls nothing, and
            neither uses a bundle nor counts under `rule.most`.

    Raises:
        InfraFailure: when the embedder gave up.
    """
    if not requests or not len(memory):
        return [None] * len(requests)
    rule = rule or RecallRule()
    vectors = await embedded(embedder, [retrieval_text(request, key) for request in requests])
    count = 1 if rule.merge is None else rule.merge.nearest
    near = [memory.near(v, request.id, step, count) for request, v in zip(requests, vectors, strict=True)]
    parts = [_parts(found, rule.merge) for found in near]
    hits = [clean(_merged(p, rule.merge), request) if p else None for p, request in zip(parts, requests, strict=True)]
    taught = _taught(hits, [request.id in stuck for request in requests], rule)
    for place in sorted(taught):
        for hit in parts[place]:
            memory.use(hit, requests[place].id, step)
    return [hit if place in taught else None for place, hit in enumerate(hits)]


def _taught(hits: Sequence[Hit | None], stuck: Sequence[bool], rule: RecallRule) -> set[int]:
    """Return the places of the requests that recall something."""
    near = {place: hit.similarity for place, hit in enumerate(hits) if hit is not None}
    places = list(near)
    if rule.most is None:
        return set(places)
    first = rule.order is RecallOrder.STUCK_FIRST
    # The last bits of a cosine depend on the place of its row.
    places.sort(key=lambda place: (first and not stuck[place], -round(near[place], 6), place))
    return set(places[: rule.most])


def _parts(hits: Sequence[Hit], merge: MergeConfig | None) -> Sequence[Hit]:
    """Return the hits that a lesson consists of."""
    whole = merge is None or not hits or (hits[0].own and not merge.own)
    return hits[:1] if whole else hits


def _merged(hits: Sequence[Hit], merge: MergeConfig | None) -> Hit:
    if merge is None or len(hits) == 1:
        return hits[0]
    bundle = merge_bundles([hit.experience for hit in hits], merge.alike)
    return replace(hits[0], experience=bundle, own=False, merged=tuple(hit.number for hit in hits))


async def embedded(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of texts. Raises InfraFailure as the embedder, PluginResultFault when it returns no such array."""
    rows: NDArray[np.float32] = check_rows(
        embedder, await checked("embedder", embedder, embedder.embed(texts)), len(texts)
    )
    return rows


def retrieval_text(request: Request, config: KeyConfig | None = None) -> str:
    """Return the text that is embedded for a request, both to insert its bundle and to search for one.

    It depends on the request alone: a summarizer's own words, which only exist afterwards, would never match a query.
    """
    config = config or KeyConfig()
    prompt = mask(request.prompt) if config.masked else request.prompt
    parts = {"eval_type": request.eval_type.value, "category": _spaced(request.category), "prompt": prompt}
    return "\n".join(parts[field] for field in config.fields if parts[field])


def _spaced(category: str) -> str:
    return " ".join(category.replace("+", " ").split())
