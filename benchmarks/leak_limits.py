"""The limits of the check for leaks, on requests and truths of the atlas, and the time of a split.

    python -m benchmarks.leak_limits --requests 1500
    python -m benchmarks.leak_limits --rows 100000

Requests of the atlas come from one grammar and are much nearer to each other than requests that people write; its truths
are drawings of few colors. Both are hard cases. A paraphrase is made by rule; a copy is a resized, recompressed truth.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.world import build_world
from genevolve_ray.data.build.fingerprints import PictureMark, RowMark, RowVectors, mark_picture, shingles_of
from genevolve_ray.data.build.neighbors import ShingleSets
from genevolve_ray.data.build.split import PartsConfig, split_rows
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.requests import request_key

COSINES = (0.80, 0.84, 0.88, 0.92)
SHARES = (0.6, 0.65, 0.7, 0.75, 0.8)
LEVELS = (10, 20, 28, 40, 255)
SIDES, QUALITIES = (48, 96, 256), (50, 75, 95)
_SAMPLED = 200_000
"""Pairs of distinct requests of which the Jaccard index is taken."""


def paraphrases(text: str) -> Iterator[str]:
    """Yield other wordings of a request of the atlas."""
    yield f"Please {text[0].lower()}{text[1:]}"
    yield text.replace("Show ", "Draw ")
    yield text.replace("Show ", "Show me ")
    yield text.replace("Show ", "Create a picture of ")
    yield text.replace(", ", " and ", 1)
    yield f"{text.rstrip('.')}, please!"
    clauses = text.rstrip(".").split(", ")
    yield f"{', '.join([clauses[0], *clauses[:0:-1]])}."


def copies(data: bytes) -> Iterator[bytes]:
    """Yield a picture at other sizes and qualities, as JPEG."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for side in SIDES:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            picture.resize((side, side), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
            yield buffer.getvalue()


def text_limits(texts: Sequence[str]) -> dict[str, Any]:
    """Return, for each limit, the share of distinct pairs above it, and of paraphrases."""
    embedder = HashingEmbedder()
    vectors = asyncio.run(embedder.embed(texts))
    upper = np.triu_indices(len(texts), 1)
    between = (vectors @ vectors.T)[upper]
    pairs = [(place, other) for place, text in enumerate(texts) for other in paraphrases(text) if other != text]
    places = [place for place, _ in pairs]
    to_own = (asyncio.run(embedder.embed([other for _, other in pairs])) * vectors[places]).sum(axis=1)
    sets = ShingleSets([shingles_of(text) for text in (*texts, *(other for _, other in pairs))])
    drawn = np.random.default_rng(0).integers(0, len(texts), (2, _SAMPLED))
    first, second = drawn[:, drawn[0] != drawn[1]]
    apart = sets.jaccard(first, second)
    own = sets.jaccard(np.array(places), np.arange(len(texts), len(texts) + len(pairs)))
    return {
        "requests": len(texts),
        "paraphrases": len(pairs),
        "cosine": {limit: _shares(between, to_own, limit) for limit in COSINES},
        "jaccard": {limit: _shares(apart, own, limit) for limit in SHARES},
    }


def _shares(distinct: Any, same: Any, limit: float) -> dict[str, float]:
    return {"distinct": float((distinct >= limit).mean()), "paraphrases": float((same >= limit).mean())}


def picture_limits(truths: Sequence[bytes], copied: int) -> dict[str, Any]:
    """Return how many distinct truths are within 6 bits, how many of these are alike in color, and the same of copies."""
    marks = [mark_picture(data) for data in truths]
    bits = np.array([mark.bits for mark in marks], dtype=np.uint64)
    distances = np.bitwise_count(bits[:, None] ^ bits[None])
    first, second = np.nonzero(np.triu(distances <= 6, 1))
    levels = np.array([_levels(marks[a], marks[b]) for a, b in zip(first, second, strict=True)])
    pairs = [
        (mark, mark_picture(copy)) for mark, data in zip(marks[:copied], truths, strict=False) for copy in copies(data)
    ]
    of_copies = [(int(one.bits ^ other.bits).bit_count(), _levels(one, other)) for one, other in pairs]
    return {
        "truths": len(truths),
        "flat": float(np.mean([mark.flat for mark in marks])),
        "pairs": len(truths) * (len(truths) - 1) // 2,
        "bits": {int(p): float(np.percentile(distances[np.triu_indices(len(truths), 1)], p)) for p in (0, 1, 50)},
        "pairs within 6 bits": len(first),
        "of these within levels": {limit: int((levels <= limit).sum()) for limit in LEVELS},
        "copies": len(pairs),
        "copies within 6 bits and levels": {
            limit: float(np.mean([bits <= 6 and level <= limit for bits, level in of_copies])) for limit in LEVELS
        },
    }


def _levels(one: PictureMark, other: PictureMark) -> int:
    cells = (np.frombuffer(mark.cells, dtype=np.uint8).astype(np.int16) for mark in (one, other))
    return int(np.abs(next(cells) - next(cells)).max())


def split_time(count: int, dimensions: int) -> dict[str, Any]:
    """Return the seconds and the memory of a split of rows, a tenth of which are in clusters of two."""
    drawn, noise = random.Random(0), np.random.default_rng(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5000)]
    rows: list[RowMark] = []
    for number in range(count):
        text = " ".join(drawn.choices(words, k=20))
        if number % 20 == 1:
            text = f"Please {rows[-1].text}"
        mark = PictureMark(str(number), drawn.getrandbits(64), bytes(192), False)
        rows.append(RowMark(str(number), text, (f"entity {number}",), (mark,)))
    vectors = noise.standard_normal((count, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    result = split_rows(rows, PartsConfig(), RowVectors(texts=vectors))
    return {
        "rows": count,
        "dimensions": dimensions,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu seconds": round(time.process_time() - cpu, 1),
        "added MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "split": result.summary(),
    }


def main() -> None:
    """Measure what is asked for, and print it as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leak_limits", description="Limits of the check for leaks."
    )
    parser.add_argument("--requests", type=int, metavar="N", help="requests of the atlas, a third from each partition")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of a split")
    parser.add_argument("--dimensions", type=int, default=384, metavar="D", help="dimensions of an embedding")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    if asked.requests:
        images, texts, truths = MemoryImages(), dict[str, str](), dict[bytes, None]()
        for partition in Partition:
            world = build_world(1, partition, images)
            for number in range(asked.requests // len(Partition)):
                request = make_request(world, number, images)
                assert request.truth_image is not None
                texts[request_key(request.prompt)] = request.prompt
                truths[images.get(request.truth_image)] = None
        found |= {"texts": text_limits([*texts.values()]), "pictures": picture_limits([*truths], 100)}
    if asked.rows:
        found["split"] = split_time(asked.rows, asked.dimensions)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
