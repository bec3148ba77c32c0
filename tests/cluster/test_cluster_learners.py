"""The learner's ranks as one learner: every call reaches all, rank 0 answers, and a death is told from its aftermath."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from cluster_fakes import FakeHandle, FakeMethod, remote_error
from cluster_run import HERE, build_model, run_config
from head_node import Head
from ray.exceptions import ActorDiedError
from seeing_scene import Scene
from zoo import build

from genevolve_ray.cluster import learners
from genevolve_ray.cluster.learners import LearnerWorker, RayLearner
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.cluster.transports.device import TensorsPayload
from genevolve_ray.cluster.transports.host import FilesPayload
from genevolve_ray.cluster.workers import RolloutWorker
from genevolve_ray.evolution.inference import PolicySource
from genevolve_ray.evolution.inprocess import start_learner
from genevolve_ray.evolution.ports import LearnerLost
from genevolve_ray.evolution.weights import WeightFolders, remove_leftovers
from genevolve_ray.models.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from genevolve_ray.records.images import FilesystemImages, MemoryImages
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import Reward


@pytest.fixture
def _no_leftovers() -> Iterator[None]:
    """Remove what actors published that are started without a launch."""
    yield
    remove_leftovers()


@pytest.fixture
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: value)


def ranks(*outcomes: Any) -> RayLearner:
    return RayLearner(lambda: [FakeHandle(call=FakeMethod(outcome)) for outcome in outcomes])


@pytest.mark.usefixtures("_no_store")
async def test_every_rank_is_called_and_the_first_answers() -> None:
    learner = ranks("of rank 0", "")
    assert await learner.state_hash() == "of rank 0"
    assert [worker.call.calls for worker in learner.workers] == [1, 1]


@pytest.mark.usefixtures("_no_store")
async def test_what_the_learner_raises_arrives_as_itself() -> None:
    with pytest.raises(OSError, match="^no space$"):
        await ranks(remote_error(OSError("no space")), "fine").save("folder")


@pytest.mark.usefixtures("_no_store")
async def test_a_death_is_told_from_what_it_does_to_the_others() -> None:
    torn = remote_error(RuntimeError("Connection closed by peer"))
    with pytest.raises(LearnerLost, match="rank 1 of the learner died in 'state_hash'"):
        await ranks(torn, ActorDiedError(), torn).state_hash()
    with pytest.raises(LearnerLost, match="rank 0 of the learner died"):
        await ranks(ActorDiedError()).state_hash()


@pytest.mark.usefixtures("_no_store")
async def test_a_rank_that_hangs_does_not_hold_up_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        async def remote(self, *_: Any) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(learners, "_AFTERMATH_SECONDS", 0.05)
    learner = RayLearner(lambda: [FakeHandle(call=Hanging()), FakeHandle(call=FakeMethod(ActorDiedError()))])
    with pytest.raises(LearnerLost, match="rank 1"):
        await learner.save("folder")


@pytest.mark.usefixtures("_no_store")
async def test_a_lost_learner_is_created_anew_within_bounds() -> None:
    made, killed = [], []

    def create() -> list[Any]:
        # The second one is stillborn.
        start = FakeMethod(ActorDiedError() if len(made) == 1 else None)
        made.append(FakeHandle(call=FakeMethod(ActorDiedError()), start=start))
        return made[-1:]

    learner = RayLearner(create, kill=killed.append, max_restarts=3)
    with pytest.raises(LearnerLost):
        await learner.state_hash()
    await learner.restart()
    assert (len(made), killed) == (3, made[:2])
    await learner.restart()
    with pytest.raises(LearnerLost, match=r"too often \(cluster.max_restarts\)"):
        await learner.restart()


class Rank:
    """A rank that says what it was asked for; `gate` holds its steps back."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.gate = asyncio.Event()
        self.call, self.write = FakeHandle(remote=self._call), FakeHandle(remote=self._write)

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if method == "step":
            await self.gate.wait()
        return method

    async def _write(self, version: int, elsewhere: bool) -> Any:
        self.asked.append("write")
        return FilesPayload(f"v{version}", "node", {})


async def test_a_version_that_is_sent_is_written_on_demand_while_the_learner_holds_it() -> None:
    rank = Rank()
    learner = RayLearner(lambda: [rank], sends=True)
    weights = await learner.publish(1)
    assert (weights.version, weights.probe) == (1, "probe")
    tensors = weights.payload
    assert isinstance(tensors, TensorsPayload)
    assert rank.asked == ["probe"], "nothing is written until somebody asks"
    assert await asyncio.gather(tensors.files(), tensors.files()) == [FilesPayload("v1", "node", {})] * 2
    assert rank.asked == ["probe", "write"]


@pytest.mark.parametrize("change", ["step", "load", "restart"])
async def test_a_version_that_the_learner_has_left_behind_is_not_written(change: str) -> None:
    rank = Rank()
    rank.start = FakeMethod(None)
    learner = RayLearner(lambda: [rank], sends=True, max_restarts=1)
    tensors: Any = (await learner.publish(1)).payload
    changes = {"step": lambda: learner.step([], 2), "load": lambda: learner.load("c"), "restart": learner.restart}
    changing = asyncio.create_task(changes[change]())
    await asyncio.wait([changing], timeout=0)
    # Asked for while the learner is still at it: what it will hold then is another version.
    asking = asyncio.create_task(tensors.files())
    rank.gate.set()
    await changing
    assert await asking is None
    assert "write" not in rank.asked
    again: Any = (await learner.publish(2)).payload
    assert await again.files() == FilesPayload("v2", "node", {})


def group(step: int) -> Group:
    """Four attempts of different lengths at one request."""
    trajectories = []
    for sample in range(4):
        ledger = TokenLedger()
        ledger.append_context([5, 6, 7], SpanKind.PROMPT)
        tokens = list(range(100, 104 + sample))
        ledger.append_policy(tokens, [-2.0] * len(tokens), [0] * len(tokens), SpanKind.ANSWER)
        trajectories.append(
            Trajectory(
                SampleKey(step=step, request_id="r", sample=sample),
                "draw",
                ledger,
                Provenance(profile="atlas", engine="fake"),
                outcome=Outcome.SCORED,
                reward=Reward(total=sample / 4, image=0.5, text=0.5),
            )
        )
    return Group("r", step, trajectories)


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory, shared_cluster: Head) -> Iterator[Callable[[type], Any]]:
    """Make actor classes of a Ray session that the tests share."""
    config = run_config(tmp_path_factory.mktemp("session"), f"cluster.address={shared_cluster.address}")
    path = os.pathsep.join([str(HERE), str(Path(__file__).parents[2])])
    options: dict[str, Any] = {"num_cpus": 0.1, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    with ray_session(config.cluster, namespace="ranks"):
        yield lambda kind: ray.remote(kind).options(**options)


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_no_leftovers")
async def test_two_ranks_on_ray_learn_what_one_process_learns(actors: Callable[[type], Any], tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    config = run_config(tmp_path, "cluster.learner_ranks=2", "cluster.learner_timeout=60")
    alone = start_learner(config, Path(model), WeightFolders(tmp_path / "alone"), MemoryImages())
    expected = [await alone.step([group(1)], 1), await alone.step([group(2)], 2)]
    kind = actors(LearnerWorker)
    images = str(tmp_path / "images")
    learner = RayLearner(lambda: [kind.remote(config, model, images, rank) for rank in range(2)], kill=ray.kill)
    await learner.start()
    metrics = [await learner.step([group(1)], 1)]
    await learner.accumulate([group(2)], 2)
    metrics.append(await learner.step([group(2)], 2, parts=[["r"]]))
    probe = (await learner.publish(2)).probe
    await learner.save(str(tmp_path / "checkpoint"))
    digest = await learner.state_hash()
    pid = ray.get(learner.workers[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LearnerLost, match="rank 1 of the learner died in 'step'"):
        await learner.step([group(3)], 3)
    learner.end()
    for mine, other in zip(metrics, expected, strict=True):
        for name in ("loss", "grad_norm", "entropy", "parity_max"):
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    assert probe.logprobs == pytest.approx((await alone.publish(2)).probe.logprobs, abs=1e-5)
    await alone.load(str(tmp_path / "checkpoint"))
    assert await alone.state_hash() == digest


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_no_leftovers")
async def test_an_adapter_crosses_the_object_store_and_is_merged_on_the_other_side(
    actors: Callable[[type], Any], tmp_path: Path
) -> None:
    """Two ranks of a learner publish; a rollout worker that is told of another node has the bytes from the store alone."""
    model = build_model(tmp_path / "model")
    lora = "learner.lora={rank: 2, alpha: 4}"
    config = run_config(tmp_path, "cluster.learner_ranks=2", "cluster.learner_timeout=60", "learner.lr=1e-2", lora)
    kind = actors(LearnerWorker)
    learner = RayLearner(
        lambda: [kind.remote(config, model, str(tmp_path / "images"), rank) for rank in range(2)],
        kill=ray.kill,
        elsewhere=lambda: True,
    )
    source = PolicySource(identity="tiny", model=Path(model))
    worker = actors(RolloutWorker).remote(config, source, str(tmp_path / "images"))
    await asyncio.gather(learner.start(), worker.start.remote())
    await learner.step([group(1)], 1)
    weights = await learner.publish(1)
    files = weights.payload
    assert isinstance(files, FilesPayload) and len(files.contents) == 2
    folder = Path(files.path)
    assert files.digests.keys() == {ADAPTER_CONFIG_FILE, ADAPTER_FILE} == {p.name for p in folder.iterdir()}
    shutil.rmtree(folder)
    assert await worker.update.remote(replace(weights, payload=replace(files, node="another"))) < 1e-5
    assert (await worker.stats.remote()).version == 1
    await worker.stop.remote()
    learner.end()


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_no_leftovers")
async def test_two_ranks_on_ray_read_the_pictures_of_the_run(actors: Callable[[type], Any], tmp_path: Path) -> None:
    model = build("qwen3-vl", tmp_path / "model")
    scene = Scene(model, FilesystemImages(str(tmp_path / "images")))
    profile = "profile={extends: atlas, observations: {images: true}}"
    quiet = ("experience.enabled=false", "learner.ved.coefficient=0")
    config = run_config(tmp_path, profile, *quiet, "cluster.learner_ranks=2", "cluster.learner_timeout=60")
    alone = start_learner(config, model, WeightFolders(tmp_path / "alone"), scene.images)
    expected = await alone.step([scene.group()], 1)
    kind = actors(LearnerWorker)
    learner = RayLearner(
        lambda: [kind.remote(config, str(model), str(tmp_path / "images"), rank) for rank in range(2)], kill=ray.kill
    )
    await learner.start()
    metrics = await learner.step([scene.group()], 1)
    probe = (await learner.publish(1)).probe
    learner.end()
    for name in ("loss", "grad_norm", "parity_images", "parity_max"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    assert len(probe.media) == 1
    assert probe.logprobs == pytest.approx((await alone.publish(1)).probe.logprobs, abs=1e-5)
