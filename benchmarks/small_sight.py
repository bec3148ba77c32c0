"""How well the image-text model of the world `small` tells pictures apart, by the requests of one part.

    python -m benchmarks.small_sight runs/small/image_text --part validation

Settings of the training are chosen by `validation`. Scenes are composed and seen as in training: moved, blurred, coarse, noisy.
The texts are those of the requests (`truth_caption`). Subjects and flags are known to the model, combinations are not. A picture that
can pass for the right one (`small.alike`) counts as right.

Shape legend: M scenes, d dimensions of the common space, S pixels of a side.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import prepare_process, say
from benchmarks.small_attempts import Case
from benchmarks.small_reward import PARTS, SAMPLES, files_of, read_cases
from genevolve_ray.config import load_config
from genevolve_ray.records.intervals import Interval, grouped_interval
from genevolve_ray.small.alike import alike_scenes
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose
from genevolve_ray.small.training.shots import POINTS, KeptLibrary, altered

if TYPE_CHECKING:
    from torch import Tensor

LINEUP = 8
"""Pictures of a lineup: the scene, and the same with other subjects of its group."""


class Eyes:
    """Embed texts and views of scenes with a model folder."""

    def __init__(self, model: str, library: PictureLibrary) -> None:
        """Load the model and its processor."""
        import torch
        from transformers import AutoModel, AutoProcessor

        self._model = AutoModel.from_pretrained(model, local_files_only=True).eval()
        self._processor = AutoProcessor.from_pretrained(model, local_files_only=True)
        self._library, self._generator = library, torch.Generator().manual_seed(0)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, float[M, d] of length 1."""
        import torch

        with torch.inference_mode():
            inputs = self._processor(text=list(texts), padding=True, return_tensors="pt")
            return self._unit(self._model.get_text_features(**inputs))

    def scenes(self, scenes: Sequence[SmallScene]) -> Tensor:
        """Return the embeddings of one view of each scene, float[M, d] of length 1."""
        import torch

        from genevolve_ray.small.training.views import seen

        found = []
        with torch.inference_mode():
            for at in range(0, len(scenes), 20):
                drawn = [compose(scene, self._library, seed=at + i) for i, scene in enumerate(scenes[at : at + 20])]
                pictures = torch.from_numpy(np.stack([np.asarray(one) for one in drawn])).permute(0, 3, 1, 2) / 255
                viewed = seen(pictures, self._generator)
                found.append(self._unit(self._model.get_image_features(pixel_values=(viewed - 0.5) / 0.5)))
        return torch.cat(found)

    def _unit(self, found: Any) -> Tensor:
        from torch.nn.functional import normalize

        return normalize(found.pooler_output, dim=-1)


def retrieval(eyes: Eyes, cases: Sequence[Case], library: PictureLibrary) -> dict[str, list[float]]:
    """Return, for each scene, whether the nearest of all texts, of all views by the text, and of all views is right."""
    scenes = [case.scene for case in cases]
    views_M_d, others_M_d = eyes.scenes(scenes), eyes.scenes(scenes)
    texts_M_d = eyes.texts([str(case.request.meta["truth_caption"]) for case in cases])

    def right(asked: Tensor, offered: Tensor) -> list[float]:
        nearest = (asked @ offered.T).argmax(1).tolist()
        return [float(alike_scenes(scenes[i], scenes[found], library)) for i, found in enumerate(nearest)]

    return {
        "text of a picture": right(views_M_d, texts_M_d),
        "picture of a text": right(texts_M_d, views_M_d),
        "picture of a picture": right(views_M_d, others_M_d),
    }


def told_apart(eyes: Eyes, cases: Sequence[Case], library: PictureLibrary) -> dict[str, list[float]]:
    """Return, for each scene, whether it is nearer to its text and to a picture of it than scenes with one point wrong.

    `subject` is one other subject of the group. `subject among 8` are seven: chance is 1/8, else 1/2.
    """
    scenes = [case.scene for case in cases]
    right_M_d, truths_M_d = eyes.scenes(scenes), eyes.scenes(scenes)
    texts_M_d = eyes.texts([str(case.request.meta["truth_caption"]) for case in cases])
    found: dict[str, list[float]] = {}

    def compare(name: str, wrong: Sequence[Tensor]) -> None:
        for judge, asked_M_d in (("alignment", texts_M_d), ("likeness", truths_M_d)):
            own_M = (asked_M_d * right_M_d).sum(1)
            best_M = np.max([(asked_M_d * other_M_d).sum(1).numpy() for other_M_d in wrong], axis=0)
            found[f"{judge}: {name}"] = [float(one > other) for one, other in zip(own_M.tolist(), best_M, strict=True)]

    for point in POINTS:
        others = [altered(scene, point, random.Random(f"{point} {i}"), library) for i, scene in enumerate(scenes)]
        compare(point, [eyes.scenes(others)])
    lineups = [_lineup(scene, random.Random(f"lineup {i}"), library) for i, scene in enumerate(scenes)]
    compare(f"subject among {LINEUP}", [eyes.scenes(each) for each in zip(*lineups, strict=True)])
    return found


def _lineup(scene: SmallScene, rng: random.Random, library: PictureLibrary) -> list[SmallScene]:
    """Return the scene with other subjects of its group."""
    group = library.subjects[scene.subject].group
    others = [one.id for one in library.subjects.values() if one.group == group and one.id != scene.subject]
    return [scene.model_copy(update={"subject": id}) for id in rng.sample(others, LINEUP - 1)]


def shares(cases: Sequence[Case], found: dict[str, list[float]]) -> dict[str, Interval]:
    """Return shares with 95% intervals that resample entities."""
    table = {}
    for name, values in found.items():
        groups: dict[str, list[float]] = {}
        for case, value in zip(cases, values, strict=True):
            groups.setdefault(case.entity, []).append(value)
        table[name] = grouped_interval(list(groups.values()), seed=0, samples=SAMPLES)
    return table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_sight", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="model folder of the judges")
    parser.add_argument("--config", default="small", help="a preset or a YAML file that names the requests")
    parser.add_argument("--part", choices=list(PARTS), default="validation")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    parsed = parser.parse_args()
    prepare_process(1)
    library = KeptLibrary(PictureLibrary.installed())
    cases = read_cases(files_of(load_config(parsed.config), parsed.part), parsed.requests, 0)
    eyes = Eyes(parsed.model, library)
    table = shares(cases, retrieval(eyes, cases, library) | told_apart(eyes, cases, library))
    for name, one in table.items():
        say(f"{name}: {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]")
    if parsed.out:
        report = {"part": parsed.part, "requests": len(cases), "entities": len({case.entity for case in cases})}
        shown = {name: one.model_dump() for name, one in table.items()}
        parsed.out.write_text(json.dumps(report | {"shares": shown}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
