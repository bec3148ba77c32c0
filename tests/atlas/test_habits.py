"""A generator with habits obeys one wording of each structure, and only experience tells which."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.coldstart import Curriculum, CurriculumConfig, play
from genevolve_ray.atlas.exercises import exercise, follow_wordings
from genevolve_ray.atlas.habits import ORDER, WORDINGS, HabitsConfig, preferred_wordings, structures_of, wordings_in
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.long_start import LongStartConfig
from genevolve_ray.atlas.renderer import AtlasRenderer, AtlasRendererConfig
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import MEDIA, MOODS, SKILLS, Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.summariser import AtlasSummariser, AtlasSummariserConfig
from genevolve_ray.atlas.teacher import Decisions, as_experience, ideal, misleading
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.config import load_config
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Pair, Trajectory
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, Verdict

HABITS = HabitsConfig(stubborn=1.0)
STEADY = AtlasRendererConfig(failure=1.0, slip=0.0)
PLAIN, STUBBORN = AtlasRenderer(STEADY), AtlasRenderer(STEADY.model_copy(update={"habits": HABITS}))
IMAGES = MemoryImages()
RIGHT = Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True)


@lru_cache
def styled_world() -> World:
    return build_world(3, Partition.TRAIN, IMAGES, styled=True)


@lru_cache
def styled_chat() -> ChatFormat:
    return ChatFormat(build_tokenizer(styled=True))


def posed(index: int) -> tuple[Request, Truth]:
    request = make_request(styled_world(), index, IMAGES)
    return request, Truth.model_validate(request.meta["truth"])


def played(request: Request, truth: Truth, decisions: Decisions) -> Trajectory:
    return asyncio.run(play(request, truth, decisions, world_tools(styled_world()), styled_chat(), guided=True))


def scores(request: Request, attempt: Trajectory, renderer: AtlasRenderer, seed: int = 7) -> Verdict:
    program = attempt.program
    assert program is not None and request.truth_image is not None
    hits = [attempt.images[r.img_id] for r in program.reference_images]
    drawn = renderer.draw(program.gen_prompt, [IMAGES.get(hit.image) for hit in hits], seed)
    return asyncio.run(AtlasJudge().judge(request, drawn, IMAGES.get(request.truth_image), program, hits))


def mean_score(verdict: Verdict) -> float:
    image = verdict.image
    seen = [image.faithfulness, image.visual_correctness, image.text_accuracy, image.aesthetics]
    return float(np.mean([x for x in seen if x is not None]))


def any_wordings(truth: Truth, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {s: str(rng.choice(list(WORDINGS[s]))) for s in structures_of(truth.scene)}


@pytest.mark.parametrize("index", range(12))
def test_every_wording_is_read_back_and_counts_as_the_structure_of_its_skill(index: int) -> None:
    request, truth = posed(index)
    decisions = ideal(truth).model_copy(update={"wordings": any_wordings(truth, index)})
    attempt = played(request, truth, decisions)
    assert attempt.program is not None
    assert wordings_in(attempt.program.gen_prompt).items() >= decisions.wordings.items()
    verdict = scores(request, attempt, PLAIN)
    assert (mean_score(verdict), verdict.text) == (1.0, RIGHT)


@pytest.mark.parametrize("index", range(12))
def test_the_preferred_wordings_earn_what_they_earn_without_habits_and_others_less(index: int) -> None:
    request, truth = posed(index)
    wanted, others = ideal(truth, HABITS), misleading(truth, np.random.default_rng(index), HABITS)
    assert mean_score(scores(request, played(request, truth, wanted), STUBBORN)) == 1.0
    obstinate = wanted.model_copy(update={"wordings": others.wordings})
    verdict = scores(request, played(request, truth, obstinate), STUBBORN)
    assert mean_score(verdict) < 1.0 and verdict.text == RIGHT


def test_preferences_depend_on_the_style_and_on_the_seed() -> None:
    styles = [(medium, mood) for medium in (None, *MEDIA) for mood in (None, *MOODS)]
    for structure, wordings in WORDINGS.items():
        preferred = [HABITS.preferred(structure, *style) for style in styles]
        assert set(preferred) == set(wordings), structure
        by_medium = HabitsConfig(by=("medium",))
        assert len({by_medium.preferred(structure, None, mood) for _, mood in styles}) == 1
    tables = [[HabitsConfig(seed=n).preferred(s, *style) for s in WORDINGS for style in styles] for n in (1, 2)]
    assert tables[0] != tables[1]


def test_names_of_wordings_are_of_one_wording_alone_and_no_skill_mentions_which_to_take() -> None:
    names = [name for wordings in WORDINGS.values() for name in wordings]
    assert len(set(names)) == len(names)
    assert set(WORDINGS) - {"reference"} == set(SKILLS)


def test_a_styled_world_states_each_style_as_often_as_none() -> None:
    drawn = [posed(i)[1].scene for i in range(400)]
    for kind, values in (("medium", MEDIA), ("mood", MOODS)):
        found = [getattr(scene, kind) for scene in drawn]
        shares = [found.count(value) / len(found) for value in (None, *values)]
        # Requests of fewer than two demands are drawn again, so that none is a little rarer.
        assert all(0.17 < share < 0.32 for share in shares), (kind, shares)
    assert max(len(scene.demands()) for scene in drawn) == 5


def test_requests_of_other_worlds_stay_as_they_were() -> None:
    plain = build_world(3, Partition.TRAIN, None)
    assert [make_request(plain, i).prompt for i in range(3)] == [
        make_request(dataclasses.replace(plain, styled=False), i).prompt for i in range(3)
    ]
    shares = [make_request(plain, i).meta["truth"]["scene"]["medium"] is None for i in range(300)]
    assert 0.5 < sum(shares) / len(shares) < 0.75


def summarised(request: Request, best: Trajectory, worst: Trajectory, **config: bool) -> tuple[str, ...]:
    pair = Pair(request.id, 0, best, worst, 0.5)
    bundle = asyncio.run(AtlasSummariser(AtlasSummariserConfig(**config)).compare(request, pair))
    return bundle.guidance["prompt_construction"]


def judged(attempt: Trajectory, total: float, image: ImageScores) -> Trajectory:
    verdict = Verdict(image=image, text=RIGHT, judge="test", formula=ScoreFormula.PAPER)
    reward = Reward(total=total, image=total, text=1.0)
    return dataclasses.replace(attempt, outcome=Outcome.SCORED, reward=reward, verdict=verdict)


def test_a_bundle_says_the_wordings_that_came_out_right() -> None:
    request, truth = next((r, t) for r, t in map(posed, range(99)) if t.scene.text and t.scene.mood)
    attempt = played(request, truth, ideal(truth, HABITS))
    full = ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=1, aesthetics=1)
    best = judged(attempt, 1.0, full)
    said = as_experience(ideal(truth, HABITS)).guidance["prompt_construction"]
    assert summarised(request, best, best, wordings=True) == said
    assert summarised(request, best, best) == said[:1]
    garbled = judged(attempt, 0.8, full.model_copy(update={"text_accuracy": 0.0}))
    place = f"say {preferred_wordings(HABITS, truth.scene)['text_rendering']}"
    assert set(said) - set(summarised(request, garbled, garbled, wordings=True)) == {place}


def test_the_worst_attempt_lends_the_wording_that_the_best_one_got_wrong() -> None:
    request, truth = next((r, t) for r, t in map(posed, range(99)) if t.scene.text and len(t.scene.demands()) > 2)
    wanted = ideal(truth, HABITS)
    other = wanted.model_copy(
        update={"wordings": {**wanted.wordings, "text_rendering": _another(wanted.wordings["text_rendering"])}}
    )
    full = ImageScores(faithfulness=1, visual_correctness=1, text_accuracy=1, aesthetics=1)
    best = judged(played(request, truth, other), 0.8, full.model_copy(update={"text_accuracy": 0.0}))
    worst = judged(played(request, truth, wanted), 0.3, full.model_copy(update={"faithfulness": 0.0}))
    assert f"say {wanted.wordings['text_rendering']}" in summarised(request, best, worst, wordings=True)


def _another(name: str) -> str:
    return next(n for n in WORDINGS["text_rendering"] if n != name)


def test_guided_lessons_state_the_wordings_and_others_draw_them() -> None:
    curriculum = Curriculum(CurriculumConfig(steps=4, worlds=1, stated_share_later=0.0), styled_chat(), styled=True)
    guided, alone = (asyncio.run(curriculum.trajectory(step, 5)) for step in (0, 3))
    said = ["say " in styled_chat().decode(lesson.ledger.tokens) for lesson in (guided, alone)]
    assert said == [True, False]
    drawn = {
        wordings_in(lesson.program.gen_prompt).get("reference")
        for lesson in (asyncio.run(curriculum.trajectory(3, i)) for i in range(12))
        if lesson.program is not None
    }
    assert drawn == set(WORDINGS["reference"])


def test_the_shipped_checkpoint_was_made_by_the_recipe_in_the_code() -> None:
    shipped = Path(str(resources.files("genevolve_ray.atlas") / "cold_start_long"))
    provenance = json.loads((shipped / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"] == LongStartConfig().model_dump(mode="json")
    assert load_config("atlas-long").policy.model == "genevolve_ray.atlas:cold_start_long"
    assert sum(file.stat().st_size for file in shipped.iterdir()) <= 8 << 20


def test_the_identity_of_a_generator_without_habits_is_that_from_before_there_were_any() -> None:
    assert AtlasRenderer().identity == "atlas-renderer/1:985495d9"
    assert STUBBORN.identity != PLAIN.identity


def test_the_preset_differs_from_the_atlas_by_its_world_alone() -> None:
    long, plain = (load_config(name, []).model_dump() for name in ("atlas-long", "atlas"))
    assert {key for key in long if long[key] != plain[key] and key != "layers"} == {
        "name", "policy", "summariser", "requests", "tools", "renderer",
    }  # fmt: skip


def test_the_place_of_parts_is_none_where_nothing_else_is_said() -> None:
    assert ORDER not in wordings_in("draw Velmora; two moon")
    assert wordings_in("draw Velmora; calm light from above")[ORDER] == "things first"
    assert wordings_in("draw calm light from above; Velmora")[ORDER] == "things last"


@pytest.mark.parametrize("seed", range(8))
def test_an_exercise_words_its_program_as_its_guide_says(seed: int) -> None:
    pieces = follow_wordings(np.random.default_rng(seed))
    guide, program = "".join(text for text, _ in pieces).strip().split("\n")
    found = wordings_in(program)
    assert found
    assert {f"say {name}" for name in found.values()} <= {*guide.removeprefix("- ").split("; ")}
    assert {s for text, known in pieces if known for s in wordings_in(text)} >= {*found} - {ORDER}


def test_exercises_of_wordings_are_drawn_in_styled_worlds_alone() -> None:
    tokenizer = build_tokenizer(styled=True)
    drawn = [
        tokenizer.decode(exercise(np.random.default_rng(seed), tokenizer, 400, styled=styled)[0])
        for styled in (False, True)
        for seed in range(3)
    ]
    assert ["say " in text for text in drawn] == [False] * 3 + [True] * 3
