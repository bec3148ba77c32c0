"""One launch and one worker for runs and inference jobs: which parts are planned, and what a worker does with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.null_parts import Requests
from genevolve_ray.cluster import workers
from genevolve_ray.cluster.launch import Launch, wanted_services
from genevolve_ray.cluster.placement import service_demands, worker_demands
from genevolve_ray.cluster.services import GradeReplica, JudgeReplica
from genevolve_ray.cluster.workers import RolloutWorker, ServiceHandle, local_toolbox
from genevolve_ray.config import ConfigError, RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.openai import OpenAIPolicyConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.inference import PolicySource, Wanted
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.trajectory import Outcome, SampleKey

MODEL = PolicySource(identity="atlas", model=model_folder("genevolve_ray.atlas:cold_start"))
ENDPOINT = PolicySource(
    identity="openai:m", endpoint=OpenAIPolicyConfig.model_validate({"url": "http://127.0.0.1:9/v1", "model": "m"})
)
TRAINING = Wanted(policy=MODEL, render=True, judge=True, train=True)


def config_of(*overrides: str) -> RunConfig:
    return load_config(
        "atlas",
        [
            "rehearsal={turn_seconds: 0.0, tool_calls: 1}",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            *(f"{role}={{type: 'benchmarks.null_parts:{role.title()}'}}" for role in ("tools", "renderer", "judge")),
            *overrides,
        ],
    )


@pytest.mark.parametrize(
    ("wanted", "roles"),
    [
        (Wanted(policy=MODEL), ["tools"]),
        (Wanted(render=True), ["renderer"]),
        (Wanted(judge=True), ["judge"]),
        (TRAINING, ["tools", "renderer", "judge"]),
    ],
)
def test_only_services_that_are_wanted_are_planned(wanted: Wanted, roles: Sequence[str]) -> None:
    assert [service.role for service in wanted_services(config_of(), wanted, "run")] == roles


def test_a_judge_of_another_scale_grades() -> None:
    [grading] = wanted_services(config_of(), Wanted(grade=True), "run")
    [judging] = wanted_services(config_of(), Wanted(judge=True), "run")
    assert (grading.replica, judging.replica) == (GradeReplica, JudgeReplica)


def test_each_further_judge_is_a_service_of_a_run_that_trains_with_limits_of_its_own() -> None:
    spec = "{type: 'benchmarks.null_parts:Judge'}"
    config = config_of(
        f"judges={{fast: {spec}, slow: {spec}}}", "cluster.judges={slow: {replicas: 2, timeout: 900, cpus: 0.2}}"
    )
    services = {s.role: s for s in wanted_services(config, TRAINING, "run")}
    assert list(services) == ["tools", "renderer", "judge", "judges.fast", "judges.slow"]
    slow = services["judges.slow"]
    assert (slow.name, slow.replica, slow.config.timeout) == ("run-judge-slow", JudgeReplica, 900)
    assert services["judges.fast"].config.timeout == services["judge"].config.timeout
    assert [s.role for s in wanted_services(config, Wanted(judge=True), "run")] == ["judge"]
    asked = {demand.part: demand.resources["CPU"] for demand in service_demands(config)}
    assert {part: asked[part] for part in asked if part.startswith("judges.")} == {
        "judges.fast replica 0": 0.1, "judges.slow replica 0": 0.2, "judges.slow replica 1": 0.2
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"cluster\.judges\.slow: judges has no entries"):
        config_of("cluster.judges={slow: {replicas: 2}}")


def test_workers_without_an_engine_reserve_no_gpu() -> None:
    config = config_of("cluster.rollout_workers=2", "cluster.rollout_gpus=1")
    assert [demand.resources["GPU"] for demand in worker_demands(config)] == [1, 1]
    assert all("GPU" not in demand.resources for demand in worker_demands(config, engines=False))


def test_services_ask_for_what_their_role_needs() -> None:
    config = load_config("atlas", ["experience.enabled=true"])
    assert [demand.part for demand in service_demands(config, ["judge"])] == ["judge replica 0"]
    assert [demand.part for demand in service_demands(config, ["experience"])] == ["experience memory"]


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (Wanted(render=True), ["renderer replica 0"]),
        (Wanted(policy=MODEL), ["rollout worker 0", "tools replica 0"]),
        (TRAINING, ["learner", "rollout worker 0", "tools replica 0", "renderer replica 0", "judge replica 0"]),
    ],
)
def test_the_check_covers_exactly_the_wanted_parts(
    wanted: Wanted, asked: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from genevolve_ray.cluster import launch

    found: list[Any] = []
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(launch, "check_fits", lambda demands, *_: found.extend(demands))
    Launch(config_of(), wanted, "run", "images").check()
    assert [demand.part for demand in found] == asked


class Here:
    """A Serve handle whose replica is an object of this process."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._replica, name))


@asynccontextmanager
async def connected(
    source: PolicySource, folder: Path, monkeypatch: pytest.MonkeyPatch, *, scores: bool, settings: Sequence[str] = ()
) -> AsyncIterator[RolloutWorker]:
    """A worker in this process that has met services in this process."""
    monkeypatch.setattr(workers, "forget_weights", lambda: None)
    config = config_of(*settings)
    met = {
        service.role: ServiceHandle(service, Here(service.replica(service.spec, str(folder))))
        for service in wanted_services(config, TRAINING, "run")
    }
    worker = RolloutWorker(config, source, str(folder))
    await worker.start()
    judges = {role: handle for role, handle in met.items() if role in config.judge_specs}
    scoring = ({0: met["renderer"]}, judges) if scores else ()
    await worker.connect(met["tools"], *scoring)
    yield worker
    await worker.stop()


def task(folder: Path) -> RolloutTask:
    request = Requests(Config(), FilesystemImages(str(folder))).train(0)
    key = SampleKey(step=1, request_id=request.id, sample=0)
    return RolloutTask(request=request, key=key, seed=1, render_seed=0, sampling=SamplingParams())


async def test_a_worker_that_knows_a_judge_scores_what_it_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(MODEL, tmp_path, monkeypatch, scores=True) as worker:
        trajectory = await worker.rollout(task(tmp_path))
        assert trajectory.outcome is Outcome.SCORED, trajectory.reason
        assert trajectory.provenance.judge
        assert (await worker.stats()).finished == 1


async def test_a_worker_asks_every_judge_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        "judges={second: {type: 'benchmarks.null_parts:Judge'}}",
        "reward.components={judge.kscore: 1.0, second.sufficiency: 0.5}",
    ]
    async with connected(MODEL, tmp_path, monkeypatch, scores=True, settings=settings) as worker:
        trajectory = await worker.rollout(task(tmp_path))
        assert trajectory.outcome is Outcome.SCORED, trajectory.reason
        assert trajectory.reward is not None and trajectory.reward.parts["second.sufficiency"] == 1.0
        assert list(trajectory.verdicts) == ["second"]


async def test_a_worker_holds_local_tools_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("the service was called")

    monkeypatch.setattr("genevolve_ray.cluster.services.ToolReplica.call", never)
    monkeypatch.setattr("benchmarks.null_parts.Tools.local", True, raising=False)
    async with connected(MODEL, tmp_path, monkeypatch, scores=True) as worker:
        trajectory = await worker.rollout(task(tmp_path))
        assert trajectory.outcome is Outcome.SCORED, trajectory.reason
        assert trajectory.tool_calls


async def test_a_worker_closes_the_tools_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    async def aclose(toolbox: Any) -> None:
        closed.append(type(toolbox).__name__)

    monkeypatch.setattr("benchmarks.null_parts.Tools.local", True, raising=False)
    monkeypatch.setattr("benchmarks.null_parts.Tools.aclose", aclose, raising=False)
    async with connected(MODEL, tmp_path, monkeypatch, scores=False):
        assert not closed
    assert closed == ["Tools"]


def test_tools_with_an_environment_stay_in_their_service(tmp_path: Path) -> None:
    images = FilesystemImages(str(tmp_path))
    atlas = config_of("tools={type: atlas}")
    assert local_toolbox(atlas, images).tools.keys() == {"search", "image_search", "query_knowledge"}
    assert local_toolbox(config_of("tools={type: atlas, runtime_env: {env_vars: {A: '1'}}}"), images) is None
    assert local_toolbox(config_of(), images) is None


async def test_a_worker_without_a_judge_leaves_programs_to_be_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(MODEL, tmp_path, monkeypatch, scores=False) as worker:
        trajectory = await worker.rollout(task(tmp_path))
        assert trajectory.outcome is Outcome.PENDING
        assert trajectory.program is not None
        assert trajectory.rendered is None


async def test_a_worker_of_an_endpoint_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(ENDPOINT, tmp_path, monkeypatch, scores=False) as worker:
        assert (await worker.stats()).version == -1
