"""Requests without a truth: what they state, what they cannot, and how the judge answers them."""

from __future__ import annotations

import asyncio

import pytest
from scene_helpers import JUDGE, canonical_prompt

from genevolve_ray.atlas.drawing import draw_scene, encode_png
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import COMPANION_LOOKS, Part, Scene
from genevolve_ray.atlas.stated import stated_truth, world_of
from genevolve_ray.atlas.world import build_world
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import EXAMINATION_FAILED, UNEXAMINED, Verdict

MOONS = Scene(
    parts=(
        Part(
            name="moon",
            look=COMPANION_LOOKS["moon"].model_copy(update={"colour": "red"}),
            found=False,
            count=2,
            colour="red",
            side="left",
        ),
        Part(name="gem", look=COMPANION_LOOKS["gem"], found=False),
    ),
    text="SOL",
    mood="calm",
    medium="mosaic",
)
WORDS = "Show two red moons on the left with gem, and the text 'SOL', calm mood, in mosaic."


def judged(prompt: str, scene: Scene = MOONS, **meta: object) -> Verdict:
    """Return the verdict on the right picture and a full prompt, for a request in these words."""
    picture = encode_png(draw_scene(scene))
    request = Request(id="mine", prompt=prompt, eval_type=EvalType.QUALITY, meta=meta)
    program = Program(gen_prompt=canonical_prompt(scene), reference_images=())
    return asyncio.run(JUDGE.judge(request, picture, picture, program, ()))


def test_a_request_that_states_everything_has_its_truth() -> None:
    truth, missing = stated_truth(WORDS)
    assert truth is not None and missing == ""
    assert truth.scene == MOONS
    assert truth.right_images == ()


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("Show Velgor with its moons.", "the look of Velgor is a fact of a world; its moons is a fact of a world"),
        ("Show lantern.", "the look of lantern is a fact of a world"),
        ("Show gem, and its motto.", "its motto is a fact of a world"),
        ("my cat", "it names nothing that the atlas knows"),
        ("", "it names nothing that the atlas knows"),
        ("Show nine moons.", "9 x moon on 0 legs is beyond a scene"),
        ("Show moon. A gem. A flag.", "it names 3 kinds of objects, a scene has 2"),
    ],
)
def test_a_request_that_needs_a_world_says_so(prompt: str, why: str) -> None:
    assert stated_truth(prompt) == (None, why)


def test_the_judge_reads_a_request_that_carries_no_truth() -> None:
    verdict = judged(WORDS)
    assert verdict.examined and verdict.flags == ()
    assert verdict.text.score == 1.0 and verdict.image.visual_correctness == 1.0


def test_the_judge_says_what_it_cannot_examine_and_scores_the_picture() -> None:
    verdict = judged("Show Velgor with its moons.")
    assert verdict.flags == (UNEXAMINED, EXAMINATION_FAILED)
    assert verdict.image.visual_correctness == 1.0
    assert verdict.text_rationale.startswith("the request carries no truth, and the look of Velgor is a fact")


@pytest.mark.parametrize("truth", [{}, {"scene": 1}, "x", {"scene": {"parts": []}, "right_images": []}])
def test_a_truth_of_another_kind_is_a_named_failure(truth: object) -> None:
    with pytest.raises(InfraFailure, match=r"request mine: meta\.truth.* is none of the atlas"):
        judged(WORDS, truth=truth)


def test_an_id_of_the_atlas_names_its_world() -> None:
    assert world_of("validation-9-00012", "Velgor", 1) == (Partition.VALIDATION, 9)
    assert world_of("mine", "my cat", 4) == (Partition.TRAIN, 4)


@pytest.mark.parametrize("sight", [False, True])
@pytest.mark.parametrize("partition", list(Partition))
def test_with_its_world_a_request_of_the_world_has_the_truth_that_it_was_made_from(
    partition: Partition, sight: bool
) -> None:
    world = build_world(3, partition, None, sight=sight)
    for index in range(120):
        request = make_request(world, index)
        truth, missing = stated_truth(request.prompt, world)
        assert truth is not None, (request.prompt, missing)
        assert truth.model_dump(mode="json") == request.meta["truth"], request.prompt


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("Show Nobodyhere.", "this world has no Nobodyhere"),
        ("Show lantern with its moons.", "nothing that it names has its moons"),
        ("Show seven towers.", "7 x tower on 0 legs is beyond a scene"),
        ("a cat on a skateboard", "it names nothing that the atlas knows"),
    ],
)
def test_what_a_world_does_not_know_is_named(prompt: str, why: str) -> None:
    assert stated_truth(prompt, build_world(3, Partition.TRAIN, None)) == (None, why)
