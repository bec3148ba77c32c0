"""Shared parts of every page: inlined templates, style and scripts, and a file that appears complete or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from genevolve_ray.viewer.gallery import clip

STYLES = ("palette.css", "report.css", "measures.css", "chart.css", "zoom.css")
SCRIPTS = ("chart.js", "zoom.js", "report.js")
_YAML_LINE = re.compile(r"^(\s*(?:- )*)([^\s:#'\"-][^:]*):(?= |$)(.*)$")


def render_page(template: str, context: dict[str, Any], assets: Sequence[str] = (*STYLES, *SCRIPTS)) -> str:
    """Return a page from a template of this package; every text in the context is untrusted and gets escaped.

    The page loads nothing and runs only its own scripts: its content security policy lists their hashes. `assets` are
    its styles (`.css`) and scripts (`.js`), of the templates or of `viewer/static`.
    """
    environment = _environment()
    assert environment.loader is not None
    source = environment.loader.get_source
    styles = [source(environment, name)[0] for name in assets if name.endswith(".css")]
    scripts = [source(environment, name)[0] for name in assets if name.endswith(".js")]
    page = environment.get_template(template).render(
        **context,
        style=Markup("".join(styles)),  # noqa: S704 our own files
        scripts=[Markup(text) for text in scripts],  # noqa: S704 our own files
        script_hashes=[_csp_hash(text) for text in scripts],
    )
    # Text from a broken decode may hold half surrogate pairs, which no file can hold.
    return page.encode(errors="replace").decode()


def macro(template: str, name: str) -> Callable[..., Markup]:
    """Return a macro of a template, which escapes every text in its arguments."""
    module = _environment().get_template(template).make_module()
    found = getattr(module, name)
    return lambda *arguments: Markup(found(*arguments))  # noqa: S704 written by a template that escapes


def write_page(page: str, out: Path) -> Path:
    """Write a page and return its path. Raises OSError when it cannot be written; then no file remains."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return out


def yaml_lines(text: str) -> list[tuple[str, str, str]]:
    """Cut YAML into (indentation, key, rest) per line, because the page highlights keys.

    A line without a key is all rest.
    """
    found = [(line, _YAML_LINE.match(line)) for line in text.rstrip().split("\n")]
    return [(m.group(1), m.group(2), m.group(3)) if m else ("", "", line) for line, m in found]


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("genevolve_ray.viewer", name) for name in ("templates", "static")]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clip=clip, signed=signed, fixed=fixed, percent=percent, yaml_lines=yaml_lines)
    return environment


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def signed(value: float) -> str:
    """Return a number with its sign, a real minus, and three decimals."""
    return f"{value:+.3f}".replace("-", "−")


def fixed(value: float | None) -> str:
    """Return three decimals, or a dash for no value."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share with one decimal, or a dash for no value."""
    return "–" if value is None else f"{value:.1%}"


def power(value: float) -> str:
    """Return a small number with two digits at most and its power of ten: `1.6e-6`, `1e-4`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Return seconds in the usual units: `42 s`, `11 min 32 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
