"""Worlds, tools and teacher's episodes, each made once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import Decisions, ideal, misleading
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import Tool

EPISODES = 100


@lru_cache
def world_of(partition: Partition = Partition.TRAIN, seed: int = 1) -> World:
    return build_world(seed, partition, None)


@lru_cache
def tools_of(partition: Partition = Partition.TRAIN) -> dict[str, Tool]:
    return world_tools(world_of(partition))


@lru_cache
def chat_format() -> ChatFormat:
    return ChatFormat(build_tokenizer())


@lru_cache
def posed() -> list[tuple[Request, Truth]]:
    """The first requests of the training world, with what they hide."""
    requests = [make_request(world_of(), i) for i in range(EPISODES)]
    return [(r, Truth.model_validate(r.meta["truth"])) for r in requests]


def misled(truth: Truth) -> Decisions:
    return misleading(truth, np.random.default_rng(len(truth.scene.demands())))


@lru_cache
def episodes(decide: Callable[[Truth], Decisions] = ideal) -> list[Trajectory]:
    """The teacher's trajectories on `posed`, guided by the decisions that it takes."""

    async def all_of_them() -> list[Trajectory]:
        return [
            await play(request, truth, decide(truth), tools_of(), chat_format(), guided=True)
            for request, truth in posed()
        ]

    return asyncio.run(all_of_them())
