"""How far likeness and alignment of the world `small` agree with a judgment that is known: rank correlations with intervals.

    python -m benchmarks.small_agreement runs/small/image_text --part test --requests 60

It is known for scenes of the requests of a part, by the number of points in which a picture differs from the wanted one, and for
the embedded world, whose judge measures pixels. Such scenes are the distribution that the model of `small` is trained on,
subjects and flags included: agreement there says that the training worked, not how the model does on other pictures. The
embedded world's pictures are foreign to it. Two of the six there are anchors (the truth drawn anew, another truth), which any
measure tells apart; the figure for rendered pictures leaves them out.

Shape legend: M requests, P pictures of a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import prepare_process, say
from benchmarks.small_attempts import Case, png
from benchmarks.small_reward import PARTS, files_of, read_cases
from genevolve_ray.atlas.drawing import draw_scene, encode_png
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.world import build_world
from genevolve_ray.config import load_config
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.judges.protocol import Judge
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.intervals import Interval, grouped_interval, percentile_interval
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import ScoreFormula, kscore
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import compose
from genevolve_ray.small.training.shots import POINTS, altered
from genevolve_ray.small.wording import plain_words

PICTURES = 6
"""Pictures of a request."""
ANCHORS = 2
"""Pictures of a request of the embedded world that its renderer did not draw; they come first."""
SAMPLES = 500
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Asked:
    """Hold a request, its truth, and pictures with the score that is known of each."""

    request: Request
    truth: bytes
    pictures: list[tuple[bytes, float]]
    entity: str
    """What the request is about; requests about one entity are not independent."""


@dataclass(frozen=True)
class Agreement:
    """Hold rank correlations of known scores with those of a judge.

    Attributes:
        over: Spearman's rho over all pictures.
        within: the mean of rho within requests; 0 for a request whose pictures the judge does not tell apart.
        left_out: requests whose known scores are all equal; they have no rho.
        ties: share of the pairs of pictures of a request whose known scores are equal.
    """

    over: Interval | None
    within: Interval | None
    left_out: int
    ties: float


def composed(cases: Sequence[Case], library: PictureLibrary) -> list[Asked]:
    """Return requests with pictures that differ from their scene in 0 to 5 points; the known score is minus that number."""
    found: list[Asked] = []
    for number, case in enumerate(cases):
        rng, pictures = random.Random(f"agreement {number}"), []
        request = Request(id=str(number), prompt=plain_words(case.scene), eval_type=EvalType.QUALITY)
        for wrong in range(PICTURES):
            other = case.scene
            for point in rng.sample(POINTS, wrong):
                other = altered(other, point, rng, library)
            pictures.append((png(compose(other, library, seed=wrong + 1)), -float(wrong)))
        found.append(Asked(request, case.truth, pictures, case.entity))
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
        found.append(Asked(request, truth, pictures, scenes[0].parts[0].name))
    return found


async def scored(judge: Judge, component: str, asked: Sequence[Asked]) -> NDArray[np.float64]:
    """Return float64[M, P, 2]: of each picture the known score and that of a judge."""
    program, rows = Program(gen_prompt="nothing", reference_images=()), []
    for one in asked:
        verdicts = [await judge.judge(one.request, picture, one.truth, program, []) for picture, _ in one.pictures]
        own = [verdict.components[component].value for verdict in verdicts]  # type: ignore[union-attr]
        rows.append([(known, score) for (_, known), score in zip(one.pictures, own, strict=True)])
    return np.array(rows)


def correlations(scores_M_P: NDArray[np.float64], entities: Sequence[str]) -> Agreement:
    """Return the correlations of known scores with a judge's, float64[M, P, 2], of requests about M entities.

    Intervals resample entities: with all their requests for rho over all pictures, then the requests of each for the mean
    within requests, which is a mean over entities.
    """
    known, own = scores_M_P[..., 0], scores_M_P[..., 1]
    groups: dict[str, list[int]] = {}
    for row, entity in enumerate(entities):
        groups.setdefault(entity, []).append(row)
    rhos = [_spearman(*pair) for pair in zip(known, own, strict=True)]
    kept = [[rho for row in rows if (rho := rhos[row]) is not None] for rows in groups.values()]
    within = [group for group in kept if group]
    first, second = np.triu_indices(known.shape[1], 1)
    return Agreement(
        over=_over(known, own, list(groups.values())),
        within=grouped_interval(within, seed=0, samples=SAMPLES) if within else None,
        left_out=rhos.count(None),
        ties=float((known[:, first] == known[:, second]).mean()),
    )


def _over(known: NDArray[np.float64], own: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> Interval | None:
    """Return Spearman's rho over all pictures, with an interval that resamples groups of rows."""
    rho, rng, drawn = _spearman(known, own), np.random.default_rng(0), []
    for _ in range(SAMPLES):
        rows = [row for group in rng.integers(len(groups), size=len(groups)) for row in groups[group]]
        drawn.append(_spearman(known[rows], own[rows]))
    found = np.array([value for value in drawn if value is not None])
    return percentile_interval(rho, found) if rho is not None else None


def _spearman(known: NDArray[np.float64], own: NDArray[np.float64]) -> float | None:
    """Return Spearman's rho; None where no order is known, 0 where the judge gives all the same score."""
    from scipy.stats import rankdata

    first, second = (ranks - ranks.mean() for ranks in (rankdata(known), rankdata(own)))
    if not first.any():
        return None
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size else 0.0


async def work(model: str, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Return the correlations of both judges with what is known of both kinds of pictures."""
    wide = {"model": model, "low": -1.0, "high": 1.0}
    judges: dict[str, Judge] = {
        "likeness": LikenessJudge(LikenessJudgeConfig.model_validate(wide)),
        "alignment": AlignmentJudge(AlignmentJudgeConfig.model_validate(wide)),
    }
    table: dict[str, dict[str, Any]] = {}

    def tell(kind: str, name: str, scores_M_P: NDArray[np.float64], asked: Sequence[Asked]) -> None:
        entities = [one.entity for one in asked]
        found = correlations(scores_M_P, entities)
        say(
            f"{kind}, {name}: over all pictures {told(found.over)}, within requests {told(found.within)}; "
            f"{len(set(entities))} entities, {found.left_out} of {len(asked)} requests left out, ties {found.ties:.0%}"
        )
        row = table.setdefault(kind, {"requests": len(asked), "entities": len(set(entities)), "ties": found.ties})
        row["left out"] = found.left_out
        row[name] = {key: one and one.model_dump() for key, one in (("over", found.over), ("within", found.within))}

    scenes, foreign = composed(cases, PictureLibrary.installed()), await embedded(len(cases))
    for name, judge in judges.items():
        tell("composed scenes (as in training)", name, await scored(judge, name, scenes), scenes)
        scores_M_P = await scored(judge, name, foreign)
        tell("the atlas, anchors included", name, scores_M_P, foreign)
        tell("the atlas, rendered pictures alone", name, scores_M_P[:, ANCHORS:], foreign)
    return table


def told(interval: Interval | None) -> str:
    """Return an interval as a line of the report shows it."""
    return "none" if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_agreement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="model folder of the judges")
    parser.add_argument("--config", default="small", help="a preset or a YAML file that names the requests")
    parser.add_argument("--part", choices=list(PARTS), default="validation")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    parsed = parser.parse_args()
    prepare_process(1)
    cases = read_cases(files_of(load_config(parsed.config), parsed.part), parsed.requests, 0)
    table = asyncio.run(work(parsed.model, cases))
    if parsed.out:
        own = {"part": parsed.part, "requests": len(cases)}
        parsed.out.write_text(json.dumps({**own, **table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
