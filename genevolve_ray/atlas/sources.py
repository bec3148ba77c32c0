"""The atlas behind the tools: its corpus, its picture library, and its requests."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import Field

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRendererConfig
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.stated import world_of
from genevolve_ray.atlas.teacher import as_experience, ideal
from genevolve_ray.atlas.typed import near_requests, read_request, some_requests
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.evolution.sources import typed_id
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.local import LocalImageSource, LocalTextSource
from genevolve_ray.tools.protocol import EpisodeContext, Tool
from genevolve_ray.tools.search import SearchTool
from genevolve_ray.tools.skillset import load_skills

MOST_ENTITIES = 800
"""Most named subjects of a world for training."""
MOST_HELD_OUT = 96
"""Most named subjects of a world for validation or test."""
TOP_K = 3
"""Hits that an atlas query returns by default: enough for a choice, few enough for a small context."""


class WorldConfig(Config):
    """Configure the worlds of a run. Training, validation and test never share a proper name."""

    seed: int = Field(default=1, ge=0)
    """Seed of the worlds."""
    entities: int = Field(default=48, ge=2, le=MOST_ENTITIES)
    """Named subjects in each world; those for validation and test have at most 96."""
    sight: bool = False
    """Whether only pixels show which picture of a subject is right: titles and addresses do not say it, and the corpus
    says what the right one looks like."""
    styled: bool = False
    """Whether most requests state a medium and a mood, so that habits of a generator count (`atlas/habits.py`)."""


class AtlasRequests:
    """Serve the requests of one seed: a training, a validation and a test world."""

    Config = WorldConfig

    def __init__(self, config: WorldConfig, images: ImageStore) -> None:
        """Build worlds on first use; truth pictures go to `images`."""
        self._config, self._images = config, images
        self._world = lru_cache(maxsize=3)(self._build)

    def _build(self, partition: Partition) -> World:
        return _built(self._config, partition, self._config.seed, self._images)

    def train(self, index: int) -> Request:
        """Return the index-th training request."""
        return make_request(self._world(Partition.TRAIN), index, self._images)

    def validation(self, count: int) -> list[Request]:
        """Return the first `count` requests of the validation world."""
        return [make_request(self._world(Partition.VALIDATION), i, self._images) for i in range(count)]

    def heldout(self, count: int) -> list[Request]:
        """Return the first `count` requests of the test world."""
        return [make_request(self._world(Partition.TEST), i, self._images) for i in range(count)]

    def read_request(self, prompt: str) -> Request:
        """Return a request as a person typed it, with the truth of the world that its first name belongs to.

        Raises:
            RequestNotUnderstood: naming what the world does not know, and requests that it can play.
        """
        world = self._world(world_of("", prompt, self._config.seed)[0])
        return read_request(world, typed_id(prompt), prompt, self._images)

    def ideal_guidance(self, request: Request, renderer: Any = None) -> Experience:
        """Return the decisions that earn the full reward; a calibration compares remembered bundles with them.

        Where the settings of the renderer have habits, the wordings that it prefers are among the decisions.
        """
        habits = renderer.habits if isinstance(renderer, AtlasRendererConfig) else None
        return as_experience(ideal(Truth.model_validate(request.meta["truth"]), habits))

    def suggest_requests(self, count: int, near: str = "", after: int = 0) -> list[str]:
        """Return requests of the training world, or those nearest to a text in the world of its first name."""
        world = self._world(world_of("", near, self._config.seed)[0])
        return near_requests(world, near, count) if near else some_requests(world, count, after)


class AtlasTools:
    """Provide the three tools over the world of each request (`atlas.stated.world_of`), also of one from elsewhere."""

    Config = WorldConfig
    local = True

    def __init__(self, config: WorldConfig, images: ImageStore) -> None:
        """Build worlds on first use; library pictures go to `images`."""
        self._config, self._images = config, images
        self._toolbox = lru_cache(maxsize=8)(self._build)
        self.tools: dict[str, Tool] = {
            # Skills are the same in every world.
            name: tool if isinstance(tool, KnowledgeTool) else _Routed(tool, self)
            for name, tool in self._toolbox("train", config.seed).items()
        }

    def _build(self, partition: str, seed: int) -> dict[str, Tool]:
        return world_tools(_built(self._config, Partition(partition), seed, self._images))

    def of(self, request: Request) -> dict[str, Tool]:
        """Return the tools of the world that a request belongs to."""
        partition, seed = world_of(request.id, request.prompt, self._config.seed)
        return self._toolbox(partition.value, seed)


def _built(config: WorldConfig, partition: Partition, seed: int, images: ImageStore) -> World:
    room = _room(config, partition)
    return build_world(seed, partition, images, room, sight=config.sight, styled=config.styled)


def _room(config: WorldConfig, partition: Partition) -> int:
    """Return the number of named subjects of a world; the names for validation and test are few."""
    return config.entities if partition is Partition.TRAIN else min(config.entities, MOST_HELD_OUT)


def world_tools(world: World) -> dict[str, Tool]:
    """Return the three tools over one world."""
    tools: list[Tool] = [
        SearchTool(LocalTextSource(world.documents), default_top_k=TOP_K),
        ImageSearchTool(LocalImageSource(world.pictures), default_top_k=TOP_K),
        KnowledgeTool(load_skills()),
    ]
    return {tool.name: tool for tool in tools}


class _Routed:
    """Route a call to the tool of the world that its request belongs to."""

    default_top_k = TOP_K

    def __init__(self, tool: Tool, owner: AtlasTools) -> None:
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._owner = owner

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Call the tool of the request's own world."""
        return await self._owner.of(episode.request)[self.name].call(arguments, episode)
