"""A toolbox: image search over a folder, by the words of the file names, and the skills that come with genevolve_ray."""

from pathlib import Path
from typing import Any

from PIL import Image

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import EpisodeContext, Tool, ToolArgumentError
from genevolve_ray.tools.skillset import load_skills


class PictureFolderConfig(Config):
    """Where the pictures (PNG) lie."""

    folder: Path


class FolderSearch:
    """The tool `image_search`: what the policy calls, and what the system prompt says of it."""

    name, description = "image_search", "Find pictures by the words of their names."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1}},
        "required": ["query"],
    }

    def __init__(self, folder: Path, images: ImageStore) -> None:
        """Put every picture into the run's store; only references travel."""
        self._library = [_stored(path, images) for path in sorted(folder.glob("*.png"))]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> ImageSearchObservation:
        """Return the pictures whose names hold a word of the query. Raises ToolArgumentError for no query."""
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise ToolArgumentError("query must be a text")
        words = set(query.lower().split())
        return ImageSearchObservation(query=query, hits=tuple(h for h in self._library if words & set(h.title.split())))


def _stored(path: Path, images: ImageStore) -> ImageHit:
    with Image.open(path) as picture:
        image = images.put(path.read_bytes(), width=picture.width, height=picture.height)
    return ImageHit(title=path.stem.lower().replace("_", " "), url="", image=image)


class PictureFolder:
    """The plug-in: all tools of a run."""

    Config = PictureFolderConfig

    def __init__(self, config: PictureFolderConfig, images: ImageStore) -> None:
        """Read the folder."""
        tools: list[Tool] = [FolderSearch(config.folder, images), KnowledgeTool(load_skills())]
        self.tools = {tool.name: tool for tool in tools}
