from __future__ import annotations

from collections.abc import Iterator

import pytest
from web_world import World, serving_world


@pytest.fixture
def world() -> Iterator[World]:
    with serving_world() as served:
        yield served
