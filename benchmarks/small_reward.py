"""Whether the reward of the world `small` says anything: the teacher's program against poorer ones and against tricks.

    python -m benchmarks.small_reward runs/small/requests/validation.jsonl --config configs/small.yaml --out report.json

Judge and reward are those of the configuration, as a run uses them. Without `--rendered`, pictures are composed from scenes: what a
renderer without weaknesses would return for a program. With it, the configuration's renderer draws prompts and references.
Beside the report there is a sheet of pairs of pictures, and apart from it the reward's order, for a person to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.measure import prepare_process, say
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.plugins import JudgeSpec, RendererSpec
from genevolve_ray.evolution.services import JudgeService, RenderService
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.intervals import Interval, paired_interval
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.small.pictures import PictureLibrary, flag_code
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import Part, Reference, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SIDE = 64
TEACHER = "the teacher's program"


@dataclass(frozen=True)
class Case:
    """Hold a request, its scene, its truth, and a scene of another request."""

    request: Request
    scene: SmallScene
    truth: bytes
    other: SmallScene


@dataclass(frozen=True)
class Attempt:
    """Hold what an agent did: a program, or a picture that no program draws.

    Attributes:
        prompt: of the program.
        reference: id of the picture that is the program's first reference, "" for none.
        scene: what a renderer without weaknesses draws from it.
        picture: in place of a program, the picture.
    """

    prompt: str = ""
    reference: str = ""
    scene: SmallScene | None = None
    picture: PillowImage | None = None


@dataclass
class Scores:
    """Hold pictures, rewards and components of one kind of attempts, case by case; None where a request has no such component."""

    pictures: list[ImageRef] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    components: dict[str, list[float | None]] = field(default_factory=dict)


Kind = Callable[[Case, random.Random, PictureLibrary], Attempt]


def teacher(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right program: every part in words, and the right picture as reference."""
    return _program(case.scene, rng, library)


def random_program(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right program of another request."""
    return _program(case.other, rng, library)


def wrong_reference(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right words with a wrong picture: another flag, or another subject of the same group."""
    if case.scene.flag is not None:
        code = rng.choice([code for code in library.flags if code != case.scene.flag])
        shown, wrong = case.scene.model_copy(update={"background": code}), library.flags[code].id
    else:
        group = library.subjects[case.scene.subject].group
        wrong = rng.choice([s.id for s in library.subjects.values() if s.group == group and s.id != case.scene.subject])
        shown = case.scene.model_copy(update={"subject": wrong})
    vague = _program(case.scene, rng, library, ("name",) if case.scene.flag is None else ())
    return Attempt(vague.prompt, wrong, shown)


def poor(*parts: Part) -> Kind:
    """Return programs that do not mention some parts: what a renderer then draws is a guess."""

    def attempt(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
        guesses: dict[Part, tuple[str, Any]] = {
            "count": ("count", rng.choice([count for count in (1, 2, 3, 4) if count != case.scene.count])),
            "style": ("style", "color"),
            "caption": ("caption", ""),
            "background": ("background", rng.choice([color for color in COLORS if color != case.scene.background])),
            "name": ("subject", rng.choice([id for id in library.subjects if id != case.scene.subject])),
        }
        shown = case.scene.model_copy(update=dict(guesses[part] for part in parts))
        right = _program(case.scene, rng, library, parts)
        lost = "background" in parts and case.scene.flag is not None
        return Attempt(right.prompt, "" if lost else right.reference, shown)

    return attempt


def blank(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return a white picture."""
    return Attempt(picture=_plain("white"))


def plain_color(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return a picture of the background's color; for a flag, its mean color."""
    if case.scene.flag is None:
        return Attempt(picture=_plain(COLORS[case.scene.background]))
    return Attempt(picture=library.flag(case.scene.flag, SIDE).resize((1, 1)).resize((SIDE, SIDE)))


def reference_alone(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right reference and nothing else."""
    return Attempt(picture=library.reference(_reference(case.scene, library)[1], SIDE))


def painted_words(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the words of the truth painted on white."""
    from PIL import ImageDraw, ImageFont

    picture = _plain("white")
    words = str(case.request.meta["truth_caption"]).split()
    lines = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)][:6]
    font = ImageFont.load_default(size=9)
    ImageDraw.Draw(picture).multiline_text((2, 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return Attempt(picture=picture)


def painted_letters(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the picture of a random program with the right letters over it."""
    return Attempt(picture=compose(case.other.model_copy(update={"caption": case.scene.caption}), library, SIDE))


KINDS: dict[str, Kind] = {
    TEACHER: teacher,
    "without count": poor("count"),
    "without background": poor("background"),
    "without count, background, style, caption": poor("count", "background", "style", "caption"),
    "a wrong reference": wrong_reference,
    "a random program": random_program,
    "blank picture": blank,
    "plain color": plain_color,
    "the reference alone": reference_alone,
    "painted words": painted_words,
    "right letters on a random picture": painted_letters,
}

PROGRAMS = list(KINDS)[:6]
"""Those that are programs."""


class Bench:
    """Judge attempts with the judges and the reward of a configuration."""

    def __init__(self, config: Mapping[str, Any], library: PictureLibrary, *, rendered: bool) -> None:
        """Build the judges, and the renderer if pictures are to be rendered."""
        self.images, self.library = MemoryImages(), library
        judges = {name: JudgeSpec.model_validate(spec) for name, spec in (config.get("judges") or {}).items()}
        services = {name: JudgeService(spec.build(), self.images) for name, spec in judges.items()}
        judge = JudgeService(JudgeSpec.model_validate(config["judge"]).build(), self.images)
        self.panel = Panel(judge, services, RewardConfig.model_validate(config["reward"]))
        spec = RendererSpec.model_validate(config["renderer"]) if rendered else None
        self.renderer = RenderService(spec.build(), self.images) if spec is not None else None

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
    """Return the scores of every kind of attempts on every case; a picture's seed is the case's number plus one."""
    found = {name: Scores() for name in KINDS}
    for number, case in enumerate(cases):
        attempts = [kind(case, random.Random(f"{number}:{name}"), bench.library) for name, kind in KINDS.items()]
        pictures = await asyncio.gather(*(bench.picture(attempt, number + 1) for attempt in attempts))
        for own, attempt, picture in zip(found.values(), attempts, pictures, strict=True):
            reward, parts = await bench.scored(case, attempt, picture)
            own.pictures.append(picture)
            own.rewards.append(reward)
            for part in {*own.components, *parts}:
                own.components.setdefault(part, [None] * number).append(parts.get(part))
        say(f"{number + 1} of {len(cases)} requests")
    return found


def differences(scores: Mapping[str, Scores]) -> dict[str, dict[str, Interval | float]]:
    """Return, for each kind of attempts, its mean reward, and how far the teacher's program lies above it in everything."""
    first, table = scores[TEACHER], {}
    for name, own in scores.items():
        row: dict[str, Interval | float] = {"reward": sum(own.rewards) / len(own.rewards)}
        if name != TEACHER:
            row["wins"] = sum(a > b for a, b in zip(first.rewards, own.rewards, strict=True)) / len(own.rewards)
            row["teacher - it: reward"] = paired_interval(own.rewards, first.rewards, seed=0)
            for part, values in own.components.items():
                pairs = [(v, t) for v, t in zip(values, first.components[part], strict=True) if None not in (v, t)]
                row[f"teacher - it: {part}"] = paired_interval(*zip(*pairs, strict=True), seed=0)
        table[name] = row
    return table


def paired(
    images: MemoryImages, cases: Sequence[Case], scores: Mapping[str, Scores]
) -> tuple[PillowImage, list[dict[str, Any]]]:
    """Return a sheet, two pictures and the truth of each request under its number and words, and the better by reward.

    The two are drawn from two kinds of programs, chosen at random.
    """
    from PIL import Image, ImageDraw, ImageFont

    side, order = 3 * SIDE, []
    wide, high = 3 * side + 84, side + 30
    sheet = Image.new("RGB", (2 * wide, (len(cases) + 1) // 2 * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, case in enumerate(cases):
        left, top = number % 2 * wide, number // 2 * high
        pen.text((left + 4, top + 4), f"{number + 1}. {case.request.meta['truth_caption']}", fill="black", font=font)
        chosen = [scores[name] for name in random.Random(f"pair {number}").sample(PROGRAMS, 2)]
        shown = [images.get(one.pictures[number]) for one in chosen] + [case.truth]
        for data, across in zip(shown, (4, side + 20, 2 * side + 60), strict=True):
            picture = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + across, top + 24))
        one, other = (scores.rewards[number] for scores in chosen)
        better = "left" if one > other else "right" if other > one else "neither"
        order.append({"pair": number + 1, "better": better, "rewards": [one, other]})
    return sheet, order


def read_cases(rows: Path, count: int, seed: int) -> list[Case]:
    """Return random requests of a file of rows with their truths; of each, the scene of another as well."""
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    chosen = random.Random(seed).sample(read, min(count, len(read)))
    scenes = [SmallScene.model_validate(row["meta"]["scene"]) for row in chosen]
    return [
        Case(
            Request(id=row["id"], prompt=row["prompt"], eval_type=EvalType(row["eval_type"]), meta=row["meta"]),
            scenes[i],
            (rows.parent / row["gt_image"]).read_bytes(),
            scenes[(i + 1) % len(scenes)],
        )
        for i, row in enumerate(chosen)
    ]


def png(picture: PillowImage) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _program(scene: SmallScene, rng: random.Random, library: PictureLibrary, omit: Sequence[Part] = ()) -> Attempt:
    kind, id = _reference(scene, library)
    return Attempt(describe(scene, rng, kind, omit), id, scene)


def _reference(scene: SmallScene, library: PictureLibrary) -> tuple[Reference, str]:
    """Return what the first reference of a scene's program is, and its id: the flag, else the subject."""
    if scene.flag is not None:
        return "flag", library.flags[scene.flag].id
    assert flag_code(scene.subject) is None, "a subject is no flag"
    return "subject", scene.subject


def _plain(color: str | tuple[int, int, int]) -> PillowImage:
    from PIL import Image

    return Image.new("RGB", (SIDE, SIDE), color)


def report(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Print the differences, and return them for a JSON file."""
    table = differences(scores)
    for name, row in table.items():
        print(f"{name}: {'; '.join(f'{key} {_told(value)}' for key, value in row.items())}")
    return {
        name: {key: value.model_dump() if isinstance(value, Interval) else value for key, value in row.items()}
        for name, row in table.items()
    }


def _told(value: Interval | float) -> str:
    if isinstance(value, Interval):
        return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
    return f"{value:.3f}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_reward", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("rows", type=Path, help="a file of requests that `genevolve small setup` wrote")
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML with judge, reward and, with --rendered, renderer"
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
    config = yaml.safe_load(parsed.config.read_text(encoding="utf-8"))
    bench = Bench(config, PictureLibrary.installed(), rendered=parsed.rendered)
    cases = read_cases(parsed.rows, parsed.requests, parsed.seed)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    scores = asyncio.run(measure(bench, cases))
    sheet, order = paired(bench.images, cases[: parsed.pairs], scores)
    sheet.save(parsed.out.with_name("pairs.png"))
    parsed.out.with_name("order.json").write_text(json.dumps(order, indent=1) + "\n", encoding="utf-8")
    found = {"requests": len(cases), "kinds": report(scores)}
    parsed.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
