"""Pictures and attempts as the page shows them: small data URIs, chosen cards, trajectories cut into readable parts."""

from __future__ import annotations

import base64
import io
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.pictures import ImageRefused, open_picture
from genevolve_ray.records.readable import turn_parts
from genevolve_ray.records.seen import seen_pictures
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.data import ReportPair, scored

CARDS = 36
SMALL_SIDE = 128
"""Pictures up to this side are shown without smoothing at twice their size, and kept without loss."""
LARGE_SIDE = 256
"""Previews of larger pictures are scaled down to this side."""
THUMB_SIDE = 128
"""Side of the search results inside a trajectory, which are shown at half of it."""
FULL_SIDE = 1024
"""Side to which a picture is scaled down where the page embeds it in full size."""
MAX_PREVIEW = 24 << 10
"""Most bytes of a preview of that side, larger ones in proportion; its quality falls until it has fewer."""
FULL_BUDGET = 6 << 20
"""Most bytes of all pictures in full size, encoded as text; the page links or enlarges those beyond it."""
_QUALITIES = (80, 60, 40, 20)
_FILES = ("image/png", "image/jpeg", "image/webp")
"""Types of pictures that a browser opens without running anything."""
MAX_TEXT = 12_000
"""Characters of one part of a trajectory that the page keeps."""


@dataclass(frozen=True)
class PagePicture:
    """Describe an image as a page shows it.

    Attributes:
        key: name of the preview.
        uri: the preview.
        shown: its width on the page in CSS pixels.
        pixelated: whether it is enlarged without smoothing.
        size: width and height of the picture itself in pixels.
        full: name under which the page may hold the full size; "" where the preview has it.
        file: path of the picture's file beside the page, "" where there is none.
        address: where a site serves the full size, "" for a page that is one file.
    """

    key: str
    uri: str
    shown: int
    pixelated: bool
    size: tuple[int, int] = (0, 0)
    full: str = ""
    file: str = ""
    address: str = ""


class Pictures:
    """Encode each image once. A missing or unreadable picture is None, and the page shows a blank in its place."""

    def __init__(self, load: Callable[[ImageRef], bytes], folder: str = "") -> None:
        """Read the encoded bytes with `load`; `folder` holds the files of the image store, relative to the page."""
        self._load, self._folder = load, folder
        self._known: dict[tuple[str, int], PagePicture | None] = {}
        self._large: dict[str, ImageRef] = {}
        self._found: dict[str, ImageRef] = {}

    def get(self, ref: ImageRef | None, side: int = LARGE_SIDE) -> PagePicture | None:
        """Return an image with neither side above `side`: as PNG where it is small, else as WebP."""
        if ref is None:
            return None
        key = (ref.sha256, side)
        if key not in self._known:
            self._known[key] = self._preview(ref, side)
        return self._known[key]

    def thumbs(self) -> dict[str, str]:
        """Return the data URIs of all search results requested so far; the page holds each once and fills them in."""
        return {p.key: p.uri for (_, side), p in self._known.items() if p is not None and side == THUMB_SIDE}

    def full(self, budget: int | None = None) -> dict[str, str]:
        """Return the full size of pictures whose previews are smaller, within `FULL_BUDGET` or another budget of bytes.

        They are taken in the order of the page, search results last. The first one that does not fit ends the list, so
        that the page of a large run takes bounded time.
        """
        budget = FULL_BUDGET if budget is None else budget
        found: dict[str, str] = {}
        for key, ref in (self._large | self._found).items():
            image = self._open(ref)
            if image is None:
                continue
            image.thumbnail((FULL_SIDE, FULL_SIDE))
            uri = _uri(_webp(image, _QUALITIES[0]), "webp")
            budget -= len(uri)
            if budget < 0:
                break
            found[key] = uri
        return found

    def _open(self, ref: ImageRef) -> Image.Image | None:
        try:
            # Re-encoded later, so that no byte of a foreign file reaches the page.
            return open_picture(self._load(ref))
        except (OSError, ImageRefused):
            return None

    def _preview(self, ref: ImageRef, side: int) -> PagePicture | None:
        image = self._open(ref)
        if image is None:
            return None
        size, small, thumb = image.size, max(image.size) <= SMALL_SIDE, side < LARGE_SIDE
        image.thumbnail((side, side))
        if small and not thumb:
            uri = _uri(_png(image), "png")
        else:
            uri = _uri(_preview_bytes(image, round(MAX_PREVIEW * max(1, side / LARGE_SIDE) ** 2)), "webp")
        full = ref.sha256[:16] if image.size != size else ""
        if full:
            (self._found if thumb else self._large).setdefault(full, ref)
        linked = self._folder and ref.media_type in _FILES
        return PagePicture(
            key=f"{ref.sha256[:16]}-{side}",
            uri=uri,
            shown=image.width * (2 if small and not thumb else 1),
            pixelated=small,
            size=size,
            full=full,
            file=f"{self._folder}/{ref.sha256[:2]}/{ref.file_name}" if linked else "",
        )


def _preview_bytes(image: Image.Image, most: int) -> bytes:
    encoded = b""
    for quality in _QUALITIES:
        encoded = _webp(image, quality)
        if len(encoded) <= most:
            break
    return encoded


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=2)
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Chosen:
    """Hold a pair of the gallery and the reason for its choice: largest gain, largest loss, or drawn at random."""

    pair: ReportPair
    why: str


def choose(pairs: Sequence[ReportPair], cards: int = CARDS, seed: int = 0) -> list[Chosen]:
    """Return a third each of largest gains, largest losses and random pairs; fewer where there are fewer pairs.

    A pair is listed once. Random pairs are drawn from the pairs that remain, with a fixed seed: the same run gives the
    same page.
    """
    ordered = sorted(pairs, key=lambda p: (-p.gain, p.request.id))
    third = cards // 3
    gains = [p for p in ordered[:third] if p.gain > 0]
    losses = [p for p in ordered[::-1][:third] if p.gain < 0]
    taken = {p.request.id for p in (*gains, *losses)}
    rest = [p for p in ordered if p.request.id not in taken]
    drawn = random.Random(seed).sample(rest, min(len(rest), cards - len(taken)))
    return [
        *(Chosen(p, "gain") for p in gains),
        *(Chosen(p, "loss") for p in losses),
        *(Chosen(p, "random") for p in drawn),
    ]


@dataclass(frozen=True)
class Breakdown:
    """Hold the mean scores of one kind of request; `label` is the field of the request that names the kind."""

    label: str
    kind: str
    requests: int
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Mean after minus mean before."""
        return self.after - self.before


def breakdown(pairs: Sequence[ReportPair]) -> list[Breakdown]:
    """Return mean scores by kind, category and difficulty of the request; labels with one value only are left out.

    A category that joins several with "+" counts in each of them.
    """
    rows: list[Breakdown] = []
    for label in ("eval_type", "category", "difficulty"):
        kinds: dict[str, list[ReportPair]] = defaultdict(list)
        for pair in pairs:
            for kind in str(getattr(pair.request, label)).split("+"):
                kinds[kind].append(pair)
        kinds.pop("", None)
        if len(kinds) > 1:
            rows.extend(
                Breakdown(
                    label,
                    k,
                    len(ps),
                    sum(p.before.score for p in ps) / len(ps),
                    sum(p.after.score for p in ps) / len(ps),
                )
                for k, ps in sorted(kinds.items())
            )
    return rows


def turn_tokens(ledger: TokenLedger) -> list[tuple[int, int]]:
    """Return (policy tokens, observation tokens that follow) per turn: policy spans between contexts are one turn."""
    turns: list[list[int]] = []
    fresh = True
    for span in ledger.spans:
        length = span.end - span.start
        if span.kind is SpanKind.PROMPT:
            continue
        if span.kind is SpanKind.OBSERVATION:
            if turns:
                turns[-1][1] += length
            fresh = True
            continue
        if fresh:
            turns.append([0, 0])
            fresh = False
        turns[-1][0] += length
    return [(policy, observation) for policy, observation in turns]


def parts(text: str) -> list[tuple[str, str]]:
    """Return the parts of a turn (`turn_parts`), each cut to a length that a page shows."""
    return [(kind, clip(body)) for kind, body in turn_parts(text)]


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Return the text, cut at `limit` characters with a note of the number of characters left out."""
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def attempt(trajectory: Trajectory, pictures: Pictures) -> dict[str, Any]:
    """Return the values that the template needs to show a whole trajectory."""
    tokens = turn_tokens(trajectory.ledger)
    counts = tokens if len(tokens) == len(trajectory.turns) else [None] * len(trajectory.turns)
    chosen = [r.img_id for r in trajectory.program.reference_images] if trajectory.program else []
    looks = [seen_pictures(turn.observation, trajectory.images) for turn in trajectory.turns]
    seen = {look.img_id for turn in looks for look in turn if look.shown is not None}
    return {
        "trajectory": trajectory,
        "score": trajectory.score if scored(trajectory) else None,
        "picture": pictures.get(trajectory.rendered),
        "policy_tokens": trajectory.ledger.policy_tokens,
        "turns": [
            {
                "turn": turn,
                "parts": parts(turn.text),
                "observation": clip(turn.observation),
                "tokens": count,
                "looks": [
                    {
                        "id": look.img_id,
                        "title": trajectory.images[look.img_id].title,
                        "chosen": look.img_id in chosen,
                        "reason": look.reason,
                        "size": f"{look.shown.width} × {look.shown.height}" if look.shown else "",
                        "picture": pictures.get(look.shown, THUMB_SIDE),
                    }
                    for look in found
                ],
            }
            for turn, count, found in zip(trajectory.turns, counts, looks, strict=True)
        ],
        "hits": [
            {
                "id": img_id,
                "title": hit.title,
                "chosen": img_id in chosen,
                "reason": "",
                "size": "",
                "picture": pictures.get(hit.image, THUMB_SIDE),
            }
            for img_id, hit in sorted(trajectory.images.items())
            if img_id not in seen
        ],
        "sees": any(looks),
    }
