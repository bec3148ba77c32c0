"""Recorded toolboxes, frozen and opened again, for tests of corpora."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from web_world import picture

from genevolve_ray.commands.corpus import freeze_runs
from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages, ImageStore, MemoryImages
from genevolve_ray.records.observation import Observation, TextObservation
from genevolve_ray.tools.corpus.recording import RecordedToolbox
from genevolve_ray.tools.corpus.snapshot import Corpus
from genevolve_ray.tools.frozen import FrozenTools, FrozenToolsConfig
from genevolve_ray.tools.protocol import EpisodeContext, Tool

EPISODE = EpisodeContext(request=REQUEST)
SEARCH = {"queries": ["red heron", "blue whale"], "top_k": 2}
Call = tuple[str, dict[str, Any]]
CALLS: Sequence[Call] = (
    ("search", SEARCH),
    ("search", {"queries": ["red heron"]}),
    ("image_search", {"query": "heron"}),
    ("query_knowledge", {"skill_name": "text_rendering"}),
)


def local_spec(folder: Path, **more: Any) -> ToolsSpec:
    """Return the local tools over three texts and two pictures in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        {"title": t, "url": f"https://e.example/{t}", "snippet": f"the {t}"} for t in ("red heron", "blue whale", "fox")
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    for color in ("red", "blue"):
        (folder / f"{color}.png").write_bytes(picture(color))
    named = [{"title": f"{color} heron", "file": f"{color}.png", "url": f"file:{color}"} for color in ("red", "blue")]
    (folder / "pictures.jsonl").write_text("\n".join(map(json.dumps, named)))
    config = {"texts": str(folder / "texts.jsonl"), "pictures": str(folder / "pictures.jsonl")}
    return ToolsSpec(type="local", config=config, **more)


def run_images(run: Path) -> FilesystemImages:
    """Return the image store of a run's folder."""
    return FilesystemImages(str(run / "images"))


def episode(request: str) -> EpisodeContext:
    """Return an episode of a request."""
    return EpisodeContext(request=REQUEST.model_copy(update={"id": request}))


async def ask(tools: Mapping[str, Tool], calls: Sequence[Call], episode: EpisodeContext = EPISODE) -> list[Observation]:
    """Return the observations of calls, one after the other."""
    return [await tools[name].call(arguments, episode) for name, arguments in calls]


class Moody:
    """A tool that answers by the request, and refuses one argument that its schema allows."""

    name = "mood"
    description = "Tell the mood."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"of": {"type": "string"}},
        "required": ["of"],
        "additionalProperties": False,
    }

    def __init__(self, world: str = "") -> None:
        self._world = world

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        if arguments["of"] == "nobody":
            raise ToolArgumentError("of: nobody has no mood")
        return TextObservation(text=f"{arguments['of']} in {episode.request.id} {self._world}".rstrip())


class OwnTools:
    """A toolbox of given tools."""

    Config = Config
    local = True

    def __init__(self, *tools: Any) -> None:
        self.tools: dict[str, Tool] = {tool.name: tool for tool in tools}


def recording(run: Path, *tools: Any) -> RecordedToolbox:
    """Return a toolbox of given tools that records beside the images of a run."""
    box = ToolsSpec(type="local").complete(OwnTools(*tools), run_images(run))
    assert isinstance(box, RecordedToolbox)
    return box


async def frozen_local(folder: Path, calls: Sequence[Call] = CALLS) -> tuple[Path, list[Observation]]:
    """Record calls of the local tools and freeze them; return the corpus and what the policy saw."""
    box = local_spec(folder / "library").build(run_images(folder / "run"))
    seen = await ask(box.tools, calls)
    await box.aclose()
    freeze_runs([folder / "run"], folder / "corpus")
    return folder / "corpus", seen


def thawed(corpus: Path, images: ImageStore | None = None, **config: Any) -> FrozenTools:
    """Return the tools of a corpus."""
    return FrozenTools(FrozenToolsConfig(corpus=corpus, **config), MemoryImages() if images is None else images)


def questions_of(corpus: Path, tool: str) -> list[dict[str, Any]]:
    """Return the arguments of the recorded questions to a tool."""
    return [question.call for question in Corpus.open(corpus).questions(tool)]
