"""The pages of the site: which there are, where they are, and how one links to another, served or as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from genevolve_ray.errors import GenevolveError
from genevolve_ray.viewer.site.sources import SourceKind, ViewSource

THUMBNAIL = 256
"""Pixels of the longer side of a small picture."""
_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,159}")


class PageMissing(GenevolveError, LookupError):
    """Signal that there is no such page; the message is shown in its place."""


class Links(Protocol):
    """Return addresses, relative to nothing on a server, and to the present file in a static copy."""

    live: bool
    """True on a server: the page can have forms and follows the run."""

    def home(self) -> str:
        """Return the address of the list of sources."""
        ...

    def page(self, name: str, /, **values: object) -> str:
        """Return the address of a page of this source; `values` are its parameters and its query, empty ones left out."""
        ...

    def picture(self, sha256: str, side: int | None = THUMBNAIL) -> str:
        """Return the address of a picture: scaled down to `side` pixels, or in full size with None."""
        ...

    def asset(self, name: str) -> str:
        """Return the address of a file of `viewer/static`."""
        ...


@dataclass(frozen=True)
class PageRequest:
    """Hold what a page is made from.

    Attributes:
        source: the run, or what else the page is about.
        links: addresses of other pages.
        params: the parameters in the page's address, valid by their form alone.
        query: the query, each value at most 200 characters; from a stranger.
        others: everything that the viewer shows, by the name in addresses; empty in a copy.
    """

    source: ViewSource
    links: Links
    params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, ViewSource] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number of the page of a list (`page` of the query), 1 where it is missing or none."""
        given = self.query.get("page", "")
        return max(1, int(given)) if re.fullmatch(r"[0-9]{1,6}", given) else 1


@dataclass(frozen=True)
class SitePage:
    """Describe a page. Its address is `/SOURCE/NAME/PARAMETER...?QUERY`; the overview is `/SOURCE/`.

    Attributes:
        name: name in the address and of `Links.page`.
        template: file in `viewer/templates/site`; "" for a JSON file to be kept.
        build: returns what the template shows, `title` among it; without a template, `name` of the file and its `data`
            (bytes). Raises PageMissing.
        label: text in the navigation, "" for a page that only others link to.
        params: names of the parameters in the address.
        kinds: sources that have the page.
        listed: whether the navigation of a source has the label; the page itself can be opened either way.
    """

    name: str
    template: str
    build: Callable[[PageRequest], dict[str, Any]]
    label: str = ""
    params: tuple[str, ...] = ()
    kinds: frozenset[SourceKind] = frozenset({SourceKind.RUN})
    listed: Callable[[ViewSource], bool] = lambda source: True


def read_params(page: SitePage, given: list[str]) -> dict[str, str]:
    """Return the parameters of an address by name. Raises PageMissing for a wrong number or form of them."""
    if len(given) != len(page.params) or not all(_PARAMETER.fullmatch(value) for value in given):
        raise PageMissing("there is no page at this address")
    return dict(zip(page.params, given, strict=True))


def split_values(page: SitePage, values: Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    """Divide the values of a link into parameters, in order, and the query; None and "" are left out of the query."""
    params = [str(values[name]) for name in page.params]
    query = {k: str(v) for k, v in values.items() if k not in page.params and v is not None and v != ""}
    return params, query


def file_name(text: str) -> str:
    """Return a text as the name of a file: ASCII letters, digits, dots and dashes, at most 100."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "file"


def all_pages() -> list[SitePage]:
    """Return every page, in the order of the navigation; a kind of source has one page of a name."""
    from genevolve_ray.viewer.site.compare import COMPARE
    from genevolve_ray.viewer.site.compare_runs import RUNS
    from genevolve_ray.viewer.site.experience import EXPERIENCE
    from genevolve_ray.viewer.site.gateway_status import GATEWAY
    from genevolve_ray.viewer.site.groups import GROUP, GROUPS
    from genevolve_ray.viewer.site.outputs import BUILD, JOB, ROWS
    from genevolve_ray.viewer.site.overview import OVERVIEW
    from genevolve_ray.viewer.site.result_file import RESULT_FILE
    from genevolve_ray.viewer.site.structured_file import STRUCTURED_FILE
    from genevolve_ray.viewer.site.trajectory import STRUCTURED, TOKENS, TRAJECTORY

    ours = [GROUPS, GROUP, TRAJECTORY, TOKENS, STRUCTURED, COMPARE, RUNS, EXPERIENCE]
    return [OVERVIEW, *ours, JOB, BUILD, GATEWAY, ROWS, RESULT_FILE, STRUCTURED_FILE]


def pages_of(kind: SourceKind) -> dict[str, SitePage]:
    """Return the pages that a kind of source has, by name."""
    return {page.name: page for page in all_pages() if kind in page.kinds}
