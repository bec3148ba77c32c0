"""`docs/configuration.md` lists every key, and says of each what it means."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from pydantic import BaseModel

from docs.configuration import PAGE, key_paths, page, undescribed
from genevolve_ray.config import RunConfig


def test_the_page_is_what_the_classes_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_key_is_described() -> None:
    assert undescribed() == []


def keys_of(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the keys of a class and of the classes inside its fields, as full paths."""
    for name, info in kind.model_fields.items():
        yield f"{above}{name}"
        for inner in (info.annotation, *typing.get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys_of(inner, f"{above}{name}.")


def test_no_key_of_a_run_is_missing() -> None:
    assert set(keys_of(RunConfig)) - key_paths() == set()


def test_a_key_stands_on_the_page_with_its_whole_path() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for key in ("loop.group_size", "learner.ved.gate_fraction", "cluster.weights", "renderer.config.seed_device"):
        assert f"| `{key}` |" in text
