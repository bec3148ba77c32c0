"""One server for a module's tests, made good again before each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from played_services import PlayedService, playing


@pytest.fixture(scope="module")
def _playing() -> Iterator[PlayedService]:
    with playing() as service:
        yield service


@pytest.fixture
def service(_playing: PlayedService) -> PlayedService:
    _playing.reset()
    return _playing
