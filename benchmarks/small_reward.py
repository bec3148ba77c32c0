"""Whether the reward of the world `small` says anything: the teacher's program against poorer ones and against tricks.

    python -m benchmarks.small_reward --config runs/small/small.yaml --part test --out report.json

Judge, reward, renderer and requests are those of the configuration, as a run uses them. Ranges and weights are chosen by
the part `validation` alone, and what they achieve is reported once by the part `test`. Without `--rendered`, pictures are
composed from scenes: what a renderer without weaknesses would return for a program. With it, the configuration's renderer
draws prompts and references. Beside the report there is a sheet of pairs of pictures, and apart from it the reward's order,
for a person to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import prepare_process, say
from benchmarks.small_attempts import KINDS, NEAR, SIDE, TEACHER, Attempt, Case, png
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.plugins import JudgeSpec, RendererSpec
from genevolve_ray.evolution.services import JudgeService, RenderService
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.intervals import Interval, grouped_interval
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

PARTS = {"validation": "validation_paths", "test": "heldout_paths"}
"""The key of the requests' settings that names the files of a part."""
SAMPLES = 1000
"""Bootstrap samples of an interval."""
TIE = 0.02
"""Rewards that are at most this far apart say that neither picture is better."""
TIE_RULE = (
    f"The reward says `neither` where two rewards are at most {TIE} apart. A person may say `neither` as well. The two agree "
    "where they say the same; `neither` against a side is a disagreement. Count pairs without the teacher's program apart."
)


@dataclass
class Scores:
    """Hold pictures, rewards and components of one kind of attempts, case by case.

    None: the attempt has no picture or no reward, because an outside part failed; or no such component.
    """

    pictures: list[ImageRef | None] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    components: dict[str, list[float | None]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Bench:
    """Judge attempts with the judges and the reward of a configuration."""

    def __init__(
        self,
        library: PictureLibrary,
        judge: JudgeSpec,
        reward: RewardConfig,
        judges: Mapping[str, JudgeSpec] | None = None,
        renderer: RendererSpec | None = None,
    ) -> None:
        """Build the judges, and the renderer if pictures are to be rendered."""
        self.images, self.library = MemoryImages(), library
        services = {name: JudgeService(spec.build(), self.images) for name, spec in (judges or {}).items()}
        self.panel = Panel(JudgeService(judge.build(), self.images), services, reward)
        self.renderer = RenderService(renderer.build(), self.images) if renderer is not None else None

    async def picture(self, attempt: Attempt, seed: int) -> ImageRef:
        """Return the picture of an attempt."""
        if attempt.picture is not None:
            return self._stored(attempt.picture)
        assert attempt.scene is not None, "an attempt has a scene or a picture"
        if self.renderer is None:
            return self._stored(compose(attempt.scene, self.library, SIDE, seed))
        shown = [self._stored(self.library.reference(attempt.reference, SIDE))] if attempt.reference else []
        return await self.renderer.render(attempt.prompt, shown, seed)

    async def scored(self, case: Case, attempt: Attempt, picture: ImageRef) -> tuple[float, dict[str, float]]:
        """Return the reward of a picture, and each component on the scale from 0 to 1."""
        truth = self.images.put(case.truth, width=SIDE, height=SIDE)
        request = case.request.model_copy(update={"truth_image": truth})
        program = Program(gen_prompt=attempt.prompt or "nothing", reference_images=())
        key = SampleKey(step=0, request_id=request.id, sample=0)
        trajectory = Trajectory(key, request.prompt, TokenLedger(), Provenance(profile="small", engine="none"))
        found = await self.panel.judge(request, picture, program, ())
        self.panel.settle(trajectory, found)
        assert trajectory.reward is not None, "a settled trajectory has a reward"
        parts = {name: part.scaled for v in trajectory.verdicts.values() for name, part in v.components.items()}
        return trajectory.reward.total, parts

    def _stored(self, picture: PillowImage) -> ImageRef:
        return self.images.put(png(picture), width=picture.width, height=picture.height)


async def measure(bench: Bench, cases: Sequence[Case]) -> dict[str, Scores]:
    """Return the scores of every kind of attempts on every case.

    A picture's seed is the case's number plus one, and the words of all kinds are drawn from the same seed.
    """
    found = {name: Scores() for name in KINDS}
    for number, case in enumerate(cases):
        attempts = [kind(case, random.Random(str(number)), bench.library) for kind in KINDS.values()]
        drawn = (bench.picture(attempt, number + 1) for attempt in attempts)
        pictures = await asyncio.gather(*drawn, return_exceptions=True)
        for own, attempt, picture in zip(found.values(), attempts, pictures, strict=True):
            await _add(own, bench, case, attempt, picture)
        say(f"{number + 1} of {len(cases)} requests")
    return found


async def _add(own: Scores, bench: Bench, case: Case, attempt: Attempt, picture: ImageRef | BaseException) -> None:
    """Add what one attempt got; an outside part that failed leaves it without a reward."""
    parts: dict[str, float] = {}
    reward = None
    try:
        if isinstance(picture, BaseException):
            raise picture
        reward, parts = await bench.scored(case, attempt, picture)
    except InfraFailure as failure:
        own.failures.append(f"{case.request.id}: {failure}")
    done = len(own.rewards)
    own.pictures.append(None if isinstance(picture, BaseException) else picture)
    own.rewards.append(reward)
    for part in {*own.components, *parts}:
        own.components.setdefault(part, [None] * done).append(parts.get(part))


def differences(cases: Sequence[Case], scores: Mapping[str, Scores]) -> dict[str, dict[str, Interval | float | None]]:
    """Return, for each kind of attempts, its reward, and how far the teacher's program lies above it in everything.

    Figures are means over the entities of the requests. Intervals resample entities, then requests of each: a flag or a
    fact is as hard in one request as in the next. None where nothing was measured.
    """
    first, entities = scores[TEACHER], [case.entity for case in cases]
    table: dict[str, dict[str, Interval | float | None]] = {}
    for name, own in scores.items():
        row: dict[str, Interval | float | None] = {"reward": _by_entity(entities, own.rewards)}
        if name != TEACHER:
            gains = _gains(own.rewards, first.rewards)
            known = [gain for gain in gains if gain is not None]
            row["wins"] = sum(gain > 0 for gain in known) / len(known) if known else None
            row["ties"] = sum(gain == 0 for gain in known) / len(known) if known else None
            row["teacher - it: reward"] = _by_entity(entities, gains)
            for part, values in sorted(own.components.items()):
                better = _gains(values, first.components.get(part, [None] * len(values)))
                row[f"teacher - it: {part}"] = _by_entity(entities, better)
        row["failures"] = float(len(own.failures))
        table[name] = row
    return table


def _gains(values: Sequence[float | None], teacher: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else b - a for a, b in zip(values, teacher, strict=True)]


def _by_entity(entities: Sequence[str], values: Sequence[float | None]) -> Interval | None:
    groups: dict[str, list[float]] = {}
    for entity, value in zip(entities, values, strict=True):
        if value is not None:
            groups.setdefault(entity, []).append(value)
    return grouped_interval(list(groups.values()), seed=0, samples=SAMPLES) if groups else None


def spread(scores: Mapping[str, Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by kind and component, three quantiles of the values from 0 to 1, and the share at each end of the range.

    The ranges of the judges are chosen by this: a value outside of its range counts as the end.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, own in scores.items():
        for part, values in sorted(own.components.items()):
            known = np.array([value for value in values if value is not None])
            if known.size:
                low, middle, high = (float(value) for value in np.quantile(known, (0.05, 0.5, 0.95)))
                ends = {"at 0": float((known <= 0).mean()), "at 1": float((known >= 1).mean())}
                found.setdefault(name, {})[part] = {"5%": low, "50%": middle, "95%": high, **ends}
    return found


def paired(
    images: MemoryImages, cases: Sequence[Case], scores: Mapping[str, Scores]
) -> tuple[PillowImage, list[dict[str, Any]]]:
    """Return a sheet, two pictures and the truth of each request under its number and words, and the better by reward.

    The two are drawn at random from two kinds of programs for the request itself (`NEAR`): none is altogether wrong. A
    request with fewer than two measured programs has no pair.
    """
    from PIL import Image, ImageDraw, ImageFont

    side, order = 3 * SIDE, []
    wide, high = 3 * side + 84, side + 30
    sheet = Image.new("RGB", (2 * wide, (len(cases) + 1) // 2 * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, case in enumerate(cases):
        measured = [
            (name, picture, reward)
            for name in NEAR
            if (picture := scores[name].pictures[number]) and (reward := scores[name].rewards[number]) is not None
        ]
        if len(measured) < 2:
            continue
        left, top = number % 2 * wide, number // 2 * high
        pen.text((left + 4, top + 4), f"{number + 1}. {case.request.meta['truth_caption']}", fill="black", font=font)
        chosen = random.Random(f"pair {number}").sample(measured, 2)
        shown = [images.get(picture) for _, picture, _ in chosen] + [case.truth]
        for data, across in zip(shown, (4, side + 20, 2 * side + 60), strict=True):
            large = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (left + across, top + 24))
        kinds, rewards = [name for name, _, _ in chosen], [reward for _, _, reward in chosen]
        gap = rewards[0] - rewards[1]
        better = "neither" if abs(gap) <= TIE else "left" if gap > 0 else "right"
        order.append({"pair": number + 1, "better": better, "rewards": rewards, "kinds": kinds})
    return sheet, order


def files_of(config: RunConfig, part: str) -> list[Path]:
    """Return the files of requests of a part of a configuration.

    Raises:
        UserFault: where the requests of the configuration are in no files.
    """
    named = config.requests.config.get(PARTS[part])
    if not named:
        raise UserFault(f"requests.config.{PARTS[part]}: the configuration names no files of the part {part}")
    return [Path(path) for path in named]


def read_cases(files: Sequence[Path], count: int, seed: int) -> list[Case]:
    """Return random requests of files of rows with their truths; of each, the scene of another as well."""
    read = [(file, json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    chosen = random.Random(seed).sample(read, min(count, len(read)))
    scenes = [SmallScene.model_validate(row["meta"]["scene"]) for _, row in chosen]
    return [
        Case(
            Request(id=row["id"], prompt=row["prompt"], eval_type=EvalType(row["eval_type"]), meta=row["meta"]),
            scenes[i],
            (file.parent / row["gt_image"]).read_bytes(),
            scenes[(i + 1) % len(scenes)],
        )
        for i, (file, row) in enumerate(chosen)
    ]


def report(cases: Sequence[Case], scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Print the differences, and return them for a JSON file."""
    table = differences(cases, scores)
    for name, row in table.items():
        print(f"{name}: {'; '.join(f'{key} {_told(value)}' for key, value in row.items())}")
    return {
        name: {key: value.model_dump() if isinstance(value, Interval) else value for key, value in row.items()}
        for name, row in table.items()
    }


def _told(value: Interval | float | None) -> str:
    if isinstance(value, Interval):
        return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
    return "none" if value is None else f"{value:.3f}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_reward", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--config", default="small", help="a preset or a YAML file, as for `genevolve evolve`")
    parser.add_argument(
        "--part", choices=list(PARTS), default="validation", help="test: after ranges and weights are chosen, once"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file of the report; pairs.png and order.json are beside it"
    )
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rendered", action="store_true", help="draw with the configuration's renderer")
    parser.add_argument("--pairs", type=int, default=20, metavar="N", help="pairs of the sheet")
    parsed = parser.parse_args()
    prepare_process(1)
    config = load_config(parsed.config)
    cases = read_cases(files_of(config, parsed.part), parsed.requests, parsed.seed)
    renderer = config.renderer if parsed.rendered else None
    bench = Bench(PictureLibrary.installed(), config.judge, config.reward, config.judges, renderer)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    scores = asyncio.run(measure(bench, cases))
    sheet, order = paired(bench.images, cases[: parsed.pairs], scores)
    sheet.save(parsed.out.with_name("pairs.png"))
    entities = len({case.entity for case in cases})
    print(f"part {parsed.part}: {len(cases)} requests about {entities} entities")
    found: dict[str, Any] = {"part": parsed.part, "requests": len(cases), "entities": entities}
    found["renderer"] = renderer and {"type": renderer.type, "config": renderer.config}
    found["kinds"] = report(cases, scores)
    found["failures"] = {name: own.failures for name, own in scores.items() if own.failures}
    if parsed.part == "validation":
        found["spread"] = spread(scores)
    _write(parsed.out.with_name("order.json"), {"rule": TIE_RULE, "pairs": order})
    _write(parsed.out, found)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
