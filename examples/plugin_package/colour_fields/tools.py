"""A toolbox with image search over a folder, by words of the file names, and the built-in skills of genevolve_ray."""

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
    """Hold the folder of the images (PNG)."""

    folder: Path


class FolderSearch:
    """Implement the tool `image_search` with its description for the system prompt."""

    name, description = "image_search", "Find pictures by the words of their names."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1}},
        "required": ["query"],
    }

    def __init__(self, folder: Path, images: ImageStore) -> None:
        """Put every image into the run's store; only references travel."""
        self._library = [_stored(path, images) for path in sorted(folder.glob("*.png"))]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> ImageSearchObservation:
        """Return the images whose names contain a word of the query. Raise ToolArgumentError without a query."""
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise ToolArgumentError("query must be a string")
        words = set(query.lower().split())
        return ImageSearchObservation(query=query, hits=tuple(h for h in self._library if words & set(h.title.split())))


def _stored(path: Path, images: ImageStore) -> ImageHit:
    with Image.open(path) as picture:
        image = images.put(path.read_bytes(), width=picture.width, height=picture.height)
    return ImageHit(title=path.stem.lower().replace("_", " "), url="", image=image)


class PictureFolder:
    """Provide all tools of a run as a plug-in."""

    Config = PictureFolderConfig

    def __init__(self, config: PictureFolderConfig, images: ImageStore) -> None:
        """Read the folder."""
        tools: list[Tool] = [FolderSearch(config.folder, images), KnowledgeTool(load_skills())]
        self.tools = {tool.name: tool for tool in tools}
