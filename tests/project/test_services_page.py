"""The examples of docs/services.md are configurations that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from genevolve_ray.config import load_config
from genevolve_ray.evolution.plugins import RendererSpec

PAGE = (Path(__file__).parents[2] / "docs/services.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


def test_there_is_an_example_for_each_renderer() -> None:
    kinds = {example["renderer"]["type"].partition(":")[2] for example in EXAMPLES}
    assert kinds == {"QwenServiceRenderer", "ImagesApiRenderer", "GeminiRenderer"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["renderer"]["type"].partition(":")[2])
def test_an_example_builds_its_renderer_in_a_run(example: dict[str, object]) -> None:
    spec = RendererSpec.model_validate(example["renderer"])
    assert spec.build().identity
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in example.items()]
    assert load_config("atlas", overrides).renderer == spec
