"""Search on the web: what all services share. A service states its request, and where an entry has title and addresses.

Each question is asked once (`remote.cache`). Pictures of a result are fetched, encoded again and stored.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeGuard

from pydantic import Field

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.remote.cache import AnswerCache
from genevolve_ray.remote.client import Answer, Remote, ServiceRefusal, Unusable
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.tools.addresses import MAX_URL_CHARS, FetchRefused
from genevolve_ray.tools.fetch import SERVICE as FETCH
from genevolve_ray.tools.fetch import Fetcher
from genevolve_ray.tools.search import QueryRefused

_LOG = logging.getLogger(__name__)
_MAX_ENTRIES = 100
"""Most entries of an answer that are read."""
_MAX_TEXT = 4000
"""Characters of a title or snippet that are kept."""
Row = dict[str, str]


class SearchKind(StrEnum):
    """Name what is searched; the value is the name on the meter."""

    TEXT = "search"
    """Pages: title, address and snippet."""
    IMAGES = "image_search"
    """Pictures: title, the page, and the addresses of picture and thumbnail."""


@dataclass(frozen=True)
class SearchCall:
    """Describe the request of a query: a GET with `fields` in the address, or a POST of them as JSON."""

    path: str
    fields: Mapping[str, Any]
    method: Literal["GET", "POST"] = "GET"


class TextFields(NamedTuple):
    """Hold what a service says about a page; nothing is checked yet."""

    title: object
    link: object
    snippet: object


class ImageFields(NamedTuple):
    """Hold what a service says about a picture; nothing is checked yet."""

    title: object
    page: object
    picture: object
    thumbnail: object


class SearchService(ABC):
    """Define a search service. What it reads is untrusted, and is checked by its callers."""

    config: RemoteConfig

    @abstractmethod
    def call(self, kind: SearchKind, query: str) -> SearchCall:
        """Return the request of a query. Raises QueryRefused for one that the service cannot take."""

    @abstractmethod
    def entries(self, kind: SearchKind, answer: Mapping[str, Any]) -> object:
        """Return the list of results in an answer; anything but a list is an answer of another shape.

        Raises:
            Unusable: for an answer that reports a failure of the service.
        """

    def blames_query(self, said: str) -> bool:
        """Return whether a refusal (400 or 422, its body in lower case) is about this one query, and not about all.

        An account without credit gives the same status.
        """
        return "query" in said and "credit" not in said

    @abstractmethod
    def text(self, entry: Mapping[str, Any]) -> TextFields:
        """Return the fields of a page."""

    @abstractmethod
    def image(self, entry: Mapping[str, Any]) -> ImageFields:
        """Return the fields of a picture."""


class ImageConfig(Config):
    """Configure the attempts at fetching the pictures of a result, and their time limit."""

    thumbnails: bool = True
    """Whether the service's own thumbnail replaces an original that cannot be fetched."""
    deadline_s: float = Field(default=25, gt=0)
    """Seconds for all images of a query together; later ones are left out."""


class _WebSource(ABC):
    """Implement the shared part of both searches: each question is asked once."""

    kind: SearchKind

    def __init__(self, service: SearchService, cache: AnswerCache) -> None:
        self._service, self._cache = service, cache
        self._remote = Remote(service.config, self.kind.value)
        self.skipped: Counter[str] = Counter()
        """Counts of skipped items by reason: malformed entries, and pictures that were refused or not delivered."""

    async def _rows(self, asked: SearchCall) -> list[Row]:
        """Return the entries of an answer, from the cache if it was asked before."""

        async def call() -> tuple[list[Row], bool]:
            params, body = (asked.fields, None) if asked.method == "GET" else (None, asked.fields)
            try:
                rows = await self._remote.call(asked.path, self._read, method=asked.method, params=params, body=body)
                return rows, True
            except ServiceRefusal as refusal:
                said = str(refusal).partition(" refused: ")[2].lower()
                if refusal.status in (400, 422) and self._service.blames_query(said):
                    raise QueryRefused("the search service does not take this query") from refusal
                if remedy := self._service.config.remedy(refusal.status):
                    raise ServiceRefusal(f"{refusal}: {remedy}", refusal.status, refusal.reason) from refusal
                raise

        found: list[Row]
        found, cached = await self._cache.ask(self._question(asked), call)
        if cached:
            record_usage(self._remote.service, Usage(cached=1))
        return found

    def _question(self, asked: SearchCall) -> dict[str, Any]:
        """Return everything that determines an answer; `format` changes when rows are read differently."""
        return {**asked.fields, "source": list(self._remote.config.urls), "path": asked.path, "format": 1}

    def _read(self, answer: Answer) -> list[Row]:
        """Return the rows of an answer.

        Raises Unusable when it has another shape, or has entries of which none can be read.
        """
        entries = self._service.entries(self.kind, answer.object())
        if not isinstance(entries, list):
            raise Unusable("an answer without a list of results")
        rows = [row for entry in entries[:_MAX_ENTRIES] if (row := self._row(entry)) is not None]
        if entries and not rows:
            raise Unusable(f"none of {len(entries)} results can be read")
        return rows

    def _row(self, entry: object) -> Row | None:
        row = self._fields(entry) if isinstance(entry, dict) else None
        if row is None:
            self.skipped["malformed entry"] += 1
            _LOG.info("%s: a malformed entry of an answer was skipped", self._remote.service)
        return row

    @abstractmethod
    def _fields(self, entry: Mapping[str, Any]) -> Row | None:
        """Return the fields of an entry that are used, None when it is malformed."""


class WebTextSource(_WebSource):
    """Search texts: title, address and snippet of pages."""

    kind = SearchKind.TEXT

    async def search(self, query: str, top_k: int) -> list[TextHit]:
        """Return at most `top_k` hits. Raises QueryRefused, or InfraFailure when the service is down."""
        rows = await self._rows(self._service.call(self.kind, as_sent(query)))
        return [TextHit(title=row["title"], url=row["link"], snippet=row["snippet"]) for row in rows[:top_k]]

    def _fields(self, entry: Mapping[str, Any]) -> Row | None:
        title, link, snippet = self._service.text(entry)
        snippet = snippet or ""
        if not isinstance(title, str) or not is_link(link) or not isinstance(snippet, str):
            return None
        return {"title": _cut(title), "link": link, "snippet": _cut(snippet)}


class WebImageSource(_WebSource):
    """Search images: pictures are fetched, re-encoded and stored.

    The next result replaces a picture that cannot be fetched. A hit's `url` is the source of its pixels, also where
    that is the thumbnail.
    """

    kind = SearchKind.IMAGES

    def __init__(
        self,
        service: SearchService,
        cache: AnswerCache,
        fetcher: Fetcher,
        images: ImageStore,
        pictures: ImageConfig | None = None,
    ) -> None:
        """Search `service`, fetch with `fetcher`, store in `images`; cache answers in `cache`."""
        super().__init__(service, cache)
        self._fetcher, self._images, self._config = fetcher, images, pictures or ImageConfig()
        # A cached reference is usable only with the store that holds its pixels.
        self._place = {
            "store": redacted(getattr(images, "uri", "")) or uuid.uuid4().hex,
            "limits": fetcher.config.picture.model_dump(mode="json"),
        }

    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        """Return at most `top_k` pictures, the same ones for each equal query of a run.

        Raises:
            QueryRefused: when there are results and none of them can be accepted as a picture, now or later.
            InfraFailure: when the service is down, or there are results and no picture arrived.
        """
        asked = self._service.call(self.kind, as_sent(query))
        rows = await self._rows(asked)
        if not rows:
            return []
        question = self._question(asked) | self._place | {"top_k": top_k, "thumbnails": self._config.thumbnails}
        found, cached = await self._cache.ask(question, lambda: self._pictures(rows, top_k))
        if cached and not await self._intact([ImageHit.model_validate(hit).image for hit in found]):
            found, final = await self._pictures(rows, top_k)
            cached = False
            if final:
                await self._replace(question, found)
        if not found:
            raise QueryRefused("the pictures found cannot be used")
        if cached:
            record_usage(FETCH, Usage(cached=len(found)))
        return [ImageHit.model_validate(hit) for hit in found]

    def _fields(self, entry: Mapping[str, Any]) -> Row | None:
        title, *links = self._service.image(entry)
        page, picture, thumbnail = (link if is_link(link) else "" for link in links)
        if not isinstance(title, str) or not (picture or thumbnail):
            return None
        return {"title": _cut(title), "link": page, "imageUrl": picture, "thumbnailUrl": thumbnail}

    async def _pictures(self, rows: list[Row], top_k: int) -> tuple[list[dict[str, Any]], bool]:
        """Return (hits in order of rank, whether they are final).

        They are not final while a temporary failure remains.
        """
        waiting, found = iter(enumerate(rows)), dict[int, ImageHit]()
        failures: list[InfraFailure] = []

        async def fill_a_place() -> None:
            for rank, row in waiting:
                try:
                    if (hit := await self._hit(row)) is not None:
                        found[rank] = hit
                        return
                except InfraFailure as failure:
                    failures.append(failure)

        try:
            async with asyncio.timeout(self._config.deadline_s), asyncio.TaskGroup() as group:
                for _ in range(min(top_k, len(rows))):
                    group.create_task(fill_a_place())
        except TimeoutError:
            failures.append(InfraFailure(f"images not received within {self._config.deadline_s:g} s"))
        if failures and not found:
            raise InfraFailure(f"none of {len(rows)} images could be fetched: {failures[0]}")
        return [found[rank].model_dump(mode="json") for rank in sorted(found)], not failures

    async def _hit(self, row: Row) -> ImageHit | None:
        """Return the hit with its picture, None when it is permanently refused. Raises InfraFailure."""
        addresses = [row["imageUrl"], row["thumbnailUrl"] if self._config.thumbnails else ""]
        failure: InfraFailure | None = None
        for address in filter(None, addresses):
            try:
                image = await self._stored(address)
            except FetchRefused as refusal:
                self.skipped["picture refused"] += 1
                _LOG.info("an image was skipped: %s", refusal)
            except InfraFailure as error:
                self.skipped["image not delivered"] += 1
                failure = error
            else:
                return ImageHit(title=row["title"], url=address, page_url=row["link"], image=image)
        if failure is not None:
            raise failure
        return None

    async def _stored(self, address: str) -> ImageRef:
        """Return the picture at a URL, from the store if it was fetched before. Raises as `Fetcher.fetch`."""
        question = {"picture": address, "format": 1} | self._place

        async def call() -> tuple[dict[str, Any], bool]:
            picture = await self._fetcher.fetch(address)
            ref = await asyncio.to_thread(
                self._images.put,
                picture.data,
                width=picture.width,
                height=picture.height,
                media_type=picture.media_type,
            )
            return ref.model_dump(mode="json"), True

        found, cached = await self._cache.ask(question, call)
        if cached and not await self._intact([ImageRef.model_validate(found)]):
            found, cached = (await call())[0], False
            await self._replace(question, found)
        if cached:
            record_usage(FETCH, Usage(cached=1))
        return ImageRef.model_validate(found)

    async def _replace(self, question: Mapping[str, Any], answer: Any) -> None:
        try:
            await self._cache.put(question, answer, replace=True)
        except OSError as error:
            _LOG.warning("an answer could not be kept: %s", error)

    async def _intact(self, refs: Sequence[ImageRef]) -> bool:
        """Return whether the store still has the pictures of a cached answer; a damaged one is fetched again."""
        try:
            for ref in refs:
                await asyncio.to_thread(self._images.get, ref)
        except OSError:
            return False
        return True


def as_sent(query: str) -> str:
    """Return a query as it is sent and cached: one line, single spaces, valid UTF-8."""
    return " ".join(query.encode(errors="replace").decode().split())


def is_link(value: object) -> TypeGuard[str]:
    """Return whether a value is a web address of reasonable length, without spaces or control characters."""
    return (
        isinstance(value, str)
        and value.lower().startswith(("http://", "https://"))
        and len(value) <= MAX_URL_CHARS
        and value.isprintable()
        and " " not in value
    )


def _cut(text: str) -> str:
    return text[:_MAX_TEXT].encode(errors="replace").decode()
