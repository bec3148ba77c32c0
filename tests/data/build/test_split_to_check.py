"""A split, published, has no leaks: the check of the folder and the split follow the same rules."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from published_samples import FACTS

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.world import build_world
from genevolve_ray.data.build.fingerprints import RowMark, RowVectors, mark_picture
from genevolve_ray.data.build.leaks import LeakCheckConfig, check_leaks
from genevolve_ray.data.build.publishing import CaseSample, DataPart, PublishConfig, publish, published_picture
from genevolve_ray.data.build.split import PartsConfig, PartSize, split_rows
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import Request

SIZES = {"rl/train": 200, "rl/validation": 20, "bench/test": 40}


@pytest.fixture(scope="module")
def images() -> MemoryImages:
    """The store of all truths."""
    return MemoryImages()


@pytest.fixture(scope="module")
def requests(images: MemoryImages) -> list[Request]:
    """Requests of one world, many of which are near each other."""
    world = build_world(1, Partition.TRAIN, images)
    return [make_request(world, number, images) for number in range(260)]


def marked(request: Request, images: MemoryImages) -> RowMark:
    """Describe a request with its truth as it is published; names of the atlas are its entities."""
    truth = request.truth_image
    assert truth is not None
    _, data = published_picture(images.get(truth), truth, PublishConfig())
    names = tuple(part["name"] for part in request.meta["truth"]["scene"]["parts"] if part["found"])
    return RowMark(request.id, request.prompt, names, (mark_picture(data),))


def published(folder: Path, part_of: dict[str, str | None], requests: list[Request], images: MemoryImages) -> Path:
    """Write the requests of each part."""
    parts = []
    for name in SIZES:
        its = [(number, one) for number, one in enumerate(requests) if part_of[one.id] == name]
        entities = {number: marked(one, images).entities for number, one in its}
        cases = [CaseSample(one, number, extra_info={"entities": list(entities[number])}) for number, one in its]
        parts.append(DataPart(name, cases))
    return publish(folder, parts, FACTS, images).path


async def test_a_split_has_no_leaks_where_a_division_at_random_has(
    tmp_path: Path, requests: list[Request], images: MemoryImages
) -> None:
    sized = (PartSize(name=name, count=SIZES[name]) for name in ("rl/validation", "bench/test"))
    config = PartsConfig(parts=(PartSize(name="rl/train"), *sized))
    embedder = HashingEmbedder()
    vectors = RowVectors(await embedder.embed([request.prompt for request in requests]))
    marks = [marked(request, images) for request in requests]
    result = split_rows(marks, config, vectors, embedder=embedder.identity)
    assert {name: part["rows"] for name, part in result.summary()["parts"].items()} == SIZES
    folder = published(tmp_path / "split", result.part_of(), requests, images)
    report = await check_leaks(folder, LeakCheckConfig(), embedder)
    assert report.leaks == () and {name: part.rows for name, part in report.parts.items()} == SIZES
    names = [name for name, count in SIZES.items() for _ in range(count)]
    drawn = random.Random(0).sample([request.id for request in requests], len(names))
    at_random = dict.fromkeys((request.id for request in requests), None) | dict(zip(drawn, names, strict=True))
    leaky = published(tmp_path / "random", at_random, requests, images)
    found = await check_leaks(leaky, LeakCheckConfig(), embedder)
    assert {kind.value for kind in found.counts} >= {"entity", "near_text"}
