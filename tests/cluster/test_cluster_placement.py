"""What a run asks for is compared with what exists, and the message says both."""

from __future__ import annotations

import sys

import pytest
from cluster_fakes import FakeHandle, FakeMethod

from genevolve_ray.cluster.errors import PlacementError
from genevolve_ray.cluster.placement import (
    Demand,
    check_devices,
    check_environment,
    check_fits,
    check_shared,
    gang_demands,
    service_demands,
)
from genevolve_ray.config import load_config
from genevolve_ray.errors import UserFault


def test_the_embedded_preset_fits_one_core() -> None:
    config = load_config("atlas")
    check_fits([*gang_demands(config), *service_demands(config)], [{"CPU": 1.0}], {"CPU": 1.0})


def test_a_part_too_big_for_any_node_is_named_with_the_nodes() -> None:
    demands = [Demand("learner", {"CPU": 1.0, "GPU": 2.0})]
    with pytest.raises(
        PlacementError, match=r"learner \(1 CPU, 2 GPU\): the cluster has 2 nodes with 8 CPU, 1 GPU \| 4 CPU"
    ):
        check_fits(demands, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}], {"CPU": 12.0, "GPU": 1.0})


def test_parts_that_fit_one_by_one_and_not_together_are_refused() -> None:
    demands = [Demand(f"rollout worker {i}", {"CPU": 2.0}) for i in range(3)]
    with pytest.raises(PlacementError, match="requests 6 CPU in total, and 5 CPU is free on 2 nodes"):
        check_fits(demands, [{"CPU": 4.0}, {"CPU": 4.0}], {"CPU": 5.0})


def test_workers_and_replicas_are_counted_one_by_one() -> None:
    config = load_config("atlas", ["cluster.rollout_workers=3", "cluster.renderer.replicas=2"])
    assert [d.part for d in gang_demands(config)] == ["learner", *(f"rollout worker {i}" for i in range(3))]
    assert [d.part for d in service_demands(config)] == [
        "tools replica 0",
        "renderer replica 0",
        "renderer replica 1",
        "judge replica 0",
        "experience memory",
    ]


def test_ranks_of_the_learner_come_before_the_workers() -> None:
    config = load_config("atlas", ["cluster.learner_ranks=2", "cluster.learner_gpus=1"])
    assert [str(d) for d in gang_demands(config)] == [
        "learner rank 0 (0.3 CPU, 1 GPU)",
        "learner rank 1 (0.3 CPU, 1 GPU)",
        "rollout worker 0 (0.35 CPU)",
    ]


def test_ranks_that_share_micro_batches_divide_all_ranks() -> None:
    config = load_config("atlas", ["cluster.learner_ranks=4", "learner.context_parallel=2"])
    check_devices(config)
    with pytest.raises(PlacementError, match="learner.context_parallel=3 does not divide cluster.learner_ranks=4"):
        check_devices(load_config("atlas", ["cluster.learner_ranks=4", "learner.context_parallel=3"]))


@pytest.mark.parametrize(
    ("key", "reservation"),
    [("engine.device", "cluster.rollout_gpus"), ("learner.device", "cluster.learner_gpus")],
)
def test_computing_on_a_gpu_without_reserving_one_is_refused(key: str, reservation: str) -> None:
    with pytest.raises(PlacementError, match=f"{key}=cuda computes on a GPU, but {reservation}=0"):
        check_devices(load_config("atlas", [f"{key}=cuda"]))
    check_devices(load_config("atlas", [f"{key}=cuda", f"{reservation}=1"]))


GPUS = ("engine.device=cuda", "learner.device=cuda", "cluster.learner_gpus=1", "cluster.rollout_gpus=1")
SHARED = (*GPUS[:2], "cluster.learner_gpus=0.5", "cluster.rollout_gpus=0.5")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("nccl",), "weights=nccl sends between GPUs, got engine.device=cpu and learner.device=cpu: use gloo"),
        (("gloo", *GPUS), "weights=gloo sends between CPUs, got engine.device=cuda and learner.device=cuda"),
        (("gloo", "engine.kind=transformers"), "weights=gloo needs engine.kind=vllm, got transformers"),
        (("gloo", "rehearsal={}"), "weights=gloo sends a policy's weights, and a rehearsal has none"),
        (("gloo", "gateway.port=8800"), "weights=gloo writes no files, but gateway.port=8800"),
        (("nccl", *SHARED), "weights=nccl needs whole GPUs for each, cluster.learner_gpus=0.5"),
        (("ipc", *GPUS), "weights=ipc is for one GPU .* cluster.learner_gpus=1 and cluster.rollout_gpus=1"),
        (("ipc", *SHARED, "cluster.rollout_workers=2"), "cluster.rollout_workers=2 are more: use nccl"),
        (("ipc", *GPUS, "cluster.learner_ranks=2"), "weights=ipc is for one GPU .* cluster.learner_ranks=2"),
    ],
)
def test_a_way_that_weights_cannot_go_is_refused(overrides: tuple[str, ...], named: str) -> None:
    way, *others = overrides
    with pytest.raises(UserFault, match=named):
        check_devices(load_config("atlas", [f"cluster.weights={way}", *others]))


@pytest.mark.parametrize("overrides", [("host",), ("gloo",), ("nccl", *GPUS), ("ipc", *SHARED)])
def test_a_way_that_weights_can_go_is_not(overrides: tuple[str, ...]) -> None:
    way, *others = overrides
    check_devices(load_config("atlas", [f"cluster.weights={way}", *others]))


@pytest.mark.parametrize(
    ("overrides", "way"),
    [
        ((), "host"),
        (GPUS, "nccl"),
        ((*GPUS, "cluster.learner_ranks=2", "cluster.rollout_workers=4"), "nccl"),
        ((*GPUS, "cluster.rollout_gpus=2", "engine.vllm.tensor_parallel_size=2"), "nccl"),
        (SHARED, "ipc"),
        ((*GPUS[:2], "cluster.learner_gpus=0.4", "cluster.rollout_gpus=0.3", "cluster.rollout_workers=2"), "ipc"),
        ((*SHARED, "cluster.rollout_workers=2"), "host"),
        ((*SHARED, "cluster.learner_gpus=1"), "host"),
        ((*GPUS[:2], "cluster.rollout_gpus=1"), "host"),
        ((*GPUS, "engine.kind=transformers"), "host"),
        ((*GPUS, "rehearsal={}"), "host"),
        ((*GPUS, "learner.lora={}"), "host"),
        ((*GPUS, "learner.lora={publish: merged}"), "nccl"),
        ((*GPUS, "gateway.port=8800"), "host"),
        ((*GPUS, "cluster.weights=host"), "host"),
    ],
)
def test_the_way_of_weights_follows_from_the_devices_where_none_is_given(overrides: tuple[str, ...], way: str) -> None:
    config = load_config("atlas", overrides)
    assert config.cluster.weights == way
    # As a resolved configuration is read again.
    assert type(config).model_validate(config.model_dump()).cluster.weights == way


def test_a_way_that_follows_from_the_devices_can_be_gone() -> None:
    for overrides in (GPUS, SHARED):
        check_devices(load_config("atlas", overrides))


async def test_actors_on_different_gpus_cannot_share_handles() -> None:
    def actor(place: str) -> FakeHandle:
        return FakeHandle(__ray_call__=FakeMethod(place))

    shared = "on GPU 0 of node abc"
    await check_shared([actor(shared)], [actor(shared)])
    with pytest.raises(PlacementError, match="got learner rank 0 on GPU 0 of node abc, worker 0 on GPU 1 of node abc"):
        await check_shared([actor(shared)], [actor("on GPU 1 of node abc")])


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (
            {"py_executable": "/nowhere/bin/python"},
            "runtime_env.py_executable: no such program: '/nowhere/bin/python'",
        ),
        ({"pip": ["a"], "uv": ["b"]}, "runtime_env: The 'pip' field, 'uv' field, and 'conda' field"),
        ({"env_vars": {"A": 1}}, "runtime_env: .*env_vars"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(environment: dict[str, object], named: str) -> None:
    with pytest.raises(PlacementError, match=f"renderer.{named}"):
        check_environment("renderer", environment, local=True)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"py_executable": sys.executable, "env_vars": {"PYTHONPATH": "/x"}},
        {"pip": {"packages": ["acme-paint==1.2"], "pip_check": False}, "config": {"setup_timeout_seconds": 1200}},
        {"uv": {"packages": ["acme-paint==1.2"]}},
        {"conda": "acme"},
    ],
)
def test_environments_that_ray_knows_are_taken(environment: dict[str, object]) -> None:
    check_environment("renderer", environment, local=True)


def test_an_interpreter_on_other_machines_is_theirs_to_find() -> None:
    check_environment("renderer", {"py_executable": "/nowhere/bin/python"}, local=False)
