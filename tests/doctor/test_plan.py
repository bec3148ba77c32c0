"""What a run asks for, counted before it starts, and whether nodes can hold it."""

from __future__ import annotations

import pytest

from genevolve_ray.cluster.services import _replicas
from genevolve_ray.config import ConfigError, load_config
from genevolve_ray.doctor.plan import make_plan, parse_nodes, print_plan


def plan(*overrides: str, nodes: tuple[str, ...] = ("8cpu",)):  # type: ignore[no-untyped-def]
    return make_plan(load_config("atlas", list(overrides)), parse_nodes(nodes))


def test_the_plan_adds_up() -> None:
    made = plan("cluster.rollout_workers=3", "cluster.rollout_cpus=2", "cluster.judge.replicas=2")
    lines = {line.part: (line.count, line.each["CPU"]) for line in made.lines}
    assert lines["rollout worker"] == (3, 2)
    assert lines["judge replica"] == (2, 0.1)
    assert made.total("CPU") == pytest.approx(3 * 2 + 0.3 + 2 * 0.1 + 2 * 0.1 + 0.05)
    assert made.fits


def test_a_process_larger_than_any_node_is_named() -> None:
    made = plan("cluster.rollout_cpus=16", nodes=("4x8cpu",))
    assert "no node can hold the rollout worker 0 (16 CPU)" in made.obstacle


def test_a_run_that_is_too_large_in_all_is_refused() -> None:
    assert "the run requests" in plan("cluster.rollout_workers=30", "cluster.rollout_cpus=1").obstacle


def test_replicas_under_load_are_counted_apart() -> None:
    made = plan("cluster.renderer.max_replicas=5")
    [line] = [line for line in made.lines if line.part == "renderer replica"]
    assert (line.count, line.more) == (1, 4)
    assert made.total("CPU", most=True) == pytest.approx(made.total("CPU") + 0.4)


def test_tensor_parallel_workers_need_their_gpus() -> None:
    made = plan(
        "engine.device=cuda", "engine.vllm.tensor_parallel_size=4", "cluster.rollout_gpus=1", nodes=("64cpu+8gpu",)
    )
    assert "engine.vllm.tensor_parallel_size=4" in made.obstacle


def test_an_engine_over_several_gpus_fits_a_node_that_holds_all_of_them() -> None:
    settings = ("engine.device=cuda", "engine.vllm.tensor_parallel_size=4", "cluster.rollout_gpus=4")
    made = plan(*settings, nodes=("64cpu+8gpu",))
    assert made.fits
    assert made.flow["engines"] == "each over 4 GPUs of one node, in processes of vLLM (executor mp)"
    assert "no node can hold the rollout worker 0" in plan(*settings, nodes=("2x32cpu+2gpu",)).obstacle


def test_gpus_beyond_those_of_an_engine_are_named() -> None:
    made = plan(
        "engine.device=cuda", "engine.vllm.tensor_parallel_size=2", "cluster.rollout_gpus=4", nodes=("64cpu+8gpu",)
    )
    assert "the other 2 that each reserves stay unused" in made.flow["engines"]
    assert "engines" not in plan().flow


def test_a_judge_over_several_gpus_needs_them_for_each_replica() -> None:
    model = "{model: /m, device: cuda, tensor_parallel_size: 2}"
    judge = f"judge={{type: local, config: {{backend: vllm, model: {model}}}}}"
    assert (
        "judge.config.model.tensor_parallel_size=2"
        in plan(judge, "cluster.judge.gpus=1", nodes=("9cpu+8gpu",)).obstacle
    )
    assert plan(judge, "cluster.judge.gpus=2", nodes=("9cpu+8gpu",)).fits


def test_the_way_of_the_weights_is_told_and_refused_where_it_cannot_be() -> None:
    assert plan().flow["weights"] == "as files, once to every node"
    made = plan("cluster.weights=gloo")
    assert made.fits
    assert "over gloo" in made.flow["weights"]
    assert "cluster.weights=nccl sends between GPUs" in plan("cluster.weights=nccl").obstacle


def test_the_flow_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan("loop.mode=async", "loop.max_staleness=2", "loop.max_running=96"))
    shown = capsys.readouterr().out
    assert "at most 2 versions old" in shown
    assert "at most 144 samples leased, 96 running concurrently" in shown
    assert "fits" in shown


@pytest.mark.parametrize(
    ("text", "count", "node"),
    [("8cpu", 1, (8, 0)), ("64cpu+8gpu", 1, (64, 8)), ("4x64cpu+8gpu", 4, (64, 8)), ("2X0.5CPU", 2, (0.5, 0))],
)
def test_nodes_are_read(text: str, count: int, node: tuple[float, float]) -> None:
    nodes = parse_nodes([text])
    assert len(nodes) == count
    assert (nodes[0]["CPU"], nodes[0]["GPU"]) == node


@pytest.mark.parametrize("text", ["", "8", "cpu", "xcpu", "0x8cpu", "8tpu", "-1cpu"])
def test_what_is_no_node_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"node '{text}'"):
        parse_nodes([text])


def test_replicas_have_bounds() -> None:
    with pytest.raises(ConfigError, match="max_replicas=1 is below replicas=2"):
        load_config("atlas", ["cluster.judge.replicas=2", "cluster.judge.max_replicas=1"])
    config = load_config("atlas", ["cluster.judge.max_replicas=3", "cluster.judge.max_ongoing=10"]).cluster.judge
    assert _replicas(config)["autoscaling_config"]["target_ongoing_requests"] == 5
    assert _replicas(load_config("atlas").cluster.judge) == {"num_replicas": 1}
