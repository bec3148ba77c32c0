"""One server for a module's tests, made good again before each of them; tiny diffusers pipelines, built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from diffusers_helpers import LIGHT
from played_services import PlayedService, playing

from genevolve_ray.renderers.diffusers import DiffusersConfig, DiffusersRenderer


@pytest.fixture(scope="module")
def _playing() -> Iterator[PlayedService]:
    with playing() as service:
        yield service


@pytest.fixture
def service(_playing: PlayedService) -> PlayedService:
    _playing.reset()
    return _playing


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny diffusers pipeline by its class; built once."""
    from tiny_pipelines import save

    root = tmp_path_factory.mktemp("pipelines")
    return cache(lambda name: save(name, root / name))


@pytest.fixture(scope="session")
def build(model_of: Callable[[str], Path]) -> Callable[..., DiffusersRenderer]:
    """Return a new renderer over a tiny pipeline; keywords change its settings."""

    def new(name: str, **changes: Any) -> DiffusersRenderer:
        settings = {"model": str(model_of(name)), "steps": 2, "width": 64, "height": 64, "threads": 1, "warm_up": False}
        return DiffusersRenderer(DiffusersConfig.model_validate({**settings, **LIGHT.get(name, {}), **changes}))

    return new


@pytest.fixture(scope="session")
def renderer_of(build: Callable[..., DiffusersRenderer]) -> Callable[[str], DiffusersRenderer]:
    """Return one shared renderer by pipeline class."""
    return cache(build)
