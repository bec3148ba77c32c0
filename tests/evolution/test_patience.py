"""The time limit of a plug-in's replica follows the tries of the services behind it."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.cluster.config import ServiceConfig
from genevolve_ray.cluster.services import services_of
from genevolve_ray.config import load_config
from genevolve_ray.evolution.patience import SHORTEST, time_limit
from genevolve_ray.evolution.plugins import JudgeSpec, PluginSpec, RendererSpec, ToolsSpec

URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (RendererSpec(type="qwen-service", config={"url": URL}), 4 * (600 + 20)),
        (RendererSpec(type="qwen-service", config={"url": URL, "attempts": 2, "timeout_s": 1800}), 2 * (1800 + 20)),
        (RendererSpec(type="preset", config={"name": "nano-banana-pro"}), 4 * (600 + 20)),
        (JudgeSpec(type="endpoint", config={"kscore": {"url": URL, "model": "m", "timeout_s": 120}}), 3 * 4 * 140),
    ],
)
def test_a_limit_exceeds_all_tries_and_repairs(spec: PluginSpec, least: float) -> None:
    assert time_limit(spec) > least


@pytest.mark.parametrize(
    "spec",
    [
        ToolsSpec(type="atlas"),
        RendererSpec(type="nowhere:R"),
        RendererSpec(type="qwen-service", config={"no": 1}),
        RendererSpec(type="qwen-service", config={"url": URL}, runtime_env={"env_vars": {"A": "b"}}),
    ],
)
def test_a_plug_in_without_known_services_gets_the_shortest_limit(spec: PluginSpec) -> None:
    assert time_limit(spec) == SHORTEST


def test_a_limit_that_is_given_stays() -> None:
    assert ServiceConfig(timeout=7).limited(RendererSpec(type="qwen-service", config={"url": URL})).timeout == 7


def test_the_services_of_a_run_have_limits_and_its_configuration_none() -> None:
    settings: Any = ["renderer={type: qwen-service, config: {url: 'http://127.0.0.1:1'}}"]
    config = load_config("atlas", settings)
    assert config.cluster.renderer.timeout is None
    limits = {service.role: service.config.timeout for service in services_of(config, "run")}
    assert limits == {"tools": SHORTEST, "renderer": time_limit(config.renderer), "judge": SHORTEST}
