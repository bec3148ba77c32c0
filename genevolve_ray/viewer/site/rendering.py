"""Templates of the site: one environment that escapes everything, and the frame around each page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from genevolve_ray.viewer.gallery import clip
from genevolve_ray.viewer.lessons import visible
from genevolve_ray.viewer.page import duration, fixed, percent, signed
from genevolve_ray.viewer.site.pages import Links, PageRequest, SitePage, pages_of
from genevolve_ray.viewer.site.sources import ViewSource

POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy of every answer: files of this server alone, no script or style inside of a page."""
FILE_POLICY = (
    "default-src 'none'; img-src 'self' file:; style-src 'self' file:; script-src 'self' file:; base-uri 'none'"
)
"""The same for a static copy, whose files browsers do not count to one origin."""


def render_source_page(page: SitePage, request: PageRequest) -> str:
    """Return a page of a source. Raises PageMissing."""
    context = page.build(request)
    pages = [p for p in pages_of(request.source.kind).values() if p.label and p.listed(request.source)]
    menu = [(p.label, request.links.page(p.name), p is page) for p in pages]
    return render(page.template, request.links, source=request.source, menu=menu, **context)


def render_home(sources: Sequence[ViewSource], places: Sequence[str], links: Links) -> str:
    """Return the list of sources; `places` are their addresses."""
    rows = list(zip(sources, places, strict=True))
    return render("home.html.j2", links, source=None, menu=[], title="Runs and outputs", rows=rows)


def render_message(title: str, text: str, links: Links) -> str:
    """Return a page with a message in place of another one."""
    return render("message.html.j2", links, source=None, menu=[], title=title, text=text)


def prepare(pages: Iterable[SitePage]) -> None:
    """Load the templates of pages ahead of the first request for one."""
    for page in pages:
        if page.template:
            _environment().get_template(page.template)


def render(template: str, links: Links, **context: Any) -> str:
    """Return a page; every text in the context is untrusted and gets escaped."""
    page: str = _environment().get_template(template).render(links=links, file_policy=FILE_POLICY, **context)
    # Text from a broken decode may hold half surrogate pairs, which no answer can hold.
    return page.encode(errors="replace").decode()


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("genevolve_ray.viewer", name) for name in ("templates/site", "templates")]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed, fixed=fixed, percent=percent, duration=duration, clip=clip, visible=visible
    )
    return environment
