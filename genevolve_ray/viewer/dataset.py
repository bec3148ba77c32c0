"""Self-contained HTML page about a published data set: its counts, and some of its rows with their pictures."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from genevolve_ray.data.build.part_rows import entities_of, holds_conversations, part_files
from genevolve_ray.data.build.publishing import PAGE, SUMMARY
from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import ImageRefused, PictureLimits
from genevolve_ray.records.published.rejections import DataError, RejectionReport, RowFault
from genevolve_ray.records.published.requests import PublishedRequest, read_rl
from genevolve_ray.records.published.row_pictures import PicturePlace, RowPictureReader
from genevolve_ray.records.published.splits import rank
from genevolve_ray.records.published.trajectories import SftRow, read_sft
from genevolve_ray.viewer.gallery import FULL_SIDE, PagePicture, Pictures, clip
from genevolve_ray.viewer.headlines import Tile
from genevolve_ray.viewer.page import render_page, write_page

ROWS = 12
"""Rows of each part that the page shows."""
_PICTURES = 6
"""Pictures of one row."""
_MAX_BYTES = 64 << 20


def write_dataset_page(folder: Path, out: Path | None = None, rows: int = ROWS) -> Path:
    """Write the page of a published folder, by default into it, and return its path.

    The file appears complete or not at all.

    Raises:
        DataError: for a folder without a summary, or with a file that is missing or broken.
        OSError: when it cannot be written.
    """
    return write_page(render_dataset_page(folder, rows), out or folder / PAGE)


def render_dataset_page(folder: Path, rows: int = ROWS) -> str:
    """Return the page. All texts are untrusted and get escaped; pictures are decoded and encoded again."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        parts = [(name, int(part["rows"]), int(part["pictures"])) for name, part in summary["parts"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: holds no data set with a {SUMMARY}: {error}") from error
    images = MemoryImages()
    pictures = Pictures(images.get)
    samples = [s for name, path in part_files(folder).items() for s in _samples(name, path, rows, images, pictures)]
    context = {
        "what": "data set",
        "title": str(summary.get("name", folder.name)),
        "subtitle": [f"{len(parts)} parts", f"SHA-256 {str(summary.get('output_hash', ''))[:12]}"],
        "tiles": _tiles(summary, parts),
        "parts": parts,
        "yields": [(stage, int(c["in"]), int(c["out"]), _share(c)) for stage, c in _items(summary, "yields")],
        "marginals": [(name, sorted(counts.items(), key=_most_first)) for name, counts in _items(summary, "marginals")],
        "leaks": _leaks(summary.get("leaks") or {}),
        "samples": samples,
        "thumbs": pictures.full(),
    }
    return render_page("dataset.html.j2", context)


def _items(summary: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    return list((summary.get(name) or {}).items())


def _share(counts: Mapping[str, int]) -> float | None:
    return counts["out"] / counts["in"] if counts["in"] else None


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _tiles(summary: Mapping[str, Any], parts: list[tuple[str, int, int]]) -> list[Tile]:
    leaks, costs = summary.get("leaks") or {}, summary.get("costs") or {}
    found = [
        Tile("Rows", f"{sum(rows for _, rows, _ in parts):,}", note=f"{len(parts)} parts"),
        Tile("Pictures", f"{sum(pictures for _, _, pictures in parts):,}"),
    ]
    if leaks:
        clean = bool(leaks.get("clean"))
        count = "none" if clean else f"{leaks.get('total', 0):,}"
        found.append(Tile("Leaks between parts", count, tone="good" if clean else "bad"))
    if costs:
        found.append(Tile("Cost", f"${sum(costs.values()):,.2f}"))
    return found


def _leaks(leaks: Mapping[str, Any]) -> dict[str, Any]:
    if not leaks:
        return {"lead": "The parts were not compared.", "counts": []}
    lead = f"Requests by {leaks.get('embedder')}, pictures by {leaks.get('picture_embedder') or 'their hashes alone'}."
    lead = f"{lead} No two parts overlap." if leaks.get("clean") else lead
    return {"lead": lead, "counts": list((leaks.get("counts") or {}).items())}


# --- rows ---


def _samples(name: str, path: Path, count: int, images: MemoryImages, pictures: Pictures) -> list[dict[str, Any]]:
    """Return some rows of a part as the template shows them."""
    report = RejectionReport()
    rows: Iterator[SftRow | PublishedRequest]
    if holds_conversations(path):
        rows = read_sft([path], report)
    else:
        rows = read_rl([path], report)
    with RowPictureReader(_MAX_BYTES) as reader:
        chosen: list[SftRow | PublishedRequest] = heapq.nsmallest(count, rows, key=lambda row: (rank(row.id), row.id))
        show = partial(_picture, reader=reader, images=images, pictures=pictures)
        return [_sample(name, row, show) for row in chosen]


def _sample(
    part: str, row: SftRow | PublishedRequest, show: Callable[[PicturePlace], PagePicture | None]
) -> dict[str, Any]:
    if isinstance(row, SftRow):
        return {
            "id": row.id,
            "text": clip(row.request, 2000),
            "labels": [part],
            "entities": (),
            "pictures": [(place.name, show(place)) for place in islice(row.pictures, _PICTURES)],
            "messages": [(message.role, clip(message.content)) for message in row.messages],
        }
    places = [PicturePlace(row.root, row.truth)] if row.truth else []
    skills = ", ".join((*row.primary_skills, *row.secondary_skills))
    return {
        "id": row.id,
        "text": clip(row.prompt, 2000),
        "labels": [text for text in (part, row.eval_type.value, row.category, row.difficulty, skills) if text],
        "entities": entities_of({"meta": row.meta, "extra_info": row.extra_info}),
        "pictures": [("ground truth", show(place)) for place in places],
        "messages": [],
    }


def _picture(
    place: PicturePlace, reader: RowPictureReader, images: MemoryImages, pictures: Pictures
) -> PagePicture | None:
    """Return a picture as the page embeds it, None for one that cannot be opened."""
    try:
        seen = clean_apart(reader.read(place), PictureLimits(max_bytes=_MAX_BYTES, long_side=FULL_SIDE))
    except (RowFault, ImageRefused):
        return None
    return pictures.get(images.put(seen.data, width=seen.width, height=seen.height, media_type=seen.media_type))
