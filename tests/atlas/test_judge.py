"""What the judge rewards and punishes, in numbers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from scene_helpers import (
    JUDGE,
    canonical_prompt,
    official_pictures,
    picture_of,
    random_look,
    random_scene,
    request_for,
    run_program,
)

from genevolve_ray.atlas.drawing import SIZE, draw_scene, encode_png
from genevolve_ray.atlas.judge import AtlasJudge, AtlasJudgeConfig, score_images
from genevolve_ray.atlas.pixels import View, look_at
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.scene import COMPANION_LOOKS, SKILLS, Look, Part, Scene
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.program import Program
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, kscore

SKILL_MARGIN = 0.15
"""Least mean reward that the structure of one demanded skill is worth."""
REFERENCE_MARGIN = 0.25

SUBJECT = Part(name="Velmora", look=Look(shape="hexagon", colour="blue", pattern="striped"), found=True)


def _view(scene: Scene, rng: np.random.Generator | None = None) -> View:
    return look_at(np.asarray(draw_scene(scene, rng)))


def scores(seen: Scene, truth: Scene, *, sides: bool = False, rng: np.random.Generator | None = None) -> ImageScores:
    return score_images(_view(seen, rng), _view(truth), sides=sides, config=JUDGE.config)


def changed(**update: object) -> Part:
    return SUBJECT.model_copy(update=update)


def test_correct_programs_score_above_095_on_average() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(60)]
    rewards = [
        run_program(s, canonical_prompt(s), seed=i, renderer=AtlasRenderer())[1].total for i, s in enumerate(scenes)
    ]
    assert np.mean(rewards) > 0.95


@pytest.mark.parametrize("skill", SKILLS)
def test_each_skills_structure_is_worth_its_margin(skill: str) -> None:
    rng, renderer = np.random.default_rng(SKILLS.index(skill)), AtlasRenderer()
    losses = []
    for seed in range(10):
        scene = random_scene(rng, demand=skill)
        full, bare = canonical_prompt(scene), canonical_prompt(scene, without=(skill,))
        (_, right), (verdict, wrong) = (run_program(scene, p, seed=seed, renderer=renderer) for p in (full, bare))
        assert not verdict.text.skill_knowledge
        assert skill in verdict.rationale
        losses.append(right.total - wrong.total)
    assert np.mean(losses) >= SKILL_MARGIN


def test_a_wrong_reference_is_punished() -> None:
    rng, losses = np.random.default_rng(3), []
    for seed in range(10):
        scene = random_scene(rng)
        wrong = [picture_of(random_look(rng, other_than=p.look)) for p in scene.parts if p.found]
        prompt = canonical_prompt(scene)
        right_reward = run_program(scene, prompt, seed=seed)[1].total
        verdict, reward = run_program(scene, prompt, pictures=wrong, seed=seed)
        assert not verdict.text.reference_binding
        losses.append(right_reward - reward.total)
    assert np.mean(losses) >= REFERENCE_MARGIN


def test_jitter_alone_costs_nothing() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        scene = random_scene(rng)
        result = scores(scene, scene, sides=True, rng=rng)
        assert kscore(result, ScoreFormula.PAPER) == 1, scene


def test_a_blank_image_is_neither_faithful_nor_correct() -> None:
    rng = np.random.default_rng(5)
    for _ in range(6):
        scene = random_scene(rng)
        blank = AtlasRenderer().draw("", [], 0)
        verdict, _ = run_program(scene, canonical_prompt(scene), image=blank)
        assert verdict.image.visual_correctness == 0 and verdict.image.faithfulness == 0
        assert verdict.image.text_accuracy == (0 if scene.text else None)


@pytest.mark.parametrize(
    "wrong",
    [
        changed(look=Look(shape="hexagon", colour="blue", pattern="dotted")),
        changed(look=Look(shape="hexagon", colour="purple", pattern="striped")),
        changed(look=Look(shape="diamond", colour="blue", pattern="striped")),
        changed(material="metal"),
        changed(material="glass"),
        changed(legs=3),
    ],
    ids=["pattern", "colour", "shape", "metal", "glass", "legs"],
)
def test_one_wrong_attribute_costs_a_bin(wrong: Part) -> None:
    assert scores(Scene(parts=(wrong,)), Scene(parts=(SUBJECT,))).visual_correctness <= 0.5
    assert scores(Scene(parts=(SUBJECT,)), Scene(parts=(wrong,))).visual_correctness <= 0.5
    moons = Part(name="moon", look=COMPANION_LOOKS["moon"], found=False, count=3)
    assert scores(Scene(parts=(wrong, moons)), Scene(parts=(SUBJECT, moons))).visual_correctness <= 0.5


def test_one_leg_too_few_costs_a_bin() -> None:
    for legs in (2, 3, 4):
        seen, truth = (Scene(parts=(changed(legs=n),)) for n in (legs - 1, legs))
        assert scores(seen, truth).visual_correctness <= 0.5


def test_counts_weigh_on_faithfulness_and_correctness() -> None:
    by_count = {n: scores(Scene(parts=(changed(count=n),)), Scene(parts=(changed(count=3),))) for n in (1, 2, 3, 4, 5)}
    assert [by_count[n].faithfulness for n in (1, 2, 3, 4, 5)] == [0, 0.5, 1, 0.5, 0]
    assert by_count[3].visual_correctness == 1
    assert all(by_count[n].visual_correctness <= 0.5 for n in (1, 2, 4, 5))


def test_sides_count_only_where_they_are_asked_for() -> None:
    moon = Part(name="moon", look=COMPANION_LOOKS["moon"], found=False)
    truth, swapped = Scene(parts=(SUBJECT, moon)), Scene(parts=(moon, SUBJECT))
    assert scores(swapped, truth, sides=True).faithfulness == 0.5
    assert scores(swapped, truth, sides=False).faithfulness == 1


def test_text_is_read_letter_by_letter() -> None:
    read = {
        t: scores(Scene(parts=(SUBJECT,), text=t), Scene(parts=(SUBJECT,), text="SOL")).text_accuracy
        for t in ("SOL", "SOX", "NOX")
    }
    assert read == {"SOL": 1.0, "SOX": 0.5, "NOX": 0.0}
    assert scores(Scene(parts=(SUBJECT,)), Scene(parts=(SUBJECT,), text="SOL")).text_accuracy == 0
    assert scores(Scene(parts=(SUBJECT,), text="SOL"), Scene(parts=(SUBJECT,))).text_accuracy is None


def test_grounds_are_half_mood_and_half_medium() -> None:
    truth = Scene(parts=(SUBJECT,), mood="dusk", medium="mosaic")
    assert scores(truth, truth).aesthetics == 1
    assert scores(truth.model_copy(update={"mood": "calm"}), truth).aesthetics == 0.5
    assert scores(truth.model_copy(update={"medium": "crayon"}), truth).aesthetics == 0.5
    assert scores(Scene(parts=(SUBJECT,)), truth).aesthetics == 0


def sufficiency(scene: Scene, prompt: str, **kwargs: object) -> tuple[bool, bool, bool, bool]:
    text = run_program(scene, prompt, image=encode_png(draw_scene(scene)), **kwargs)[0].text  # type: ignore[arg-type]
    return text.facts, text.reference_binding, text.skill_knowledge, text.executable_constraints


FACTS = Scene(parts=(SUBJECT, Part(name="moon", look=COMPANION_LOOKS["moon"], found=False, count=4)), text="SOL")
FULL = 'Velmora from the first reference image ; four moon in a row ; the text "SOL" at the bottom'


def test_facts_must_be_right_only_where_they_had_to_be_found() -> None:
    assert sufficiency(FACTS, FULL, fact_count=True, fact_text=True) == (True, True, True, True)
    assert sufficiency(FACTS, FULL.replace("four", "three"), fact_count=True) == (False, True, True, False)
    assert sufficiency(FACTS, FULL.replace("four", "three")) == (True, True, True, False)
    assert sufficiency(FACTS, FULL.replace("SOL", "NOX"), fact_text=True) == (False, True, True, False)


@pytest.mark.parametrize(
    "prompt",
    [
        FULL + " ; dusk light from above",
        FULL + " ; mosaic over every part",
        FULL + " ; a wheel",
        FULL.replace("image ;", "image of glass with a bright edge ;"),
        FULL.replace("image ;", "image on two legs joined under the body ;"),
        FULL.replace("Velmora", "red Velmora"),
        FULL + " " + " ".join(["bright"] * 40),
    ],
    ids=["mood", "medium", "part", "material", "legs", "colour", "too long"],
)
def test_what_the_scene_has_not_breaks_the_constraints(prompt: str) -> None:
    assert sufficiency(FACTS, prompt) == (True, True, True, False)


def test_references_are_bound_by_ordinal() -> None:
    other = Part(name="Tirsa", look=Look(shape="ring", colour="pink"), found=True)
    scene = Scene(parts=(SUBJECT, other))
    first, second = official_pictures(scene)
    straight = "Velmora from the first reference image ; Tirsa from the second reference image"
    crossed = "Velmora from the second reference image ; Tirsa from the first reference image"
    assert sufficiency(scene, straight)[1]
    assert sufficiency(scene, crossed, pictures=[second, first])[1]
    assert not sufficiency(scene, crossed)[1]
    assert not sufficiency(scene, straight, pictures=[first])[1]


def test_synonyms_of_structure_are_accepted() -> None:
    prompt = 'A Velmora as in the first reference image. Four moons side by side. "SOL" is written on a banner below.'
    assert sufficiency(FACTS, prompt, fact_count=True, fact_text=True) == (True, True, True, True)


def test_verdicts_are_deterministic_and_name_their_judge() -> None:
    scene = random_scene(np.random.default_rng(6))
    prompt = canonical_prompt(scene)
    first, again = (run_program(scene, prompt, seed=9)[0] for _ in range(2))
    assert first == again
    assert first.formula is ScoreFormula.PAPER and first.judge == JUDGE.identity
    assert AtlasJudge(AtlasJudgeConfig(hue=20)).identity != JUDGE.identity


@pytest.mark.parametrize("data", [b"", b"not a picture"])
def test_an_undecodable_image_is_a_missing_judgement(data: bytes) -> None:
    scene = Scene(parts=(SUBJECT,))
    truth = encode_png(draw_scene(scene))
    program = Program(gen_prompt="Velmora", reference_images=())
    with pytest.raises(InfraFailure, match="cannot see"):
        asyncio.run(JUDGE.judge(request_for(scene, []), data, truth, program, []))


def test_pictures_of_another_size_are_judged_too() -> None:
    scene = Scene(parts=(SUBJECT,))
    large = encode_png(draw_scene(scene).resize((4 * SIZE, 4 * SIZE)))
    verdict, _ = run_program(scene, "Velmora from the first reference image", image=large)
    assert verdict.image.faithfulness == 1 and verdict.image.visual_correctness >= 0.5
