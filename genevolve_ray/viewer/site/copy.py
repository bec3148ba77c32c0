"""A copy of the site as a folder of files, which opens without a server: the same pages, found by following their links."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.viewer.page import write_page
from genevolve_ray.viewer.site.index import UnknownAddress
from genevolve_ray.viewer.site.pages import (
    THUMBNAIL,
    PageMissing,
    PageRequest,
    SitePage,
    file_name,
    pages_of,
    split_values,
)
from genevolve_ray.viewer.site.pictures import Thumbnails
from genevolve_ray.viewer.site.rendering import render_home, render_message, render_source_page
from genevolve_ray.viewer.site.sources import ViewSource

STATIC = Path(__file__).resolve().parent.parent / "static"
MARKER = "genevolve-view.txt"
"""Marks a folder that a copy may be written into again, and lists the files of the copy."""
_MARKED = "A copy of pages, written by genevolve view; open index.html. Its files:"
PAGES = 5000
"""Pages of one source in a copy, by default."""
_LEFT_OUT = "not-copied.html"
_LONGEST_NAME = 120


class CopyFault(UserFault, ValueError):
    """Report a folder that a copy cannot be written into; the message names it."""


@dataclass(frozen=True)
class CopyTotals:
    """Count the files of a copy; `left_out` are the pages beyond its limit that its pages link to."""

    pages: int
    pictures: int
    left_out: int


@dataclass(frozen=True)
class _Asked:
    page: SitePage
    params: Mapping[str, str]
    query: Mapping[str, str]


class FileLinks:
    """Return addresses of files, relative to the folder of a source, and keep what was asked for."""

    live = False

    def __init__(self, pages: Mapping[str, SitePage], limit: int) -> None:
        """Begin a source with these pages; at most `limit` of them are linked to."""
        self._pages, self._limit = pages, limit
        self.waiting: deque[tuple[str, _Asked]] = deque()
        self.pictures: deque[tuple[str, str, int | None]] = deque()
        self._named: set[str] = set()
        self.left_out: set[str] = set()

    def home(self) -> str:
        """Return the address of the list of sources."""
        return "../index.html"

    def page(self, name: str, /, **values: object) -> str:
        """Return the address of a page, and ask for it; the page of what is left out, beyond the limit."""
        page = self._pages[name]
        params, query = split_values(page, values)
        file = _page_name(page, params, query)
        if file not in self._named:
            if len(self._named) >= self._limit:
                self.left_out.add(file)
                return _LEFT_OUT
            self._named.add(file)
            self.waiting.append((file, _Asked(page, dict(zip(page.params, params, strict=True)), query)))
        return file

    def picture(self, sha256: str, side: int | None = THUMBNAIL) -> str:
        """Return the address of a picture, and ask for it."""
        file = f"pictures/{file_name(sha256)}" + (f"-{side}.jpeg" if side else ".png")
        if file not in self._named:
            self._named.add(file)
            self._limit += 1
            self.pictures.append((file, sha256, side))
        return file

    def asset(self, name: str) -> str:
        """Return the address of a file that the viewer brings along."""
        return f"../static/{name}"


class _HomeLinks(FileLinks):
    """Return addresses for the first page, which is one folder further up."""

    def home(self) -> str:
        return "index.html"

    def asset(self, name: str) -> str:
        return f"static/{name}"


def write_copy(
    sources: Sequence[ViewSource],
    out: Path,
    limit: int = PAGES,
    watch: Callable[[str, int], None] = lambda name, pages: None,
) -> CopyTotals:
    """Write the pages of all sources, whose indices are complete.

    Args:
        sources: what is copied.
        out: a folder that does not exist, is empty, or holds an earlier copy.
        limit: most pages of a source.
        watch: hears the name of the source and the number of its pages so far.

    Raises:
        CopyFault: for a folder that holds something else.
        OSError: when a file cannot be written.
    """
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise CopyFault(f"{out} holds other files: name a folder that is new, empty, or an earlier copy")
    earlier, files = _listed(out), _CopyFiles(out)
    try:
        # Marked before anything else, so that a copy that was interrupted can be written again.
        _mark(out, earlier)
        for path in sorted(STATIC.glob("*.*")):
            files.write(f"static/{path.name}", path.read_bytes())
        totals = [_copy_source(source, files, limit, watch) for source in sources]
        places = [f"{source.slug}/index.html" for source in sources]
        files.write("index.html", render_home(sources, places, _HomeLinks({}, 0)))
    finally:
        _mark(out, earlier | files.names)
    for name in earlier - files.names:
        _remove(out, name)
    _mark(out, files.names)
    return CopyTotals(sum(t.pages for t in totals), sum(t.pictures for t in totals), sum(t.left_out for t in totals))


class _CopyFiles:
    """Write files of a copy, and keep their names."""

    def __init__(self, out: Path) -> None:
        self._out, self.names = out, set[str]()

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, by its path in the copy."""
        path = self._out / name
        self.names.add(name)
        if isinstance(content, str):
            write_page(content, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _mark(out: Path, names: Iterable[str]) -> None:
    """Write the marker with the files of the copy, which the next copy replaces or removes."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("\n".join([_MARKED, *sorted(names), ""]), encoding="utf-8")


def _listed(out: Path) -> set[str]:
    """Return the files of an earlier copy as its marker lists them; none for a marker of another form."""
    try:
        first, *names = (out / MARKER).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return set()
    return set(names) if first == _MARKED else set()


def _remove(out: Path, name: str) -> None:
    """Remove a file of an earlier copy, and its folders where they are empty then; nothing outside of the copy."""
    path = out / name
    if ".." in Path(name).parts or not path.parent.resolve().is_relative_to(out.resolve()) or not path.is_file():
        return
    path.unlink()
    for folder in path.relative_to(out).parents:
        with suppress(OSError):  # It holds other files.
            if folder.name:
                (out / folder).rmdir()


def _copy_source(source: ViewSource, files: _CopyFiles, limit: int, watch: Callable[[str, int], None]) -> CopyTotals:
    links, thumbnails, pages, pictures = FileLinks(pages_of(source.kind), limit), Thumbnails(0), 0, 0
    links.page("overview")
    while links.waiting:
        file, asked = links.waiting.popleft()
        files.write(f"{source.slug}/{file}", _content(source, links, asked))
        pages += 1
        watch(source.name, pages)
        while links.pictures:
            name, sha256, side = links.pictures.popleft()
            # Of one that is missing or refused the page shows the description.
            with suppress(FileNotFoundError, ImageRefused):
                files.write(f"{source.slug}/{name}", thumbnails.make(sha256, source.picture(sha256), side).data)
                pictures += 1
    text = (
        f"This copy holds {limit} pages of {source.name}; `genevolve view` shows all of them, and --limit copies more."
    )
    files.write(f"{source.slug}/{_LEFT_OUT}", render_message("Not in this copy", text, links))
    return CopyTotals(pages, pictures, len(links.left_out))


def _content(source: ViewSource, links: FileLinks, asked: _Asked) -> str | bytes:
    request = PageRequest(source, links, asked.params, asked.query)
    try:
        if asked.page.template:
            return render_source_page(asked.page, request)
        data: bytes = asked.page.build(request)["data"]
        return data
    except (PageMissing, UnknownAddress, StoreError) as error:
        return render_message("Nothing here", str(error), links)


def _page_name(page: SitePage, params: Sequence[str], query: Mapping[str, str]) -> str:
    """Return the file of a page: its name and parameters, with a hash where they are long or there is a query."""
    if page.name == "overview" and not query:
        return "index.html"
    full = "-".join((page.name, *params))
    short = file_name(full)[:_LONGEST_NAME]
    told = urlencode(sorted(query.items()))
    if told or short != full:
        short += "-" + hashlib.sha256(f"{full}?{told}".encode()).hexdigest()[:12]
    return f"{short}.html" if page.template else f"{short}.json"
