"""Sleep of vLLM between the last rollout and the next update: the order of its calls, and one on a CPU that only pauses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_vllm_transfer import Trainer
from tiny_qwen3 import TinyModels

from genevolve_ray.engines import vllm
from genevolve_ray.engines.config import EngineConfig, VllmConfig
from genevolve_ray.engines.factory import let_sleep
from genevolve_ray.engines.null import NullEngine
from genevolve_ray.engines.protocol import Probe, SamplingParams, WeightUpdateError
from genevolve_ray.engines.vllm import VllmEngine
from genevolve_ray.engines.vllm_settings import placement

SHARED = pytest.mark.asyncio(loop_scope="session")


class FakeLlm:
    """vLLM's engine, which notes what it is called to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = ""
        self.renderer = SimpleNamespace(clear_mm_cache_async=self._nothing)

    async def _nothing(self) -> None:
        pass

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(f"sleep {level} {mode}")

    async def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {','.join(tags)}")
        if self.broken in tags:
            raise RuntimeError("CUDA error: out of memory")

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.calls.append("pause")

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def update_weight_version(self, version: str) -> None:
        pass

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append(method)
        if method == self.broken:
            raise RuntimeError("out of memory")
        report = {"arrived": {}, "missing": [], "rows": {}, "untraced": []}
        return [report if method == "compare_load" else 0.5]


@pytest.fixture
def llm() -> FakeLlm:
    return FakeLlm()


@pytest.fixture
def sleeper(llm: FakeLlm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VllmEngine:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    engine = VllmEngine(llm, 64, str(tmp_path))  # type: ignore[arg-type]

    async def score(token_ids: Any, media: Any = ()) -> list[float]:
        llm.calls.append("probe")
        return [-0.5] * (len(token_ids) - 1)

    monkeypatch.setattr(vllm, "check_weights", lambda folder, base: None)
    monkeypatch.setattr(vllm, "merged_into", lambda folder, base: "")
    monkeypatch.setattr(engine, "_score", score)
    return engine


PROBE = Probe(token_ids=(1, 2), logprobs=(-0.5,))


async def test_an_engine_wakes_in_two_parts_around_the_load_and_is_probed_after_it(
    sleeper: VllmEngine, llm: FakeLlm
) -> None:
    await let_sleep(sleeper)
    await sleeper.update("v1", 1, PROBE)
    assert llm.calls == [
        "sleep 2 keep",
        "wake weights",
        "pause",
        "load_folder",
        "wake kv_cache",
        "resume",
        "compare_load",
        "probe",
    ]


async def test_an_engine_that_is_awake_is_not_woken(sleeper: VllmEngine, llm: FakeLlm) -> None:
    await sleeper.update("v1", 1, PROBE)
    assert llm.calls == ["pause", "load_folder", "resume", "compare_load", "probe"]


async def test_an_engine_falls_asleep_once(sleeper: VllmEngine, llm: FakeLlm) -> None:
    await sleeper.sleep()
    await sleeper.sleep()
    assert llm.calls == ["sleep 2 keep"]
    await sleeper.update("v1", 1, PROBE)
    await sleeper.sleep()
    assert llm.calls.count("sleep 2 keep") == 2


async def test_requests_fail_after_a_load_that_failed_and_do_not_hang(sleeper: VllmEngine, llm: FakeLlm) -> None:
    await sleeper.sleep()
    llm.broken = "load_folder"
    with pytest.raises(RuntimeError, match="out of memory"):
        await sleeper.update("v1", 1, PROBE)
    assert llm.calls[-2:] == ["wake kv_cache", "resume"]
    with pytest.raises(WeightUpdateError, match="did not complete"):
        await sleeper._wait_verified()


@pytest.mark.e2e
@pytest.mark.parametrize("part", ["weights", "kv_cache"])
async def test_an_engine_that_gets_no_memory_says_what_to_change(sleeper: VllmEngine, llm: FakeLlm, part: str) -> None:
    await sleeper.sleep()
    llm.broken = part
    with pytest.raises(WeightUpdateError, match=f"no memory for {part}: .*out of memory; lower engine.vllm.gpu_memory"):
        await sleeper.update("v1", 1, PROBE)
    with pytest.raises(WeightUpdateError, match="no memory"):
        await sleeper._wait_verified()


async def test_other_engines_keep_their_memory() -> None:
    await let_sleep(NullEngine(None, turn_seconds=0, tool_calls=1))


def test_vllm_is_asked_for_sleep_only_on_a_gpu() -> None:
    assert placement(VllmConfig(sleep=True), "cuda")["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in placement(VllmConfig(sleep=True), "cpu")
    assert "enable_sleep_mode" not in placement(VllmConfig(), "cuda")


def test_sleep_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"sleep=true frees the cache that vllm\.keep_cache=true would keep"):
        VllmConfig(sleep=True, keep_cache=True)
    with pytest.raises(ValueError, match=r"vllm\.sleep=true needs kind=vllm, got transformers"):
        EngineConfig(kind="transformers", vllm=VllmConfig(sleep=True))


@pytest.mark.e2e
@SHARED
@pytest.mark.timeout(600)
async def test_a_request_to_a_sleeping_engine_is_answered_by_the_next_version(
    engine: VllmEngine, tiny_models: TinyModels
) -> None:
    trainer = Trainer(engine, asyncio.get_running_loop())
    source = trainer.source(tiny_models.second)
    for way in ("folder", "transfer"):
        await engine.sleep()
        early = asyncio.create_task(engine.generate((11, 45), SamplingParams(max_tokens=3), way))
        await asyncio.wait([early], timeout=0.05)
        assert not early.done()
        version = engine.version + 1
        await (engine.update(tiny_models.second, version) if way == "folder" else trainer.send(source, version, None))
        assert set((await early).versions) == {version}
    await engine.update(tiny_models.first, engine.version + 1)
