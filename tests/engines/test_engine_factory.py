"""Engines by name, and settings that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file
from tiny_qwen3 import BANNED, TinyModels

from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.factory import create_engine
from genevolve_ray.engines.vllm_settings import own_threads, vllm_environment


async def test_the_reference_engine_by_name(tiny_models: TinyModels) -> None:
    config = EngineConfig(kind="transformers", max_model_len=32)
    engine = await create_engine(config, tiny_models.first, BANNED)
    assert (engine.name, engine.version) == ("transformers", 0)
    await engine.close()


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
async def test_a_missing_model_folder_is_named(kind: str) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/model"):
        await create_engine(EngineConfig(kind=kind), "/no/such/model")


async def test_small_heads_are_refused_before_vllm_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"head_dim": 16}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="head_dim is 16"):
        await create_engine(EngineConfig(kind="vllm"), tmp_path)


def test_a_deterministic_vllm_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind is 'vllm'"):
        EngineConfig.model_validate({"kind": "vllm", "transformers": {"deterministic": True}})


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_tokens_total"):
        EngineConfig.model_validate({"max_tokens_total": 3})


def test_the_cpu_environment_binds_no_cores() -> None:
    assert vllm_environment(threads=2)["OMP_NUM_THREADS"] == "2"
    assert vllm_environment()["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "TORCHDYNAMO_DISABLE" not in vllm_environment(device="cuda")


def test_an_engine_on_a_cpu_compiles_unless_it_is_eager() -> None:
    found = [vllm_environment(eager=eager)["TORCHDYNAMO_DISABLE"] for eager in (True, False)]
    assert found == ["1", "0"]


@pytest.mark.parametrize(("rows", "device", "threads"), [(999, "cpu", 1), (1000, "cpu", 2), (1000, "cuda", 1)])
def test_a_large_model_on_a_cpu_has_two_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, device: str, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    save_file({"a": np.zeros((rows, 9_999), np.int8), "b": np.zeros(1000, np.int8)}, tmp_path / "model.safetensors")
    assert own_threads(tmp_path, device) == threads


def test_one_core_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    save_file({"a": np.zeros((1000, 10_000), np.int8)}, tmp_path / "model.safetensors")
    assert own_threads(tmp_path, "cpu") == 1
