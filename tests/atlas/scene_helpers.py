"""Random scenes, the prompts that state them with or without structure, and whole judged runs of one."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from functools import lru_cache

import numpy as np

from genevolve_ray.atlas.drawing import draw_look, draw_scene, encode_png
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.renderer import AtlasRenderer, AtlasRendererConfig
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANION_LOOKS,
    COMPANIONS,
    COUNT_WORDS,
    MATERIALS,
    MEDIA,
    MOODS,
    PATTERNS,
    SHAPES,
    TEXTS,
    Look,
    Part,
    Scene,
    Truth,
)
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import ORDINALS, Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import Reward, RewardConfig, ScoreFormula, Verdict, combine_reward

REWARD = RewardConfig(formula=ScoreFormula.PAPER)
STEADY = AtlasRenderer(AtlasRendererConfig(failure=1.0, slip=0.0))
"""A renderer whose weaknesses always show where structure is missing, and never where it is there."""
JUDGE = AtlasJudge()


def random_look(rng: np.random.Generator, other_than: Look | None = None) -> Look:
    while True:
        shape, colour, pattern = (str(rng.choice(options)) for options in (SHAPES, COLOURS, PATTERNS))
        if other_than is None or (shape, colour) != (other_than.shape, other_than.colour):
            return Look(shape=shape, colour=colour, pattern=pattern)


def random_scene(rng: np.random.Generator, demand: str | None = None) -> Scene:
    """Draw a scene of two to four demands, one of them `demand`."""
    while True:
        sides = rng.permutation(["left", "right"])
        sided, second = rng.random() < 0.4, rng.random() < 0.6
        first = Part(
            name="Velmora",
            look=random_look(rng),
            found=True,
            count=int(rng.integers(2, 6)) if rng.random() < 0.3 else 1,
            material=str(rng.choice(MATERIALS)) if rng.random() < 0.3 else None,
            legs=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
            side=str(sides[0]) if sided else None,
        )
        parts = [first]
        if second and rng.random() < 0.5:
            look = random_look(rng, other_than=first.look)
            parts.append(
                Part(name="Tirsa", look=look, found=True, colour=look.colour, side=str(sides[1]) if sided else None)
            )
        elif second:
            name = str(rng.choice(COMPANIONS))
            look, count = COMPANION_LOOKS[name], int(rng.integers(1, 6))
            parts.append(Part(name=name, look=look, found=False, count=count, side=str(sides[1]) if sided else None))
        scene = Scene(
            parts=tuple(parts),
            text=str(rng.choice(TEXTS)) if rng.random() < 0.4 else None,
            mood=str(rng.choice(MOODS)) if rng.random() < 0.35 else None,
            medium=str(rng.choice(MEDIA)) if rng.random() < 0.35 else None,
        )
        if 2 <= len(scene.demands()) <= 4 and (demand is None or demand in scene.demands()):
            return scene


def part_words(part: Part, ordinal: int | None, without: Container[str]) -> str:
    words = [COUNT_WORDS[part.count] if part.count > 1 else "", part.colour or "", part.name]
    words.append(f"from the {ORDINALS[ordinal]} reference image" if ordinal is not None else "")
    words.append(f"of {part.material}" if part.material else "")
    words.append("with a bright edge" if part.material and "physical_material_consistency" not in without else "")
    words.append(f"on {COUNT_WORDS[part.legs]} legs" if part.legs else "")
    words.append("joined under the body" if part.legs and "anatomy_body_coherence" not in without else "")
    words.append("in a row" if part.count > 1 and "quantity_counting" not in without else "")
    words.append((part.side if "spatial_layout" in without else f"at the {part.side} side") if part.side else "")
    return " ".join(w for w in words if w)


def canonical_prompt(scene: Scene, without: Container[str] = ()) -> str:
    """Say a scene in the canonical language, less the structure of some skills."""
    found = [part for part in scene.parts if part.found]
    parts = [part_words(p, found.index(p) if p.found else None, without) for p in scene.parts]
    clauses = [" and ".join(parts)] if "attribute_binding" in without else parts
    if scene.text:
        clauses.append(
            f"saying {scene.text}" if "text_rendering" in without else f'the text "{scene.text}" at the bottom'
        )
    if scene.mood:
        clauses.append(scene.mood + ("" if "aesthetic_drawing" in without else " light from above"))
    if scene.medium:
        clauses.append(scene.medium + ("" if "creative_drawing" in without else " over every part"))
    return " ; ".join(clauses)


@lru_cache(maxsize=512)
def picture_of(look: Look) -> bytes:
    return encode_png(draw_look(look))


def request_for(scene: Scene, right: list[bytes], *, fact_count: bool = False, fact_text: bool = False) -> Request:
    shas = tuple((reference(data, width=128, height=128).sha256,) for data in right)
    truth = Truth(scene=scene, right_images=shas, fact_count=fact_count, fact_text=fact_text)
    sides = " on the left and on the right" if any(p.side for p in scene.parts) else ""
    return Request(
        id="test-0",
        prompt=f"Show Velmora{sides}.",
        eval_type=EvalType.KNOWLEDGE,
        meta={"truth": truth.model_dump(mode="json")},
    )


def official_pictures(scene: Scene) -> list[bytes]:
    """The library's picture of each found part: its look without a colour that only the request states."""
    return [picture_of(part.look) for part in scene.parts if part.found]


def run_program(
    scene: Scene,
    prompt: str,
    *,
    pictures: list[bytes] | None = None,
    seed: int = 0,
    renderer: AtlasRenderer = STEADY,
    image: bytes | None = None,
    fact_count: bool = False,
    fact_text: bool = False,
) -> tuple[Verdict, Reward]:
    """Render a prompt with its pictures (the official ones unless given) and judge it."""
    official = official_pictures(scene)
    pictures = official if pictures is None else pictures
    request = request_for(scene, official, fact_count=fact_count, fact_text=fact_text)
    hits = [
        ImageHit(title="", url=f"atlas://{i}", image=reference(p, width=128, height=128))
        for i, p in enumerate(pictures)
    ]
    references = tuple(ReferenceImage(img_id=f"IMG_{i:03d}") for i in range(1, len(pictures) + 1))
    program = Program(gen_prompt=prompt, reference_images=references)
    image = image if image is not None else renderer.draw(prompt, pictures, seed)
    verdict = asyncio.run(JUDGE.judge(request, image, encode_png(draw_scene(scene)), program, hits))
    return verdict, combine_reward(verdict, 0, REWARD)
