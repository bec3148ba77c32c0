"""Sample rows of the atlas in the shapes of the published files, for every command that reads rows.

The rows follow from the package alone: they are the same on every machine. Pictures are named as in the published
benchmark, by the `prompt_pool_index` of their row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import ideal
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.requests import INDEX_NAME
from genevolve_ray.records.published.writers import agent_row, request_values
from genevolve_ray.records.request import Request

SEED = 1
"""Seed of the worlds; it is the one of the `atlas` preset, so that its tools know the rows."""
COUNT = 12
FIRST_INDEX = {Partition.TEST: 0, Partition.TRAIN: 100, Partition.VALIDATION: 200}
"""`prompt_pool_index` of the first row of each part."""
KNOWGEN_CATEGORIES = ("astronomy", "physics", "history", "anime", "game", "film")
Row = dict[str, Any]

WISE_PROMPTS = (
    (1, "culture", "Festival", "Show the lamp that people light at the feast of lights.", "An oil lamp that burns."),
    (2, "culture", "Craft", "Show the tool with which a smith shapes iron.", "A hammer."),
    (410, "time", "Season", "Show a maple leaf as it looks in the tenth month.", "The leaf is red or yellow."),
    (600, "space", "Position", "Show what stands between the Sun and the Earth in a solar eclipse.", "The Moon."),
    (720, "biology", "Growth", "Show the animal that a tadpole becomes.", "A frog with four legs."),
    (830, "physics", "Optics", "Show white light behind a glass prism.", "A band of the colors of the rainbow."),
    (950, "chemistry", "Indicator", "Show litmus paper that was dipped into lemon juice.", "The paper is red."),
)
"""Prompts in the shape of WISE, by this project: id, category, subcategory, prompt, and what a judge should see."""


def bench_rows(partition: Partition = Partition.TEST, count: int = COUNT) -> tuple[list[Row], dict[str, bytes]]:
    """Return rows with a ground truth in the published shape, and the pictures by the path that the rows name."""
    images = MemoryImages()
    world = build_world(SEED, partition, images)
    rows, pictures = [], {}
    for number in range(count):
        request = make_request(world, number, images)
        assert request.truth_image is not None
        index = FIRST_INDEX[partition] + number
        path = f"images/case_{index:05d}.png"
        pictures[path] = images.get(request.truth_image)
        skills = Truth.model_validate(request.meta["truth"]).scene.demands()
        rows.append(
            request_values(request, path)
            | {INDEX_NAME: index, "primary_skills": list(skills[:1]), "secondary_skills": list(skills[1:])}
        )
    return rows, pictures


def request_rows(count: int = COUNT) -> list[Row]:
    """Return requests as a user writes them: an id and a prompt."""
    world = build_world(SEED, Partition.VALIDATION, None)
    posed = [make_request(world, number) for number in range(count)]
    return [{"id": request.id, "prompt": request.prompt} for request in posed]


def knowgen_rows(rows: Sequence[Row]) -> list[Row]:
    """Return bench rows with a category of KnowGen each, in `meta`, where its evaluator reads it."""
    names = [KNOWGEN_CATEGORIES[number % len(KNOWGEN_CATEGORIES)] for number in range(len(rows))]
    return [
        {**row, "category": name, "meta": {**row["meta"], "category": name}}
        for row, name in zip(rows, names, strict=True)
    ]


def wise_rows() -> list[Row]:
    """Return prompts in the shape of WISE: at least one of each category, in both editions."""
    names = ("prompt_id", "Category", "Subcategory", "Prompt", "Explanation")
    return [dict(zip(names, values, strict=True)) for values in WISE_PROMPTS]


def sft_rows(count: int = COUNT) -> list[Row]:
    """Return conversations of a teacher without errors, under the system prompt of the `atlas` profile.

    Observations are text, as the policy sees them in a run, so `images` is empty.
    """
    world = build_world(SEED, Partition.TRAIN, None)
    chat = ChatFormat(build_tokenizer())
    posed = [make_request(world, FIRST_INDEX[Partition.TRAIN] + number) for number in range(count)]
    return asyncio.run(_conversations(posed, world, chat))


async def _conversations(posed: Sequence[Request], world: World, chat: ChatFormat) -> list[Row]:
    rows, tools = [], world_tools(world)
    for request in posed:
        truth = Truth.model_validate(request.meta["truth"])
        trajectory = await play(request, truth, ideal(truth), tools, chat, guided=False)
        opening = prompt_messages(request.prompt, PROFILES["atlas"], tools)
        messages = agent_row({}, trajectory, opening=opening)["messages"]
        rows.append({"id": f"sft-{request.id}", "messages": messages, "images": []})
    return rows
