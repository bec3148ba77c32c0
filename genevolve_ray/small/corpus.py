"""The corpus of the world `small`: a folder of texts and pictures for the tools `folder`.

The texts are sections of the World Factbook, the pictures those of OpenMoji. Nothing in them was written for this world:
other countries share words with a query, and other pictures share names.
"""

from __future__ import annotations

import hashlib
import io
import json
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.notices import notice_files
from genevolve_ray.small.pictures import PictureEntry, PictureLibrary

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""
SIDE = 128
"""Side of a picture, pixels."""
_PICTOGRAPHS = range(0x1F300, 0x1FB00)
_EMOTICONS = range(0x1F600, 0x1F650)
_NO_THINGS = {"symbol", "sign", "arrow", "arrows", "hand", "finger", "fingers", "index", "button", "square", "circle"}
"""Words in the names of pictographs that show no thing."""


def write_corpus(
    library: PictureLibrary,
    countries: Sequence[Country],
    out: Path,
    *,
    pictures: Collection[str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Write the corpus into a folder, and return the SHA-256 (hex) of its content.

    A file that is already there with the same content is left as it is, so that an interrupted call can be repeated.

    Args:
        library: the pictures: flags, subjects, and others that resemble them by name.
        countries: the countries, as `small.factbook.read_factbook` returns them.
        out: receives `texts/NAME.md`, `pictures/ID.png`, `pictures/captions.jsonl` and the notices.
        pictures: ids of the pictures; by default all that `picture_captions` names.
        progress: told after each file.

    Raises:
        UserFault: when a picture cannot be drawn.
        OSError: when a file cannot be written.
    """
    captions = picture_captions(library, countries)
    if pictures is not None:
        captions = {id: caption for id, caption in captions.items() if id in pictures}
    notices = dict(notice_files("corpus"))
    total, digest = len(notices) + len(countries) + len(captions) + 1, hashlib.sha256()
    for done, (path, data) in enumerate(chain(notices.items(), _files(library, countries, captions)), 1):
        digest.update(f"{path}\0{hashlib.sha256(data).hexdigest()}\0".encode())
        target = out / path
        if not target.is_file() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, data)
        if progress is not None:
            progress("corpus", done, total)
    return digest.hexdigest()


def country_text(country: Country) -> str:
    """Return the Markdown of a country: one short section for each fact, under the factbook's own title."""
    return "".join(f"# {title}\n\n{text}\n\n" for title, text in country.sections)


def picture_captions(library: PictureLibrary, countries: Sequence[Country]) -> dict[str, str]:
    """Return the captions of the pictures by id: flags, subjects, and other pictographs of the library.

    Flags have the names of the factbook, where it has the country, so that texts and pictures agree.
    """
    names = {country.iso: country.name for country in countries}
    flags = {entry.id: names.get(code, "") for code, entry in library.flags.items()}
    captions = {}
    for entry in library.entries.values():
        if entry.group == "flags":
            captions[entry.id] = f"Flag of {flags[entry.id]}" if flags.get(entry.id) else _capital(entry.name)
        elif entry.group != "other" or _pictograph(entry):
            captions[entry.id] = _caption(entry)
    return captions


def _files(
    library: PictureLibrary, countries: Sequence[Country], captions: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the corpus as paths and contents, in a fixed order."""
    for country in countries:
        yield f"texts/{country.name}.md", country_text(country).encode()
    for id in captions:
        drawn = io.BytesIO()
        library.reference(id, SIDE).save(drawn, "PNG")
        yield f"pictures/{id}.png", drawn.getvalue()
    lines = (json.dumps({"file": f"{id}.png", "caption": caption}) for id, caption in captions.items())
    yield "pictures/captions.jsonl", "".join(f"{line}\n" for line in lines).encode()


def _caption(entry: PictureEntry) -> str:
    """Return a picture's name; where Unicode knows more words for it, these follow."""
    unicode = unicodedata.name(chr(int(entry.id.split("-")[0], 16)), "").lower()
    known = set(entry.name.replace("-", " ").split())
    more = "" if set(unicode.replace("-", " ").split()) <= known else f" ({unicode})"
    return _capital(entry.name) + more


def _pictograph(entry: PictureEntry) -> bool:
    """Return whether a picture shows a thing, and not a letter, an arrow or a mood."""
    code = int(entry.id.split("-")[0], 16)
    return code in _PICTOGRAPHS and code not in _EMOTICONS and not _NO_THINGS & set(entry.name.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
