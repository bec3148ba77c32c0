"""A plug-in in an interpreter of its own, on real Ray: the driver never imports it, and its errors arrive in plain words."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cluster_plugins import png
from cluster_run import run_config
from head_node import Head
from isolated_world import PACKAGE, build_interpreter

from genevolve_ray.cluster.applications import delete, deploy, wait_running
from genevolve_ray.cluster.errors import PluginError, StartError
from genevolve_ray.cluster.proxies import Caller
from genevolve_ray.cluster.services import Service, services_of
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.doctor.preflight import preflight
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugins import PluginFault, RendererSpec
from genevolve_ray.records.images import FilesystemImages

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renderer(
    tmp_path_factory: pytest.TempPathFactory, shared_cluster: Head
) -> AsyncIterator[tuple[Service, FilesystemImages]]:
    root = tmp_path_factory.mktemp("isolated")
    python = build_interpreter(root / "python")
    spec = {"type": f"{PACKAGE}:Renderer", "config": {"shade": 7}, "runtime_env": {"py_executable": python}}
    config = run_config(root, f"renderer={spec}", f"cluster.address={shared_cluster.address}")
    preflight(config, model=False)  # would import whatever it can
    with ray_session(config.cluster, namespace="isolated"):
        service = next(s for s in services_of(config, "isolated") if s.role == "renderer")
        yield service, FilesystemImages(str(root / "images"))
        await delete([service])


async def started(service: Service, images: FilesystemImages) -> Caller:
    [handle] = await deploy([service], images.uri)
    await wait_running([service])
    return Caller.of("renderer", handle, service.config)


async def test_it_runs_where_the_driver_cannot_follow(renderer: Any) -> None:
    service, images = renderer
    caller = await started(service, images)
    python = Path(service.spec.runtime_env["py_executable"])
    assert await caller("describe") == f"isolated/1:7 in {python.parents[1]}"
    assert images.get(await caller("render", "grey", (), 3)) == png(7)
    assert importlib.util.find_spec(PACKAGE) is None
    with pytest.raises(PluginFault, match=f"{PACKAGE}:Renderer.*cannot be loaded.*No module named"):
        service.spec.resolve()


async def test_its_own_exceptions_arrive_as_ours(renderer: Any) -> None:
    service, images = renderer
    caller = await started(service, images)
    with pytest.raises(InfraFailure, match="^the generator is down$") as failed:
        await caller("render", "down", (), 3)
    assert type(failed.value) is InfraFailure
    with pytest.raises(PluginError, match="^OwnError: a fault of the plug-in$"):
        await caller("render", "bug", (), 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"config": {"shade": 300}},
            r"renderer\.config\.shade: Input should be less than or equal to 255, got 300",
        ),
        ({"type": f"{PACKAGE}:Painter"}, rf"plug-in '{PACKAGE}:Painter' cannot be loaded: AttributeError: .*"),
    ],
    ids=["settings", "class"],
)
async def test_what_is_wrong_with_it_is_one_line(renderer: Any, change: dict[str, Any], line: str) -> None:
    service, images = renderer
    spec = RendererSpec.model_validate(service.spec.model_dump() | change)
    broken = replace(service, name="isolated-broken", spec=spec)
    with pytest.raises(StartError, match=f"^the renderer service cannot start: {line}$"):
        await started(broken, images)
    await delete([broken])
