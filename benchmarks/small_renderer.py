"""What the renderer of the world `small` can and cannot do, by the quality of the prompt and the choice of the reference.

Scenes are drawn from a seed that no training used. Each is rendered by the ordinary `DiffusersRenderer` under several
conditions: a full prompt, a prompt that lacks one part, another reference, none. What a picture shows is decided by
pixels: of the true scene and others that differ in one part alone, which one is the nearest? Letters are read by OCR.

    python -m benchmarks.small_renderer --renderer FOLDER --out FOLDER [--scenes 60]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import Part, Reference, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SEED = 90_125
"""Of the scenes; no training uses it."""
SIDE = 64
STEPS, TEXT_GUIDANCE, IMAGE_GUIDANCE = 20, 3.0, 1.5
"""The settings of configs/small.yaml."""
OTHERS = 7
"""Wrong flags or subjects beside the true one, from which a picture is told: chance is 1 in 8."""
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


def trials(library: PictureLibrary, number: int) -> list[Trial]:
    """Return scenes: half with a flag as the reference, half with the picture of a rare subject."""
    rng, found = random.Random(SEED), []
    flags = list(library.flags)
    common = [s.id for s in library.subjects.values() if s.common]
    rare = [s.id for s in library.subjects.values() if not s.common]
    for i in range(number):
        kind: Reference = "flag" if i % 2 else "subject"
        flag, other_flag = rng.sample(flags, 2)
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


async def render(renderer: DiffusersRenderer, library: PictureLibrary, these: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the pictures of every trial by condition, uint8[H, W, 3] each."""
    drawn: dict[str, list[Any]] = {}
    for name, (reference, omitted) in CONDITIONS.items():
        drawn[name] = []
        for i, trial in enumerate(these):
            prompt = describe(trial.scene, random.Random(f"{SEED}/{i}"), trial.kind, omitted)
            shown = {"right": [trial.right], "wrong": [trial.wrong], "none": []}[reference]
            data = await renderer.render(prompt, [_png(library.reference(id, 128)) for id in shown], seed=i)
            drawn[name].append(_pixels(data))
    return drawn


def told(library: PictureLibrary, picture: Any, scenes: Sequence[SmallScene]) -> int:
    """Return the position of the scene that is nearest to a picture in mean absolute difference of pixels."""
    distances = []
    for scene in scenes:
        layouts = (np.asarray(compose(scene, library, SIDE, seed), float) for seed in range(JITTERS))
        distances.append(min(np.abs(layout - picture).mean() for layout in layouts))
    return int(np.argmin(distances))


def alternatives(library: PictureLibrary, trial: Trial, i: int) -> dict[str, list[SmallScene]]:
    """Return, by part, the true scene first and scenes that differ from it in that part."""
    rng, scene = random.Random(f"{SEED}/others/{i}"), trial.scene
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
        flags = rng.sample([code for code in library.flags if code not in (scene.flag, wrong)], OTHERS - 1)
        changes["flag"] = [{"background": code} for code in (wrong, *flags)]
    return {part: [scene, *(scene.model_copy(update=one) for one in found)] for part, found in changes.items()}


def measure(library: PictureLibrary, these: Sequence[Trial], drawn: dict[str, list[Any]]) -> dict[str, Any]:
    """Return, by condition, the share of pictures that show each part, and their likeness to the truth."""
    rows: dict[str, Any] = {}
    options = [alternatives(library, trial, i) for i, trial in enumerate(these)]
    truths = [np.asarray(compose(trial.scene, library, SIDE), float) for trial in these]
    likeness = {
        name: [1 - np.abs(p - t).mean() / 255 for p, t in zip(pictures, truths, strict=True)]
        for name, pictures in drawn.items()
    }
    for name, pictures in drawn.items():
        hits: dict[str, list[bool]] = {}
        for picture, found in zip(pictures, options, strict=True):
            for part, scenes in found.items():
                hits.setdefault(part, []).append(told(library, picture, scenes) == 0)
        shares = {part: share(sum(values), len(values)) for part, values in sorted(hits.items())}
        letters = _letters(these, pictures)
        shares["letters"] = share(sum(letters), len(letters))
        less = np.array(likeness["full prompt"]) - np.array(likeness[name])
        rows[name] = {**shares, "likeness": mean(likeness[name]), "less than full": mean(less)}
    return rows


def share(hits: int, number: int) -> tuple[float, float, float]:
    """Return a proportion and its 95% interval (Wilson)."""
    from scipy.stats import binomtest

    if not number:
        return float("nan"), float("nan"), float("nan")
    interval = binomtest(hits, number).proportion_ci(method="wilson")
    return hits / number, float(interval.low), float(interval.high)


def mean(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float, float]:
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


def table(rows: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, each with its interval."""
    parts = list(next(iter(rows.values())))
    lines = ["| prompt | " + " | ".join(parts) + " |", "|---|" + "---|" * len(parts)]
    for name, found in rows.items():
        cells = [f"{a:.2f} ({b:.2f} to {c:.2f})" for a, b, c in (found[part] for part in parts)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    parser.add_argument("--renderer", type=Path, required=True, help="a folder in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, help="gets small_renderer.{md,json,png}")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--guidance", type=float, default=TEXT_GUIDANCE)
    parser.add_argument("--image-guidance", type=float, default=IMAGE_GUIDANCE)
    asked = parser.parse_args()
    config = DiffusersConfig(
        model=str(asked.renderer),
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        guidance_scale=asked.guidance,
        options={"image_guidance_scale": asked.image_guidance},
        threads=1,
    )
    library, renderer = PictureLibrary.installed(), DiffusersRenderer(config)
    these = trials(library, asked.scenes)
    drawn = asyncio.run(render(renderer, library, these))
    renderer.close()
    rows = measure(library, these, drawn)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "small_renderer.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (asked.out / "small_renderer.md").write_text(table(rows) + "\n", "utf-8")
    page(library, these, drawn).save(asked.out / "small_renderer.png")
    print(table(rows))


if __name__ == "__main__":
    main()
