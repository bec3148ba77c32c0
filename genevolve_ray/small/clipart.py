"""Clip art of the user as further pictures of the corpus: neighbors that an image search confuses with the right picture.

Debian's package `openclipart-svg` has such a folder (public domain). Nothing of it is needed or ships: a run without it is the
one that was measured.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.small.corpus import SIDE, Progress
from genevolve_ray.small.pictures import draw_on_white

FOLDER = "clipart"
"""The folder of these pictures in the corpus, which a setup keeps as it keeps every file that was added."""
CAPTIONS = "captions.jsonl"
"""The captions of these pictures, in their folder."""
_LARGEST = 4 << 20
"""Bytes of a drawing; larger ones take minutes."""
_LETTERS = re.compile(r"[^\W\d_]+")
_SHORT = 3
"""Letters below which a word of a file's name says nothing."""


@dataclass(frozen=True)
class ClipartReport:
    """Count what became of the drawings of a folder."""

    drawn: int
    others: int
    """Drawings whose names share no word with a subject, or that are one of another file."""
    unusable: tuple[str, ...]
    """Drawings that could not be read, as `PATH: reason`."""


def write_clipart(
    source: Path, corpus: Path, subjects: Collection[str], *, most: int = 1000, progress: Progress | None = None
) -> ClipartReport:
    """Draw the SVG files of a folder that are named like a subject into the corpus, each with a caption from its name.

    Drawings of earlier calls keep their captions.

    Args:
        source: a folder; its folders are searched as well.
        corpus: the folder of `small.corpus.write_corpus`; receives `clipart/HASH.png` and `clipart/captions.jsonl`.
        subjects: names of things; a drawing is taken if its name shares a word with one of them.
        most: drawings that are taken at most, in the order of their paths.
        progress: told after each file.

    Raises:
        UserFault: for a folder without SVG files, a corpus that was not made, and captions that are not those of a call.
        PartFault: when the library that draws is not installed.
        OSError: when a picture cannot be written.
    """
    if not (corpus / "pictures").is_dir():
        raise UserFault(f"small: {corpus} is no corpus: run genevolve small setup first")
    files = sorted(path for path in source.rglob("*.svg") if path.is_file())
    if not files:
        raise UserFault(f"small: {source} has no SVG file")
    kept = _captions(corpus / FOLDER / CAPTIONS)
    words = {word for name in subjects for word in _words(name)}
    captions: dict[str, str] = {}
    others, unusable = 0, []
    for done, path in enumerate(files, 1):
        caption = " ".join(_words(path.stem))
        if len(captions) < most and not words.isdisjoint(_words(path.stem)):
            try:
                data = _source(path)
                picture = draw_on_white(data.decode("utf-8"), SIDE)
            except ValueError as error:
                unusable.append(f"{path}: {str(error)[:120]}")
            else:
                name = f"{hashlib.sha256(data).hexdigest()[:16]}.png"
                others += name in captions
                captions.setdefault(name, caption)
                drawn = io.BytesIO()
                picture.save(drawn, "PNG")
                write_bytes(corpus / FOLDER / name, drawn.getvalue())
        else:
            others += 1
        if progress is not None:
            progress("drawings", done, len(files))
    lines = (json.dumps({"file": name, "caption": caption}) for name, caption in (kept | captions).items())
    write_bytes(corpus / FOLDER / CAPTIONS, "".join(f"{line}\n" for line in lines).encode())
    return ClipartReport(len(captions), others, tuple(unusable))


def _captions(path: Path) -> dict[str, str]:
    """Return the captions that earlier calls wrote, by file. Raises UserFault for a line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
            found[str(row["file"])] = str(row["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserFault(f"small: {path}, line {number} is no caption of a drawing: {line[:80]!r}") from error
    return found


def _source(path: Path) -> bytes:
    """Return the bytes of a drawing. Raises ValueError for one that is too large."""
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{size} bytes, at most {_LARGEST} are drawn")
    return path.read_bytes()


def _words(name: str) -> Iterator[str]:
    """Yield the words of a name in lower case; numbers and short words are left out."""
    return (word for word in _LETTERS.findall(name.lower()) if len(word) >= _SHORT)
