"""A page as the tests read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"


@dataclass
class Page(HTMLParser):
    """The parts of a page that the tests ask about."""

    sections: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[tuple[str, str]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._script: str | None = None
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append((tag, named))
        if tag == "section":
            self.sections.append(str(named.get("id", "")))
        elif tag == "script":
            self._script = named.get("type") or "text/javascript"
            self.scripts.append((self._script, ""))
        elif tag == "tr":
            self.tables.setdefault(self._place, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._place][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        elif tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
            if self._cell:
                self.tables[self._place][-1][-1] += data
        else:
            kind, body = self.scripts.pop()
            self.scripts.append((kind, body + data))

    @property
    def _place(self) -> str:
        return self.sections[-1] if self.sections else ""

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def rows(self, section: str) -> list[list[str]]:
        """Return the cells of all tables of a section, row by row, with single spaces."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[section]]

    def count(self, tag: str, **attributes: str) -> int:
        """Return how many elements have these attributes (`_class` is the class)."""
        return sum(t == tag and all(a.get(k.strip("_")) == v for k, v in attributes.items()) for t, a in self.tags)

    def assert_harmless(self) -> None:
        """Check that the page runs only its own two scripts and loads nothing."""
        assert [kind for kind, _ in self.scripts if kind != "application/json"] == ["text/javascript"] * 2
        self.assert_loads_nothing()

    def assert_loads_nothing(self) -> None:
        """Check that the page loads nothing and has no handlers in its elements."""
        assert all((a.get("src") or "data:").startswith("data:") for _, a in self.tags)
        assert not [name for _, a in self.tags for name in a if name.startswith("on")]


def parsed(html: str) -> Page:
    """Return a page."""
    page = Page()
    page.feed(html)
    return page
