"""The three tools over a folder of texts and pictures: plug-in `folder`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.models.hub import is_hub_id
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.pictures import PictureLimits, clean_picture, plain_size
from genevolve_ray.tools.folder.captions import read_captions
from genevolve_ray.tools.folder.files import MARKDOWN, TEXTS, FolderFiles, address, reason_of, words_of
from genevolve_ray.tools.folder.passages import cut_passages
from genevolve_ray.tools.folder.ranking import HybridIndex
from genevolve_ray.tools.folder.vectors import LazyEmbedder
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.local import CorpusError
from genevolve_ray.tools.protocol import OnOutage, Tool
from genevolve_ray.tools.search import QueryRefused, SearchTool
from genevolve_ray.tools.skillset import load_skills

_LOG = logging.getLogger(__name__)
_SPARE = 20
"""Further pictures that replace those that cannot be used."""
_CACHE = ".genevolve"
_MEDIA_TYPES = {b"\x89P": "image/png", b"\xff\xd8": "image/jpeg", b"RI": "image/webp"}
"""Media types by the first bytes of a file."""


class FolderToolsConfig(Config):
    """Configure a folder of texts (.txt, .md) and pictures (.png, .jpg, .webp), searched with all its subfolders."""

    folder: Path
    """The folder; every process that searches must see it at this path."""
    passage_chars: int = Field(default=1000, ge=100)
    """Longest passage of a text, characters; longer sections are cut. Profiles show at most `max_field_chars` of one."""
    overlap_chars: int = Field(default=150, ge=0)
    """Characters that a passage may repeat of the one before it; less than half of `passage_chars`."""
    max_text_bytes: int = Field(default=4 << 20, ge=1)
    """Largest text file that is read; larger ones are left out."""
    max_files: int = Field(default=200_000, ge=1)
    """Most texts and pictures of the folder."""
    picture: PictureLimits = PictureLimits()
    """Accepted pictures; others are left out. Those with transparency, a turn or 16 bits are encoded again."""
    embedder: EmbedderConfig | None = None
    """With an embedder, results are ranked by meaning too, and not by words alone. Its settings are those of
    `experience.embedder`."""
    cache: Path | None = None
    """Folder of the embeddings; null: `.genevolve` inside `folder`."""
    skills: Path | None = None
    """Folder of skills for `query_knowledge`; null: the eight that ship."""
    top_k: int = Field(default=5, ge=1, le=10)
    """Results of a search, where the policy names no number."""
    on_outage: OnOutage = "fail"
    """What a failure of the embedder's endpoint, or of the disk, means: `fail`: the sample is drawn again; `report`: the
    policy reads that the service is unavailable."""

    @field_validator("embedder")
    @classmethod
    def _built_in(cls, value: EmbedderConfig | None) -> EmbedderConfig | None:
        if value is not None and value.type:
            raise ValueError(
                f"embedder.type={value.type!r} is a class of its own, which a folder does not take: use kind"
            )
        return value

    @model_validator(mode="after")
    def _passages_advance(self) -> FolderToolsConfig:
        if 2 * self.overlap_chars >= self.passage_chars:
            raise ValueError(
                f"overlap_chars={self.overlap_chars} must be less than half of passage_chars={self.passage_chars}"
            )
        return self


@dataclass(frozen=True)
class FolderCorpus:
    """Hold what a folder offers: passages of texts, and captions of pictures by path."""

    files: FolderFiles
    passages: list[TextHit]
    captions: dict[str, str]


def read_folder(config: FolderToolsConfig) -> FolderCorpus:
    """Read the texts of a folder and the captions of its pictures; no picture is decoded.

    Files that cannot be used are left out, and named in the log.

    Raises:
        CorpusError: when the folder cannot be read, or holds nothing that can be used.
    """
    files = FolderFiles(config.folder, config.max_files)
    captions, used = read_captions(files, config.picture)
    passages = [hit for path in files.of(TEXTS) if path not in used for hit in _passages(files, path, config)]
    report = files.report()
    if not passages and not captions:
        raise CorpusError(f"{config.folder}: no text and no picture that can be used{f': {report}' if report else ''}")
    _LOG.info("%s: %d passages of texts, %d pictures", config.folder, len(passages), len(captions))
    if report:
        _LOG.warning("%s: %s", config.folder, report)
    return FolderCorpus(files, passages, captions)


def ranked_texts(corpus: FolderCorpus) -> dict[str, list[str]]:
    """Return what is ranked, and embedded, by the name of its vectors: `texts` for passages, `captions` for pictures."""
    return {
        "texts": [f"{hit.title} {hit.snippet}" for hit in corpus.passages],
        "captions": list(corpus.captions.values()),
    }


def _passages(files: FolderFiles, path: str, config: FolderToolsConfig) -> list[TextHit]:
    """Return the passages of a text; the title is the name of the file, with the headings above the passage."""
    if (text := files.text(path, config.max_text_bytes)) is None:
        return []
    markdown = any(path.lower().endswith(ending) for ending in MARKDOWN)
    parts = cut_passages(text, config.passage_chars, config.overlap_chars, markdown=markdown)
    if not parts:
        files.skip(path, "no text")
    name, several = words_of(path), len(parts) > 1
    return [
        TextHit(
            title=": ".join(filter(None, (name, " > ".join(part.headings)))),
            url=address(path, number if several else 0),
            snippet=part.text,
        )
        for number, part in enumerate(parts, 1)
    ]


class FolderTexts:
    """Search the passages of a folder."""

    def __init__(self, passages: Sequence[TextHit], index: HybridIndex) -> None:
        """Return passages by their positions in `index`."""
        self._passages, self._index = list(passages), index

    async def search(self, query: str, top_k: int) -> list[TextHit]:
        """Return the best passages. Raises InfraFailure when the embedder is down."""
        return [self._passages[position] for position in await self._index.top(query, top_k)]


class FolderImages:
    """Search the pictures of a folder; each is decoded and stored when it is found for the first time.

    The next result replaces a picture that cannot be used.
    """

    def __init__(self, corpus: FolderCorpus, index: HybridIndex, images: ImageStore, limits: PictureLimits) -> None:
        """Find pictures by the positions of their captions in `index`, and store them in `images`."""
        self._files, self._pictures = corpus.files, list(corpus.captions.items())
        self._index, self._images, self._limits = index, images, limits
        self._stored: dict[str, ImageRef | None] = {}
        self.skipped: Counter[str] = Counter()
        """Counts of found pictures that cannot be used, by reason."""

    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        """Return the pictures with the best captions.

        Raises:
            QueryRefused: when there are results and none of them can be used.
            InfraFailure: when the embedder is down, or there are results and none of their files can be read now.
        """
        found: list[ImageHit] = []
        unread: list[str] = []
        ranked = await self._index.top(query, top_k + _SPARE)
        for path, caption in (self._pictures[position] for position in ranked):
            if len(found) == top_k:
                break
            try:
                image = await self._image(path)
            except OSError as error:
                unread.append(f"{path}: {reason_of(error)}")
                continue
            if image is not None:
                found.append(ImageHit(title=caption, url=address(path), image=image))
        if unread and not found:
            raise InfraFailure(f"none of {len(unread)} pictures could be read: {unread[0]}")
        if ranked and not found:
            raise QueryRefused("the pictures found cannot be used")
        return found

    async def _image(self, path: str) -> ImageRef | None:
        """Return the reference of a picture, None for one that cannot be used. Raises OSError for one that is away."""
        if path not in self._stored:
            try:
                self._stored[path] = await asyncio.to_thread(self._store, path)
            except ValueError as error:  # ImageRefused is one.
                self.skipped[reason_of(error)] += 1
                _LOG.warning("picture %s cannot be used: %s", path, reason_of(error))
                self._stored[path] = None
        return self._stored[path]

    def _store(self, path: str) -> ImageRef:
        """Store a picture as it is where every reader sees the same pixels in it, and encoded again otherwise."""
        data = self._files.read(path, self._limits.max_bytes)
        width, height, plain = plain_size(data, self._limits)
        side = self._limits.long_side
        if plain and (side is None or max(width, height) <= side):
            return self._images.put(data, width=width, height=height, media_type=_MEDIA_TYPES[data[:2]])
        picture = clean_picture(data, self._limits)
        return self._images.put(picture.data, width=picture.width, height=picture.height, media_type=picture.media_type)


class FolderTools:
    """Provide search over the texts of a folder, image search over its pictures, and skills.

    A folder without texts has no `search`, one without pictures no `image_search`.
    """

    Config = FolderToolsConfig

    def __init__(self, config: FolderToolsConfig, images: ImageStore) -> None:
        """Read the folder; pictures go to `images`. Raises CorpusError when nothing in it can be used."""
        corpus = read_folder(config)
        embedder = None if config.embedder is None else LazyEmbedder(config.embedder)
        cache = config.cache or config.folder / _CACHE
        indexes = {
            name: HybridIndex(words, embedder, cache, name) for name, words in ranked_texts(corpus).items() if words
        }
        tools: list[Tool] = []
        if corpus.passages:
            texts = FolderTexts(corpus.passages, indexes["texts"])
            tools.append(SearchTool(texts, config.top_k, config.on_outage))
        if corpus.captions:
            pictures = FolderImages(corpus, indexes["captions"], images, config.picture)
            tools.append(ImageSearchTool(pictures, config.top_k, config.on_outage))
        self.tools = {tool.name: tool for tool in [*tools, KnowledgeTool(load_skills(config.skills))]}

    @classmethod
    def check(cls, config: FolderToolsConfig) -> None:
        """Read the folder and the skills once, before a run starts.

        Raises:
            CorpusError: when nothing in the folder can be used.
            ValueError: when the folder of the embedder's model is missing.
        """
        read_folder(config)
        load_skills(config.skills)
        embedder = config.embedder
        model = "" if embedder is None or embedder.kind != "transformers" else embedder.transformers.model
        if model and not is_hub_id(model) and not Path(model).expanduser().is_dir():
            raise ValueError(f"embedder.transformers.model={model!r} is not a folder")
