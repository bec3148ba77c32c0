"""How far likeness and alignment of the world `small` agree with a judgment that is known: rank correlations with intervals.

    python -m benchmarks.small_agreement runs/small/image_text --requests 60

It is known for composed scenes, by the number of points in which a scene differs from the wanted one, and for the embedded world,
whose judge measures pixels. That world's pictures are foreign to the model: it has learned from other drawings.

Shape legend: M requests, P pictures of a request, D = 2 P columns, B bootstrap samples.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import prepare_process, say
from benchmarks.small_attempts import png
from genevolve_ray.atlas.drawing import draw_scene, encode_png
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.world import build_world
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.judges.protocol import Judge
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.intervals import Interval, resampled_intervals
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import ScoreFormula, kscore
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import compose
from genevolve_ray.small.training.shots import POINTS, altered, drawn_scene, plain_words

PICTURES = 6
"""Pictures of a request."""
Asked = tuple[Request, bytes, list[tuple[bytes, float]]]
"""A request, its truth, and pictures with the score that is known of each."""


def composed(count: int, library: PictureLibrary) -> list[Asked]:
    """Return random scenes, each with pictures that differ from it in 0 to 5 points; the known score is minus that number."""
    found: list[Asked] = []
    for number in range(count):
        rng = random.Random(f"agreement {number}")
        scene = drawn_scene(rng, library)
        request = Request(id=str(number), prompt=plain_words(scene), eval_type=EvalType.QUALITY)
        pictures = []
        for wrong in range(PICTURES):
            other = scene
            for point in rng.sample(POINTS, wrong):
                other = altered(other, point, rng, library)
            pictures.append((png(compose(other, library, seed=wrong + 1)), -float(wrong)))
        found.append((request, png(compose(scene, library)), pictures))
    return found


async def embedded(count: int) -> list[Asked]:
    """Return requests of the embedded world, with pictures of its renderer from the bare request, and the judge's KScores.

    The first picture is the truth drawn anew, the second the truth of the next request.
    """
    world, judge, renderer = build_world(1, Partition.TRAIN, None), AtlasJudge(), AtlasRenderer()
    found: list[Asked] = []
    for number in range(count):
        images = MemoryImages()
        request = make_request(world, number, images)
        assert request.truth_image is not None, "requests of this world have truths"
        truth, rng = images.get(request.truth_image), np.random.default_rng(number)
        other = make_request(world, number + 1)
        scenes = [Truth.model_validate(one.meta["truth"]).scene for one in (request, other)]
        drawn = [encode_png(draw_scene(scene, rng)) for scene in scenes]
        drawn += [renderer.draw(request.prompt, [], seed) for seed in range(PICTURES - 2)]
        program, pictures = Program(gen_prompt=request.prompt, reference_images=()), []
        for picture in drawn:
            verdict = await judge.judge(request, picture, truth, program, [])
            pictures.append((picture, kscore(verdict.image, ScoreFormula.PAPER)))
        found.append((request, truth, pictures))
    return found


async def scored(judge: Judge, component: str, asked: Sequence[Asked]) -> NDArray[np.float64]:
    """Return float64[M, D]: of each request the known scores of its pictures, then those of a judge."""
    program, rows = Program(gen_prompt="nothing", reference_images=()), []
    for request, truth, pictures in asked:
        verdicts = [await judge.judge(request, picture, truth, program, []) for picture, _ in pictures]
        own = [verdict.components[component].value for verdict in verdicts]  # type: ignore[union-attr]
        rows.append([known for _, known in pictures] + own)
    return np.array(rows)


def correlations(rows_M_D: NDArray[np.float64]) -> tuple[Interval | None, Interval | None]:
    """Return Spearman's rho over all pictures, and its mean within requests; intervals resample requests."""
    over, within = resampled_intervals(rows_M_D, _rhos, seed=0, samples=500)
    return over, within


def _rhos(drawn_B_M_D: NDArray[np.float64]) -> NDArray[np.float64]:
    known, own = np.split(drawn_B_M_D, 2, axis=2)
    within_B_M = _spearman(known, own)
    over_B = _spearman(known.reshape(len(known), -1), own.reshape(len(own), -1))
    return np.stack([over_B, np.nanmean(within_B_M, axis=1)], axis=1)


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Spearman's rho along the last axis, NaN where one of the two does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(each, axis=-1) for each in (one, other)]
    first, second = (each - each.mean(axis=-1, keepdims=True) for each in ranks)
    size = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return np.divide((first * second).sum(axis=-1), size, out=np.full(size.shape, np.nan), where=size > 0)


async def work(model: str, count: int) -> dict[str, dict[str, Any]]:
    """Return the correlations of both judges with what is known of both kinds of pictures."""
    wide = {"model": model, "low": -1.0, "high": 1.0}
    judges: dict[str, Judge] = {
        "likeness": LikenessJudge(LikenessJudgeConfig.model_validate(wide)),
        "alignment": AlignmentJudge(AlignmentJudgeConfig.model_validate(wide)),
    }
    kinds = {"composed scenes": composed(count, PictureLibrary.installed()), "the atlas": await embedded(count)}
    table: dict[str, dict[str, Any]] = {}
    for kind, asked in kinds.items():
        for name, judge in judges.items():
            over, within = correlations(await scored(judge, name, asked))
            say(f"{kind}, {name}: over all pictures {_told(over)}, within requests {_told(within)}")
            told = {"over": over and over.model_dump(), "within": within and within.model_dump()}
            table.setdefault(kind, {})[name] = told
    return table


def _told(interval: Interval | None) -> str:
    return "none" if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_agreement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="model folder of the judges")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    parsed = parser.parse_args()
    prepare_process(1)
    table = asyncio.run(work(parsed.model, parsed.requests))
    if parsed.out:
        parsed.out.write_text(json.dumps({"requests": parsed.requests, **table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
