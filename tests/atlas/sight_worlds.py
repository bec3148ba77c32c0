"""A world with sight, its tools, the chat format of a policy that sees, and the teacher's episodes, each made once."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sight_start import PROFILE, SightStartConfig
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import Decisions, ideal
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.models.image_tokens import load_image_tokens
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.running import running_tools

EPISODES = 24
IMAGES = MemoryImages()


@lru_cache
def seen_world(partition: Partition = Partition.TRAIN) -> World:
    return build_world(1, partition, IMAGES, entities=12, sight=True)


@lru_cache
def seen_tools() -> dict[str, Tool]:
    return running_tools(world_tools(seen_world()), PROFILES[PROFILE].observations, IMAGES)


@lru_cache
def seeing_chat() -> ChatFormat:
    recipe, tokenizer = SightStartConfig(), build_tokenizer(sight=True)
    folder = Path(tempfile.mkdtemp())
    recipe.write_shape(recipe.new_model(tokenizer, recipe.curriculum.seed), folder)
    return ChatFormat(tokenizer, image_tokens=load_image_tokens(folder))


@lru_cache
def seen_requests() -> list[tuple[Request, Truth]]:
    requests = [make_request(seen_world(), i) for i in range(EPISODES)]
    return [(r, Truth.model_validate(r.meta["truth"])) for r in requests]


@lru_cache
def seen_episodes(decide: Callable[[Truth], Decisions] = ideal) -> list[Trajectory]:
    """The teacher's trajectories on `seen_requests`, guided by the decisions that it takes."""

    async def all_of_them() -> list[Trajectory]:
        profile = PROFILES[PROFILE]
        return [
            await play(
                *(request, truth, decide(truth), seen_tools(), seeing_chat()),
                guided=True,
                profile=profile,
                read=IMAGES.get,
            )
            for request, truth in seen_requests()
        ]

    return asyncio.run(all_of_them())
