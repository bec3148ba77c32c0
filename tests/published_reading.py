"""The rules by which published tools read rows, in our own words: what they take as prompt, type, picture and truth.

`here` stands for their working directory, from which they resolve the paths of references.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def meta_of(row: Row) -> Row:
    """Return the inner object of a row, {} for none."""
    return row["meta"] if isinstance(row.get("meta"), dict) else {}


def prompt(row: Row) -> str:
    """Return the request, as runner, renderer and scorer read it."""
    return (row.get("prompt") or row.get("question") or "").strip()


def eval_type(row: Row) -> str:
    """Return the split of a row, as the scorer names it."""
    return str(meta_of(row).get("eval_type") or row.get("eval_type") or row.get("tier") or "unknown")


def case_id(row: Row) -> str:
    """Return the id under which the scorer lists a row."""
    return str(meta_of(row).get("case_id") or meta_of(row).get("source_id") or row.get("id"))


def facet(row: Row, name: str) -> str:
    """Return category or difficulty, as the scorer reads them."""
    return str(row.get(name) or meta_of(row).get(name) or "unknown")


def _there(value: Any, roots: list[Path]) -> Path | None:
    if not str(value or "").strip():
        return None
    path = Path(str(value).strip())
    tried = [path] if path.is_absolute() else [root / path for root in roots]
    return next((each for each in tried if each.exists()), None)


def picture(row: Row, roots: list[Path]) -> Path | None:
    """Return the generated image that the scorer judges: the first name whose file exists."""
    names = ("output_path", "image_path", "generated_image", "gen_image")
    return next((found for name in names if (found := _there(row.get(name), roots))), None)


def truth(row: Row, roots: list[Path]) -> Path | None:
    """Return the ground truth that the scorer shows: names of the row, then of its `meta`."""
    own = [row.get(name) for name in ("gt_image", "ground_truth", "target_image", "reference_image")]
    inner = [meta_of(row).get(name) for name in ("gt_image", "ground_truth", "target_image", "gt_copied_path")]
    return next((found for value in (*own, *inner) if (found := _there(value, roots))), None)


def drawn(row: Row, here: Path) -> tuple[str, list[Path]]:
    """Return what the renderer draws: the program where it finds a reference, else the request without any."""
    named = [one.get("local_path") for one in row.get("reference_images") or [] if isinstance(one, dict)]
    found = [path for value in named if (path := _there(value, [here]))]
    program = (row.get("gen_prompt") or "").strip()
    return (program, found) if program and found else (prompt(row), [])
