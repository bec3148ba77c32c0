"""vLLM's arguments by settings and device, and what vLLM makes of them in a placement group."""

from __future__ import annotations

import pytest

from genevolve_ray.engines.config import EngineConfig, VllmConfig
from genevolve_ray.engines.vllm_settings import executor, placement


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_sharded_engine_runs_in_processes_of_vllm(device: str) -> None:
    assert placement(VllmConfig(tensor_parallel_size=2), device)["distributed_executor_backend"] == "mp"


def test_an_engine_of_one_process_needs_no_other_on_a_cpu() -> None:
    assert executor(1, "cpu") == {"distributed_executor_backend": "uni"}
    assert executor(1, "cuda") == {}


def test_a_gpu_has_its_share_of_memory_and_a_cache_of_given_size() -> None:
    assert placement(VllmConfig(kv_cache_mib=3), "cuda") == {
        "kv_cache_memory_bytes": 3 << 20,
        "gpu_memory_utilization": 0.9,
    }
    assert "kv_cache_memory_bytes" not in placement(EngineConfig(device="cuda").vllm, "cuda")


@pytest.mark.e2e
def test_vllm_does_not_choose_its_ray_executor_in_a_placement_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import ParallelConfig

    # As in a rollout worker: an actor in a placement group, one of whose bundles holds all GPUs of the engine.
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: [{"GPU": 2.0}])
    assert ParallelConfig(tensor_parallel_size=2).distributed_executor_backend == "ray"
    ours = ParallelConfig(tensor_parallel_size=2, **executor(2, "cuda"))  # type: ignore[arg-type]
    assert ours.distributed_executor_backend == "mp"
