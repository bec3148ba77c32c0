"""What the renderer of the world `small` can and cannot do, by the quality of the prompt and the choice of the reference.

Scenes are drawn from a seed that no training used. Each is rendered by the ordinary `DiffusersRenderer` with the settings
of a configuration, under several conditions: a full prompt, a prompt that lacks one part, another reference, none. What a
picture shows is decided by pixels: of the true scene and others that differ in one part alone, which one is the nearest?
Letters are read by OCR. Steps and guidance are chosen by the part `validation`, and reported once by the part `test`.

    python -m benchmarks.small_renderer --config runs/small/small.yaml --part test --out FOLDER [--scenes 60]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.config import load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.small.alike import alike_flags
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import Part, Reference, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SEEDS = {"validation": 90_125, "test": 20_929}
"""Of the scenes of a part; no training uses them."""
SIDE = 64
Estimate = tuple[float, float, float]
"""A value and its 95% interval."""
Row = dict[str, Estimate | None]
"""The figures of a condition by part; None where no scene asks for the part."""
OTHERS = 7
"""Wrong flags or subjects beside the true one, from which a picture is told: chance is 1 in 8."""
LIKENESS, LESS = "likeness", "less than full"
JITTERS = 4
"""Layouts of a candidate; the nearest counts."""
CONDITIONS: dict[str, tuple[str, tuple[Part, ...]]] = {
    "full prompt": ("right", ()),
    "no name": ("right", ("name",)),
    "no count": ("right", ("count",)),
    "no background": ("right", ("background",)),
    "no caption": ("right", ("caption",)),
    "no style": ("right", ("style",)),
    "wrong reference": ("wrong", ()),
    "no reference": ("none", ()),
}
"""What the renderer gets: which reference, and the parts that the prompt lacks."""


@dataclass(frozen=True)
class Trial:
    """Hold a scene, what its right reference is, and another scene with a wrong one."""

    scene: SmallScene
    kind: Reference
    right: str
    wrong: str
    """Ids of pictures: the reference that fits, and one of the same kind that does not."""


def trials(library: PictureLibrary, number: int, seed: int) -> list[Trial]:
    """Return scenes: half with a flag as the reference, half with the picture of a rare subject."""
    rng, found = random.Random(seed), []
    flags, alike = list(library.flags), alike_flags(library, library.flags)
    common = [s.id for s in library.subjects.values() if s.common]
    rare = [s.id for s in library.subjects.values() if not s.common]
    for i in range(number):
        kind: Reference = "flag" if i % 2 else "subject"
        flag, other_flag = rng.sample(flags, 2)
        while other_flag == flag or other_flag in alike[flag]:  # Then the "wrong" reference would be right.
            other_flag = rng.choice(flags)
        subject, other_subject = rng.sample(rare, 2)
        scene = SmallScene(
            subject=rng.choice(common) if kind == "flag" else subject,
            count=1 + i // 2 % 4,
            background=flag if kind == "flag" else rng.choice(list(COLORS)),
            caption="".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(2)) if i % 3 == 0 else "",
            style="black-and-white" if i % 7 == 3 else "color",
        )
        ids = (library.flags[flag].id, library.flags[other_flag].id) if kind == "flag" else (subject, other_subject)
        found.append(Trial(scene, kind, *ids))
    return found


async def render(
    renderer: DiffusersRenderer, library: PictureLibrary, these: Sequence[Trial], seed: int
) -> dict[str, list[Any]]:
    """Return the pictures of every trial by condition, uint8[H, W, 3] each."""
    drawn: dict[str, list[Any]] = {}
    for name, (reference, omitted) in CONDITIONS.items():
        drawn[name] = []
        for i, trial in enumerate(these):
            prompt = describe(trial.scene, random.Random(f"{seed}/{i}"), trial.kind, omitted)
            shown = {"right": [trial.right], "wrong": [trial.wrong], "none": []}[reference]
            data = await renderer.render(prompt, [_png(library.reference(id, 128)) for id in shown], seed=i)
            drawn[name].append(_pixels(data))
    return drawn


def told(library: PictureLibrary, picture: Any, scenes: Sequence[SmallScene]) -> int:
    """Return the position of the scene that is nearest to a picture in mean absolute difference of pixels.

    Of equally near ones it is the last, so that a picture which fits the first scene no better than another is a miss.
    """
    distances = []
    for scene in scenes:
        layouts = (np.asarray(compose(scene, library, SIDE, seed), float) for seed in range(JITTERS))
        distances.append(min(np.abs(layout - picture).mean() for layout in layouts))
    return len(distances) - 1 - int(np.argmin(distances[::-1]))


def alternatives(library: PictureLibrary, trial: Trial, i: int, seed: int) -> dict[str, list[SmallScene]]:
    """Return, by part, the true scene first and scenes that differ from it in that part, with flags that look different."""
    rng, scene = random.Random(f"{seed}/others/{i}"), trial.scene
    rare = [s.id for s in library.subjects.values() if s.common == library.subjects[scene.subject].common]
    subjects = rng.sample([id for id in rare if id != scene.subject], OTHERS)
    if trial.kind == "subject" and trial.wrong not in subjects:
        subjects[0] = trial.wrong
    changes: dict[str, list[dict[str, Any]]] = {
        "subject": [{"subject": id} for id in subjects],
        "count": [{"count": count} for count in (1, 2, 3, 4) if count != scene.count],
        "style": [{"style": "color" if scene.style == "black-and-white" else "black-and-white"}],
    }
    if scene.flag is None:
        changes["color"] = [{"background": color} for color in COLORS if color != scene.background]
    else:
        wrong = next(code for code, entry in library.flags.items() if entry.id == trial.wrong)
        hidden = {scene.flag, wrong, *alike_flags(library, library.flags)[scene.flag]}
        flags = rng.sample([code for code in library.flags if code not in hidden], OTHERS - 1)
        changes["flag"] = [{"background": code} for code in (wrong, *flags)]
    return {part: [scene, *(scene.model_copy(update=one) for one in found)] for part, found in changes.items()}


def measure(
    library: PictureLibrary, these: Sequence[Trial], drawn: dict[str, list[Any]], seed: int
) -> tuple[dict[str, int], dict[str, Row]]:
    """Return how many scenes ask for each part, and by condition the share that shows it, and the likeness to the truth.

    The first row is what pictures without regard to the prompt reach at most: always the most frequent value of the part,
    or the right one of the candidates by chance.
    """
    options = [alternatives(library, trial, i, seed) for i, trial in enumerate(these)]
    truths = [np.asarray(compose(trial.scene, library, SIDE), float) for trial in these]
    likeness = {
        name: [1 - np.abs(p - t).mean() / 255 for p, t in zip(pictures, truths, strict=True)]
        for name, pictures in drawn.items()
    }
    numbers, rows = {}, {"chance": chance(options)}
    for name, pictures in drawn.items():
        hits: dict[str, list[bool]] = {part: [] for part in rows["chance"]}
        for picture, found in zip(pictures, options, strict=True):
            for part, scenes in found.items():
                hits[part].append(told(library, picture, scenes) == 0)
        hits["letters"] = _letters(these, pictures)
        numbers = {part: len(values) for part, values in hits.items()} | {LIKENESS: len(these), LESS: len(these)}
        less = np.array(likeness["full prompt"]) - np.array(likeness[name])
        shares: Row = {part: share(sum(values), len(values)) for part, values in hits.items()}
        rows[name] = {**shares, LIKENESS: mean(likeness[name]), LESS: mean(less)}
    return numbers, rows


def chance(options: Sequence[dict[str, list[SmallScene]]]) -> Row:
    """Return, by part, the share of the most frequent value, or one of the number of candidates where that is more."""
    found: Row = {}
    for part in sorted({part for parts in options for part in parts}):
        asked = [parts[part] for parts in options if part in parts]
        field = "background" if part in ("color", "flag") else part
        (_, most), *_ = Counter(getattr(scenes[0], field) for scenes in asked).most_common(1)
        value = max(most / len(asked), 1 / max(len(scenes) for scenes in asked))
        found[part] = (value, value, value)
    return found


def share(hits: int, number: int) -> Estimate | None:
    """Return a proportion and its 95% interval (Wilson); None of nothing."""
    from scipy.stats import binomtest

    if not number:
        return None
    interval = binomtest(hits, number).proportion_ci(method="wilson")
    return hits / number, float(interval.low), float(interval.high)


def mean(values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    """Return a mean and its 95% interval (bootstrap over the scenes)."""
    rng, array = np.random.default_rng(0), np.asarray(values, float)
    means = array[rng.integers(len(array), size=(2000, len(array)))].mean(axis=1)
    return float(array.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def page(
    library: PictureLibrary, these: Sequence[Trial], drawn: dict[str, list[Any]], columns: int = 24
) -> PillowImage:
    """Return a sheet: a column a scene, with its reference, its truth, and the picture of each condition."""
    from PIL import Image

    step = SIDE + 2
    sheet = Image.new("RGB", (columns * step, (2 + len(drawn)) * step), "white")
    for i, trial in enumerate(these[:columns]):
        cells = [library.reference(trial.right, SIDE), compose(trial.scene, library, SIDE)]
        cells += [Image.fromarray(pictures[i]) for pictures in drawn.values()]
        for row, cell in enumerate(cells):
            sheet.paste(cell, (i * step, row * step))
    return sheet


def table(numbers: dict[str, int], rows: dict[str, Row]) -> str:
    """Return the figures as a Markdown table, each with its interval, and each part with the number of its scenes."""
    head = [f"{part} (n={number})" for part, number in numbers.items()]
    lines = ["| prompt | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name, found in rows.items():
        cells = [_cell(found.get(part)) for part in numbers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = estimate
    return f"{value:.2f}" if low == high else f"{value:.2f} ({low:.2f} to {high:.2f})"


def settings(config: str, folder: Path | None, guidance: float | None, image_guidance: float | None) -> DiffusersConfig:
    """Return the settings of a configuration's renderer on one thread, with another folder or guidance where given.

    Raises:
        UserFault: where that renderer is of another type.
    """
    spec = load_config(config).renderer
    if spec.type != "diffusers":
        raise UserFault(f"renderer.type={spec.type!r} of {config}: this measures the renderer `diffusers`")
    values: dict[str, Any] = {**spec.config, "threads": 1}
    if folder is not None:
        values["model"] = str(folder)
    if guidance is not None:
        values["guidance_scale"] = guidance
    if image_guidance is not None:
        values["options"] = {**values.get("options", {}), "image_guidance_scale": image_guidance}
    return DiffusersConfig.model_validate(values)


def _letters(these: Sequence[Trial], pictures: Sequence[Any]) -> list[bool]:
    """Return whether OCR reads the caption in each picture that should have one, at four times the size."""
    from PIL import Image
    from rapidocr import RapidOCR

    reader, found = RapidOCR(params={"Global.log_level": "critical"}), []
    for trial, picture in zip(these, pictures, strict=True):
        if trial.scene.caption:
            large = Image.fromarray(picture).resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
            read = reader(np.asarray(large)[:, :, ::-1]).txts or ()
            found.append(trial.scene.caption in "".join(read).upper().replace(" ", ""))
    return found


def _png(picture: PillowImage) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(data: bytes) -> Any:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def main() -> None:
    """Render, measure, and write the table, the figures and the page of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="small", help="a preset or a YAML file whose renderer is measured")
    parser.add_argument(
        "--part", choices=list(SEEDS), default="validation", help="test: after settings are chosen, once"
    )
    parser.add_argument("--renderer", type=Path, help="another folder in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, help="gets small_renderer.{md,json,png}")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--guidance", type=float, help="another guidance_scale")
    parser.add_argument("--image-guidance", type=float, help="another image_guidance_scale")
    asked = parser.parse_args()
    config = settings(asked.config, asked.renderer, asked.guidance, asked.image_guidance)
    library, renderer, seed = PictureLibrary.installed(), DiffusersRenderer(config), SEEDS[asked.part]
    these = trials(library, asked.scenes, seed)
    drawn = asyncio.run(render(renderer, library, these, seed))
    renderer.close()
    numbers, rows = measure(library, these, drawn, seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    used = config.model_dump(mode="json", exclude_unset=True)
    found = {"part": asked.part, "scenes": len(these), "renderer": used, "n": numbers, "prompts": rows}
    told_rows = json.dumps(found, indent=1, allow_nan=False) + "\n"
    (asked.out / "small_renderer.json").write_text(told_rows, "utf-8")
    text = f"Part {asked.part}, {len(these)} scenes.\n\n{table(numbers, rows)}\n"
    (asked.out / "small_renderer.md").write_text(text, "utf-8")
    page(library, these, drawn).save(asked.out / "small_renderer.png")
    print(text, end="")


if __name__ == "__main__":
    main()
