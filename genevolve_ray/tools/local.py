"""Local sources: BM25 over documents or captions in memory. No network, no randomness."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genevolve_ray.errors import UserFault
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.pictures import PictureLimits, clean_picture
from genevolve_ray.records.strict_text import unique_keys

_WORD = re.compile(r"\w+")
_ANY = PictureLimits(formats=("PNG", "TIFF"), max_bytes=64 << 20)
_REMEMBERED = 4096
"""Queries whose answers an index caches."""


class CorpusError(UserFault, ValueError):
    """Signal that a corpus cannot be used; the message names the file and the line."""


class Bm25Index:
    """Rank short texts by BM25: lower-cased words, no stop words; of equal texts the earlier one comes first."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts once. Raises CorpusError when there is nothing to index."""
        import bm25s

        self._texts = list(texts)
        words = [_WORD.findall(text.lower()) for text in self._texts]
        if not any(words):
            raise CorpusError(f"nothing to index: {len(texts)} texts without a single word")
        self._bm25 = bm25s.BM25()
        self._bm25.index(words, show_progress=False)
        # The rollouts of a group mostly send the same queries.
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._top)

    def top(self, query: str, top_k: int) -> list[int]:
        """Return the positions of at most `top_k` texts that share a word with the query, best first."""
        return list(self._remembered(query, top_k))

    def nearest(self, query: str) -> tuple[int, float] | None:
        """Return the position of the best text and its similarity to the query, None where no text shares a word.

        The similarity is in (0, 1]: the text's score, as a share of its score with itself (more counts as 1), times the
        share of the query's distinct words that the text has.
        """
        if not (best := self.top(query, 1)):
            return None
        place, asked = best[0], set(_WORD.findall(query.lower()))
        share = float(self._scores(query)[place] / self._scores(self._texts[place])[place])
        return place, min(1.0, share) * len(asked & set(_WORD.findall(self._texts[place].lower()))) / len(asked)

    def _scores(self, query: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        scores: np.ndarray[Any, np.dtype[np.float32]] = self._bm25.get_scores(_WORD.findall(query.lower()))
        return scores

    def _top(self, query: str, top_k: int) -> tuple[int, ...]:
        if not _WORD.search(query):
            return ()
        scores = self._scores(query)
        found = np.flatnonzero(scores > 0)
        order = np.argsort(-scores[found], kind="stable")[:top_k]
        return tuple(int(position) for position in found[order])


class LocalTextSource:
    """Search documents by title and snippet."""

    def __init__(self, documents: Sequence[TextHit]) -> None:
        """Index the documents."""
        self.documents = list(documents)
        self._index = Bm25Index([f"{hit.title} {hit.snippet}" for hit in self.documents])

    async def search(self, query: str, top_k: int) -> list[TextHit]:
        """Return the best documents."""
        return [self.documents[i] for i in self._index.top(query, top_k)]


class LocalImageSource:
    """Search a library of captioned images; the caption is the hit's title."""

    def __init__(self, images: Sequence[ImageHit]) -> None:
        """Index the captions."""
        self.images = list(images)
        self._index = Bm25Index([hit.title for hit in self.images])

    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        """Return the pictures with the best captions."""
        return [self.images[i] for i in self._index.top(query, top_k)]


class _ImageRow(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1)
    file: str = Field(min_length=1)
    url: str = ""
    page_url: str = ""


def load_documents(path: Path) -> list[TextHit]:
    """Read a text corpus: one JSON object {title, url, snippet} a line; blank lines are skipped.

    Raises:
        CorpusError: when the file cannot be read or a line is invalid, naming both.
    """
    documents = []
    for number, row in _rows(path):
        try:
            documents.append(TextHit.model_validate(row))
        except ValidationError as error:
            raise CorpusError(f"{path}:{number}: {_first(error)}") from error
    if not documents:
        raise CorpusError(f"{path}: contains no documents")
    return documents


def load_image_library(path: Path, store: ImageStore) -> list[ImageHit]:
    """Read an image library: one JSON object {title, file[, url, page_url]} a line, files relative to the list.

    Each picture that any role accepts by its size is decoded once, so that a truncated one ends the start and no episode.

    Raises:
        CorpusError: when the list or a picture cannot be read, naming the line.
    """
    from PIL import Image

    images = []
    for number, row in _rows(path):
        try:
            entry = _ImageRow.model_validate(row)
            data = (path.parent / entry.file).read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                (width, height), media_type = picture.size, Image.MIME.get(picture.format or "", "image/png")
                if width * height <= _ANY.max_pixels:
                    picture.load()
                if picture.mode.startswith(("I", "F")):  # Models read 8 bits a channel, and show more of them as white.
                    data, media_type = clean_picture(data, _ANY).data, "image/png"
        except ValidationError as error:
            raise CorpusError(f"{path}:{number}: {_first(error)}") from error
        except Exception as error:
            # Pillow's decoders raise anything on broken files.
            raise CorpusError(f"{path}:{number}: picture {entry.file!r}: {error}") from error
        ref = store.put(data, width=width, height=height, media_type=media_type)
        images.append(ImageHit(title=entry.title, url=entry.url, page_url=entry.page_url, image=ref))
    if not images:
        raise CorpusError(f"{path}: contains no images")
    return images


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}:{number}: not JSON: {error}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
