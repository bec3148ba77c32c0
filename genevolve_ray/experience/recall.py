"""Retrieval with an embedder: bundles are inserted and searched under one function of the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genevolve_ray.experience.config import KeyConfig
from genevolve_ray.experience.memory import ExperienceMemory, Hit
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


async def recall(
    memory: ExperienceMemory,
    embedder: Embedder,
    requests: Sequence[Request],
    step: int,
    key: KeyConfig | None = None,
) -> list[Hit | None]:
    """Return the nearest bundle for each request, None where none is near enough; uses are recorded.

    Raises:
        InfraFailure: when the embedder gave up.
    """
    if not requests or not len(memory):
        return [None] * len(requests)
    vectors = await embedded(embedder, [retrieval_text(request, key) for request in requests])
    return [memory.retrieve(v, request.id, step) for request, v in zip(requests, vectors, strict=True)]


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
