"""A judge of the letters in a picture: texts that it should show, against those that a reader finds in it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Sequence
from time import monotonic
from typing import Any, ClassVar, Protocol

from pydantic import Field, ValidationError

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.judges.text_matching import Match, Matching, ReadText, match_texts
from genevolve_ray.judges.wanted_texts import QUOTED, wanted_texts
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Artefact, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import ImageRefused, Picture, PictureLimits, clean_picture
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import Usage, record_usage

READERS = {"rapidocr": "genevolve_ray.judges.rapidocr_reader:RapidOcrReader"}
"""Readers by name."""
_MAX_ARTEFACTS = 100
_RATIONALE_CHARS = 1000


class TextReader(Protocol):
    """Define a reader of the texts in a picture, built as `Class(config)` with a `Config` class.

    `identity` names it and its settings. It may declare `deterministic = True`: equal pictures give equal texts. It may
    have a class method `check(config)`, which raises UserFault for what it lacks, and `aclose()`.
    """

    identity: str

    async def read(self, picture: bytes) -> Sequence[ReadText]:
        """Return the texts in a PNG, in any order. Any error is a failure of the judgment, never an absence of text."""
        ...


class OcrJudgeConfig(Config):
    """Configure which texts are wanted, and how they are read."""

    wanted: str = Field(default=QUOTED, pattern=rf"^({QUOTED}|meta(\.\w+)+)$")
    """Texts that the picture should show: `quoted`, those between quotation marks in the request; or `meta.KEY`, a text or
    list of texts in the request's `meta` (nested as `meta.KEY.KEY`). A request without any has no value."""
    reader: str = Field(default="rapidocr", pattern=r"^(rapidocr|[\w.]+:\w+)$")
    """`rapidocr` (the extra `ocr`), or `package.module:Class` of another reader."""
    reader_config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the reader, validated by its `Config`."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Texts that the reader is less sure of do not count as read."""
    ignore_case: bool = True
    """Whether letters of either case are the same. Spaces never count, as readers often miss them."""
    long_side: int = Field(default=2000, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side."""


class OcrJudge:
    """Compare the texts that a picture should show with those that a reader finds: `text` by edit distance, `exact`.

    It needs no ground-truth image. See `judges.text_matching.match_texts` for the measure.
    """

    Config = OcrJudgeConfig
    needs_truth: ClassVar = False
    components: ClassVar = {"text": ComponentRange(sometimes=True), "exact": ComponentRange(sometimes=True)}

    def __init__(self, config: OcrJudgeConfig, reader: TextReader | None = None) -> None:
        """Build the reader, unless one is given. Raises UserFault for one that cannot be found, configured or used."""
        self.config = config
        if reader is None:
            kind, settings = _reader(config)
            reader = kind(settings)
        self._reader: TextReader = reader
        self.deterministic = bool(getattr(reader, "deterministic", False))
        own = config.model_dump_json(exclude={"reader", "reader_config"})
        self.identity = f"ocr/1:{reader.identity}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        self._limits = PictureLimits(long_side=config.long_side, output="PNG")

    @classmethod
    def check(cls, config: OcrJudgeConfig) -> None:
        """Check that the reader can be used. Raises UserFault naming what is wrong or missing."""
        kind, settings = _reader(config)
        if hasattr(kind, "check"):
            kind.check(settings)

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the components `text` and `exact`, or none where the request wants no text.

        Flags are `cut:text` where there was more text than is compared, and `greedy:text` where texts were assigned to
        their places one by one, as finding the best assignment took too long.

        Raises:
            InfraFailure: when the picture cannot be opened, or the reader failed, or the request's `meta` has no texts at
                the configured key, but something else.
        """
        wanted = wanted_texts(request, self.config.wanted)
        picture = await asyncio.to_thread(self._opened, image, request.id)
        if not wanted:
            return OpenVerdict(components={}, judge=self.identity, rationale="the request wants no text")
        read = [one for one in await self._read(picture, request.id) if one.confidence >= self.config.min_confidence]
        matching = await asyncio.to_thread(match_texts, wanted, read, ignore_case=self.config.ignore_case)
        found = matching.matches
        artefacts = tuple(_artefact(one, picture) for one in read[:_MAX_ARTEFACTS])
        rationale = "; ".join(map(_told, found))[:_RATIONALE_CHARS]
        text = Component(value=_mean([one.likeness for one in found]), rationale=rationale, artefacts=artefacts)
        exact = Component(value=_mean([float(one.exact) for one in found]))
        return OpenVerdict(components={"text": text, "exact": exact}, judge=self.identity, flags=_flags(matching))

    async def aclose(self) -> None:
        """Release what the reader holds."""
        if (close := getattr(self._reader, "aclose", None)) is not None:
            await close()

    def _opened(self, image: bytes, request_id: str) -> Picture:
        try:
            return clean_picture(image, self._limits, opaque=True)
        except ImageRefused as error:
            raise InfraFailure(f"{self.identity} cannot read the image of {request_id}: {error}") from error

    async def _read(self, picture: Picture, request_id: str) -> list[ReadText]:
        started, done = monotonic(), False
        try:
            read = [ReadText.model_validate(one) for one in await self._reader.read(picture.data)]
            done = True
        except Exception as error:
            # Readers are anybody's code, and their libraries raise anything on a picture.
            said = f"{type(error).__name__}: {str(error)[:300]}"
            raise InfraFailure(f"{self.identity} cannot read the texts of {request_id}: {said}") from error
        finally:
            used = Usage(calls=1, failed_calls=int(not done), images=int(done), seconds=monotonic() - started)
            record_usage("judge", used)
        return read


def _reader(config: OcrJudgeConfig) -> tuple[Any, Any]:
    """Return the class of the reader and its settings. Raises UserFault naming the invalid value."""
    module, _, name = READERS.get(config.reader, config.reader).partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
        return kind, kind.Config.model_validate(config.reader_config)
    except (ImportError, AttributeError) as error:
        raise UserFault(f"reader {config.reader!r} cannot be loaded: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["reader_config", *map(str, first["loc"])])
        raise UserFault(f"{key}: {first['msg']}") from error


def _artefact(one: ReadText, picture: Picture) -> Artefact:
    left, top, right, bottom = one.box
    shares = (left / picture.width, top / picture.height, right / picture.width, bottom / picture.height)
    box = tuple(min(max(share, 0.0), 1.0) for share in shares)
    return Artefact(kind="text", label=one.text, box=(box[0], box[1], box[2], box[3]))


def _flags(matching: Matching) -> tuple[str, ...]:
    return tuple(flag for flag, given in (("cut:text", matching.cut), ("greedy:text", matching.greedy)) if given)


def _told(match: Match) -> str:
    if not match.read:
        return f"{match.wanted!r} was not read"
    return f"{match.wanted!r} was read as {match.read!r} ({match.likeness:.2f})"


def _mean(values: Sequence[float]) -> float:
    return min(1.0, sum(values) / len(values))
