"""A run on real Ray actors and Serve applications, with the reference engine and a tiny random policy."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from cluster_plugins import DIE_ONCE, OneTool, png
from cluster_run import build_model, run_config
from head_node import Head

from genevolve_ray.cluster.launch import ClusterPorts, on_ray
from genevolve_ray.cluster.proxies import Caller, ServeJudge, ServeRenderer, ServeTool, connect
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, SampleKey
from genevolve_ray.tools.protocol import EpisodeContext

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

REQUEST = Request(id="train-1-0", prompt="a round grey stone", eval_type=EvalType.QUALITY)


@dataclass
class Session:
    """The run that the tests of this module share."""

    head: Head
    ports: ClusterPorts
    root: Path
    images: FilesystemImages
    tools: dict[str, ServeTool]
    renderer: ServeRenderer
    judge: ServeJudge


def task(sample: int) -> RolloutTask:
    return RolloutTask(
        request=REQUEST,
        key=SampleKey(step=1, request_id=REQUEST.id, sample=sample),
        seed=sample,
        render_seed=0,
        sampling=SamplingParams(),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(tmp_path_factory: pytest.TempPathFactory, shared_cluster: Head) -> AsyncIterator[Session]:
    from ray import serve

    root = tmp_path_factory.mktemp("run")
    images = FilesystemImages(str(root / "images"))
    model = build_model(root / "model")
    config = run_config(root, f"cluster.address={shared_cluster.address}")
    async with on_ray(config, run_name="test run", images_uri=images.uri, model_dir=model) as ports:
        callers = [
            Caller.of(role, serve.get_app_handle(f"test-run-{role}"), getattr(config.cluster, role))
            for role in ("tools", "renderer", "judge")
        ]
        yield Session(shared_cluster, ports, root, images, *await connect(*callers))
        assert shared_cluster.actors()
    _, left = psutil.wait_procs(shared_cluster.actors(), timeout=30)
    assert left == [], "processes are left of the run"


async def update(session: Session, version: int) -> float:
    return await session.ports.rollouts.update(await session.ports.learner.publish(version))


async def test_an_update_is_verified_by_the_learners_probe(session: Session) -> None:
    assert await update(session, 1) < 1e-5
    assert [stats.version for stats in await session.ports.rollouts.stats()] == [1]


async def test_rollouts_are_played_by_the_worker_and_name_their_makers(session: Session) -> None:
    trajectories = await asyncio.gather(*(session.ports.rollouts.rollout(task(i)) for i in range(2)))
    assert [t.outcome for t in trajectories] == [Outcome.POLICY_FAILURE] * 2  # a random policy writes no program
    assert {(t.provenance.renderer, t.provenance.judge) for t in trajectories} == {("grey/1", "friend/1")}
    for trajectory in trajectories:
        trajectory.ledger.check()


async def test_a_killed_worker_is_replaced_by_one_with_the_current_weights(session: Session) -> None:
    await update(session, 2)
    [before] = await session.ports.rollouts.stats()
    playing = asyncio.create_task(session.ports.rollouts.rollout(task(3)))
    os.kill(before.pid, signal.SIGKILL)
    assert (await playing).outcome is Outcome.POLICY_FAILURE
    [after] = await session.ports.rollouts.stats()
    assert (after.version, after.finished) == (2, 1)
    assert after.pid != before.pid


async def test_a_render_lost_with_its_replica_is_done_by_the_next(session: Session) -> None:
    picture = await session.renderer.render(DIE_ONCE, [], seed=7)
    assert (session.root / "died").exists()
    assert session.images.get(picture) == png(7)


async def test_errors_of_a_tool_arrive_as_themselves(session: Session) -> None:
    episode = EpisodeContext(request=REQUEST)
    with pytest.raises(ToolArgumentError, match="^query refused$"):
        await session.tools["image_search"].call({"query": "refuse"}, episode)
    with pytest.raises(InfraFailure, match="^the library is down$"):
        await session.tools["image_search"].call({"query": "down"}, episode)


async def test_tool_and_judge_work_on_pictures_by_reference(session: Session) -> None:
    tool = session.tools[OneTool.name]
    assert (tool.description, tool.parameters) == (OneTool.description, OneTool.parameters)
    observation: Any = await tool.call({"query": "grey"}, EpisodeContext(request=REQUEST, seed=9))
    [hit] = observation.hits
    assert session.images.get(hit.image) == png(9)
    request = REQUEST.model_copy(update={"truth_image": hit.image})
    program = Program(gen_prompt="grey", reference_images=(ReferenceImage(img_id="IMG_001"),))
    verdict = await session.judge.judge(request, hit.image, program, [hit])
    assert verdict.judge == "friend/1"


async def test_the_learners_state_is_saved_and_restored(session: Session) -> None:
    folder = session.root / "checkpoint"
    folder.mkdir()
    before = await session.ports.learner.state_hash()
    await session.ports.learner.save(str(folder))
    await session.ports.learner.load(str(folder))
    assert await session.ports.learner.state_hash() == before


async def test_services_do_not_import_torch(session: Session) -> None:
    replicas = [p for p in session.head.actors() if p.name().startswith("ray::ServeReplica")]
    assert len(replicas) == 3
    for replica in replicas:
        assert not any("libtorch" in mapped.path for mapped in replica.memory_maps())
