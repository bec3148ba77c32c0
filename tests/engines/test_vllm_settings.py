"""vLLM's arguments by settings and device, and what vLLM makes of them in a placement group."""

from __future__ import annotations

import pytest

from genevolve_ray.cluster.workers import worker_environment
from genevolve_ray.engines.config import EngineConfig, VllmConfig
from genevolve_ray.engines.vllm_settings import (
    batching,
    executor,
    head,
    placement,
    quantization,
    vllm_environment,
    waiting_threads,
)


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


def test_passes_of_a_gpu_are_short_and_of_a_cpu_hold_the_longest_prompt() -> None:
    assert batching(VllmConfig(), "cuda", 36_864, 64) == {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 8192,
    }
    assert batching(VllmConfig(max_batched_tokens=100), "cuda", 36_864, 300)["max_num_batched_tokens"] == 300
    on_cpu = batching(VllmConfig(), "cpu", 6000, 64)
    assert on_cpu == {"enable_chunked_prefill": False, "max_num_batched_tokens": 6000, "block_size": 32}
    assert batching(VllmConfig(), "cpu", 96, 64)["max_num_batched_tokens"] == 4096


def test_a_pass_that_cannot_hold_a_prompt_is_refused_on_a_cpu() -> None:
    assert batching(VllmConfig(max_batched_tokens=512), "cpu", 96, 64)["max_num_batched_tokens"] == 512
    with pytest.raises(ValueError, match=r"max_batched_tokens=512.*max_model_len=6000"):
        batching(VllmConfig(max_batched_tokens=512), "cpu", 6000, 64)


def test_blocks_of_the_cache_have_the_size_that_is_set() -> None:
    assert batching(VllmConfig(block_size=64), "cpu", 96, 4)["block_size"] == 64
    assert batching(VllmConfig(block_size=64), "cuda", 96, 4)["block_size"] == 64
    with pytest.raises(ValueError, match="multiple of 16"):
        VllmConfig(block_size=40)


def test_idle_threads_leave_a_cpu_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert waiting_threads("cpu") == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "7"}
    assert waiting_threads("cuda") == {}
    assert vllm_environment()["OMP_WAIT_POLICY"] == "passive"
    for kind in ("vllm", "transformers"):
        assert worker_environment(EngineConfig(kind=kind))["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.e2e
def test_vllm_does_not_choose_its_ray_executor_in_a_placement_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import ParallelConfig

    # As in a rollout worker: an actor in a placement group, one of whose bundles holds all GPUs of the engine.
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: [{"GPU": 2.0}])
    assert ParallelConfig(tensor_parallel_size=2).distributed_executor_backend == "ray"
    ours = ParallelConfig(tensor_parallel_size=2, **executor(2, "cuda"))  # type: ignore[arg-type]
    assert ours.distributed_executor_backend == "mp"


def test_logits_stay_in_float32_by_choice() -> None:
    assert head(VllmConfig()) == {}
    assert head(VllmConfig(fp32_head=True)) == {"head_dtype": "float32"}


def test_weights_are_quantized_by_choice_and_in_16_bits() -> None:
    assert quantization(VllmConfig()) == {}
    assert quantization(VllmConfig(quantization="fp8")) == {"quantization": "fp8_per_channel"}
    fp8 = VllmConfig(quantization="fp8")
    assert EngineConfig(dtype="bfloat16", vllm=fp8).vllm.quantization == "fp8"
    with pytest.raises(
        ValueError, match=r"quantization=fp8 needs .* dtype=bfloat16 .*, got kind=vllm and dtype=float32"
    ):
        EngineConfig(vllm=fp8)
    with pytest.raises(ValueError, match="got kind=transformers and dtype=bfloat16"):
        EngineConfig(kind="transformers", dtype="bfloat16", vllm=fp8)


@pytest.mark.e2e
def test_vllm_knows_the_quantization() -> None:
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES

    assert quantization(VllmConfig(quantization="fp8"))["quantization"] in ONLINE_QUANT_SHORTHAND_NAMES
