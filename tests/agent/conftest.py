"""Fixtures of the agent's tests."""

from __future__ import annotations

from typing import Any

import pytest
from agent_fakes import image_hit
from fake_sources import FakeSource

from genevolve_ray.records.observation import TextHit
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.search import SearchTool


@pytest.fixture
def tools() -> dict[str, Any]:
    texts = FakeSource([TextHit(title="Heron", url="https://x.org/heron", snippet="A wading bird.")])
    images = FakeSource([image_hit("heron one", "https://x.org/1.png"), image_hit("heron two", "https://x.org/2.png")])
    skill = "# Count\n\n## Instructions\nUse number words.\n\n## In short\nwords in a row\n"
    listed = (SearchTool(texts), ImageSearchTool(images), KnowledgeTool({"quantity_counting": skill}))
    return {tool.name: tool for tool in listed}
