"""Import paths and file paths that a page names lead somewhere; old import paths stand in the changelog only."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from docs_pages import CONFIGS, DOCS, PACKAGE, PAGES, ROOT, groups, invented, is_key, quoted

from genevolve_ray._moved import MODULES, NAMES, current_path
from genevolve_ray.evolution.plugins import Role

pytestmark = pytest.mark.filterwarnings("ignore:genevolve_ray:DeprecationWarning")
CHANGELOG = ROOT / "CHANGELOG.md"
EVERY = pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: str(page.relative_to(ROOT)))
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
GROUPS = {role.group for role in Role}
SUFFIXES = "py|md|sh|ya?ml|toml|txt|j2|service|svg|png|json|jsonl|csv|html|pt|safetensors|jinja"
FILE = re.compile(
    r"(?<![\w./{-])(?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|ya?ml|toml|j2|service|svg)\b|(?<![\w./-])\w+\.(?:py|sh)\b"
)
FOLDER = re.compile(r"(?:[\w-]+/)+")
OUTPUTS = (
    *("runs/", "RUN/", "samples/", "out/", "store/", ".venv/", "steps/", "checkpoints/", "images/"),
    *("download.sh", "serve_", "my_painter/"),
)
"""What a run or a set-up writes, or a user's own: not in the repository."""
MANIFEST = {"loop.flow", "loop.renderer_swap"}
"""Entries of a step's manifest, which look like keys of a configuration."""
IMPORT = re.compile(r"genevolve_ray(?:\.\w+)+(?::\w+)?")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)+(?::\w+)?")


def resolves(path: str) -> bool:
    """Return whether an import path below the package, with or without a colon, leads to a module, class or member."""
    names = path.replace(":", ".").split(".")
    found = importlib.import_module("genevolve_ray")
    for number, name in enumerate(names):
        below = getattr(found, name, None)
        if below is None and isinstance(found, type):
            return name in {**getattr(found, "model_fields", {}), **found.__annotations__}
        if below is None:
            try:
                below = importlib.import_module(".".join(["genevolve_ray", *names[: number + 1]]))
            except ModuleNotFoundError:
                return False
        found = below
    return True


def is_old(path: str) -> bool:
    """Return whether an import path below the package is one of version 0.1."""
    module = path.partition(":")[0]
    renamed = any(path.replace(":", ".").startswith(f"{old}.{name}") for old in NAMES for name in NAMES[old])
    return renamed or any(module == old or module.startswith(f"{old}.") for old in MODULES)


@EVERY
def test_an_import_path_leads_somewhere(page: Path) -> None:
    named = {path for path in IMPORT.findall(page.read_text(encoding="utf-8")) if path not in GROUPS}
    examples = tuple(name.removesuffix(".py").replace("/", ".") for name in invented(page))
    below = {path.removeprefix("genevolve_ray.") for path in named if not (examples and path.startswith(examples))}
    wrong = [path for path in below if not resolves(path) or (is_old(path) and page != CHANGELOG)]
    assert sorted(wrong) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_dotted_name_is_a_key_or_an_import_path(page: Path) -> None:
    """Only names that begin like a key or a package are looked at; `torch.Generator` is somebody else's."""
    named = {text for text in quoted(page) if DOTTED.fullmatch(text) and not re.search(rf"\.({SUFFIXES})$", text)}
    ours = {name for name in named - MANIFEST - GROUPS if name.partition(".")[0] in ROOMS | groups()}
    imports = [name for name in ours if not is_key(name)]
    wrong = [name for name in imports if not resolves(name) or (is_old(name) and page != CHANGELOG)]
    assert sorted(wrong) == []


@EVERY
def test_a_file_path_leads_somewhere(page: Path) -> None:
    text = re.sub(r"https?://\S+|s3://\S+", "", page.read_text(encoding="utf-8"))
    files = {name for name in FILE.findall(text) if not name.startswith(OUTPUTS)}
    folders = {name for name in quoted(page) if FOLDER.fullmatch(name) and not name.startswith(OUTPUTS)}
    others = invented(page) | published(page)
    assert sorted(name for name in (files | folders) - others if not is_there(name, page)) == []


def published(page: Path) -> set[str]:
    """Return the files of published programs: docs/compatibility.md names them in the first cells of its tables."""
    if page.name != "compatibility.md":
        return set()
    cells = [line.split(" | ")[0] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = {name for cell in cells for name in FILE.findall(cell) + FOLDER.findall(cell)}
    return named | {name.rpartition("/")[2] for name in named}


def is_there(name: str, page: Path) -> bool:
    """Return whether a path names a file or folder of the repository, from its root, the package or the page."""
    if "/" not in name:
        return any(ROOT.glob(f"[!.]*/**/{name}"))
    return any((place / name).exists() for place in (ROOT, PACKAGE, page.parent))


def anchors(page: Path) -> set[str]:
    """Return what a link into a page may name after `#`: its headings as GitHub spells them, and its own anchors."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]+>", "", heading).lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_to_its_heading(page: Path) -> None:
    wrong = []
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


def test_the_table_of_renames_says_what_the_finder_does() -> None:
    rows = re.findall(r"^\| `([\w.:]+)` \| `([\w.:]+)` \|$", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 20
    for old, now in rows:
        module, colon, name = old.partition(":")
        expected = current_path(f"genevolve_ray.{old}") if colon else f"genevolve_ray.{MODULES[module]}"
        assert (expected, old) == (f"genevolve_ray.{now}", old)
        assert resolves(now)


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", index))
    assert {page.name for page in DOCS} - {"index.md"} - linked == set()
