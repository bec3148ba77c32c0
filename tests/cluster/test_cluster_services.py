"""Replicas over outside services: their part of a rate, their health, and calls that nobody waits for any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from head_node import Head
from own_folder import own_folder, write_painter
from played_services import dead_origin, in_turn, playing

from genevolve_ray.cluster.applications import delete
from genevolve_ray.cluster.config import ClusterConfig, ServiceConfig
from genevolve_ray.cluster.proxies import Caller
from genevolve_ray.cluster.services import RenderReplica, Service, application, deployment_of
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugin_folders import VARIABLE
from genevolve_ray.evolution.plugins import PluginSpec, RendererSpec
from genevolve_ray.remote import client as remote


def spec(url: str, **settings: object) -> PluginSpec:
    kind = "genevolve_ray.renderers.qwen_service:QwenServiceRenderer"
    return PluginSpec(type=kind, config={"url": url, "attempts": 1, **settings})


@pytest.mark.parametrize(("replicas", "most", "told"), [(3, None, 3), (2, 5, 5)])
def test_every_replica_is_told_how_many_there_may_be(
    replicas: int, most: int | None, told: int, tmp_path: Path
) -> None:
    settings = ServiceConfig(replicas=replicas, max_replicas=most)
    service = Service("renderer", "r", RenderReplica, spec("http://h"), settings)
    bound = application(service, str(tmp_path))
    assert bound._bound_deployment.init_args == (service.spec, str(tmp_path), told)


def test_a_replica_keeps_to_its_part_of_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SHARE", 1.0)
    RenderReplica(spec("http://h"), str(tmp_path), 4)
    assert remote._SHARE == 0.25


def test_a_replica_is_well_while_its_service_is_not(tmp_path: Path) -> None:
    RenderReplica(spec(dead_origin(), health_path="health"), str(tmp_path)).check_health()


@pytest.mark.e2e
async def test_a_call_that_nobody_waits_for_gives_its_place_free(tmp_path: Path, shared_cluster: Head) -> None:
    from ray import serve

    with playing() as backend, ray_session(ClusterConfig(address=shared_cluster.address), "services"):
        backend.script = in_turn("hang", "good")
        settings = spec(backend.origin, concurrency=1, timeout_s=300)
        service = Service("renderer", "renderer", RenderReplica, settings, ServiceConfig(timeout=2))
        serve.start(proxy_location="Disabled")
        handle = serve.run(application(service, str(tmp_path)), name=service.name, route_prefix=None)
        caller = Caller("renderer", handle, attempts=1, timeout=2)
        with pytest.raises(InfraFailure, match="TimeoutError"):
            await caller("render", "a cat", (), 1)
        picture = await Caller("renderer", handle, attempts=1, timeout=60)("render", "a cat", (), 2)
        assert (picture.width, picture.height) == (64, 48)
        assert len(backend.calls) == 2
        await delete([service])


def test_replicas_find_a_class_of_the_working_folder(tmp_path: Path) -> None:
    with own_folder(tmp_path / "here") as here:
        write_painter(here / "my_painter.py")
        mine = RendererSpec(type="my_painter:Painter", runtime_env={"env_vars": {"SEED": "1"}})
        found, builtin = (
            deployment_of(Service("renderer", "r", RenderReplica, one, ServiceConfig()), RenderReplica)
            for one in (mine, RendererSpec(type="atlas"))
        )
    assert found.ray_actor_options["runtime_env"] == {"env_vars": {VARIABLE: str(here), "SEED": "1"}}
    assert builtin.ray_actor_options["runtime_env"] == {}
