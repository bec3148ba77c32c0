"""The vLLM engine: contract, parity with a plain forward and the reference engine, updates in flight, no orphans."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import save_file
from tiny_qwen3 import CONTEXT, TinyModels, build_adapter, build_model, forward_logprobs

import genevolve_ray
from genevolve_ray.contracts import engine as contract
from genevolve_ray.engines.protocol import Generation, SamplingParams, WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.engines.vllm import VllmEngine
from genevolve_ray.models.adapters import published_tensors

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROMPTS = [tuple(range(10, 10 + n)) for n in (3, 17, 9, 30)]
TEMPERATURES = (1.0, 0.7, 1.3, 1.0)


async def sample_all(engine: VllmEngine) -> list[Generation]:
    settings = [SamplingParams(temperature=t, max_tokens=40, seed=i) for i, t in enumerate(TEMPERATURES)]
    return await asyncio.gather(
        *(engine.generate(p, s, f"parity-{i}") for i, (p, s) in enumerate(zip(PROMPTS, settings, strict=True)))
    )


def mean_difference(folder: str, results: list[Generation]) -> float:
    differences = [
        abs(mine - theirs)
        for prompt, temperature, result in zip(PROMPTS, TEMPERATURES, results, strict=True)
        for mine, theirs in zip(
            result.logprobs, forward_logprobs(folder, prompt, result.tokens, temperature), strict=True
        )
    ]
    return sum(differences) / len(differences)


@pytest.mark.parametrize(
    "check",
    [
        contract.check_generate,
        contract.check_stop,
        contract.check_greedy,
        contract.check_streaming,
        contract.check_concurrent,
        contract.check_context,
    ],
)
async def test_contract(engine: VllmEngine, engine_case: contract.EngineCase, check: Any) -> None:
    await check(engine, engine_case)


async def test_parity_before_and_after_an_update(
    engine: VllmEngine, engine_case: contract.EngineCase, tiny_models: TinyModels
) -> None:
    assert mean_difference(tiny_models.first, await sample_all(engine)) < 1e-4
    await contract.check_update(engine, engine_case)
    # The same prompts again: a prefix cache that survived the update would show here.
    results = await sample_all(engine)
    assert mean_difference(tiny_models.second, results) < 1e-4
    assert mean_difference(tiny_models.first, results) > 0.1


async def test_scores_are_those_of_the_reference_engine(engine: VllmEngine, tiny_models: TinyModels) -> None:
    await engine.update(tiny_models.first, engine.version + 1)
    reference = TransformersEngine(tiny_models.first, max_model_len=CONTEXT)
    ids = tuple(range(5, 80))
    assert await engine.score(ids) == pytest.approx(await reference.score(ids), abs=1e-4)
    await reference.close()


async def test_an_adapter_is_merged_into_the_base_while_it_is_loaded(
    engine: VllmEngine, adapter_case: contract.EngineCase, tiny_models: TinyModels, tmp_path: Path
) -> None:
    await engine.update(tiny_models.second, engine.version + 1)
    await contract.check_update(engine, adapter_case)
    ids = tuple(range(5, 80))
    merged = await engine.score(ids)
    whole = dict(published_tensors(adapter_case.folder, tiny_models.first))
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    await engine.update(str(tmp_path), engine.version + 1, adapter_case.probe)
    assert await engine.score(ids) == merged


async def test_an_adapter_that_does_not_fit_changes_nothing(
    engine: VllmEngine, tiny_models: TinyModels, tmp_path: Path
) -> None:
    await engine.update(tiny_models.first, engine.version + 1)
    version, ids = engine.version, tuple(range(5, 30))
    before = await engine.score(ids)
    build_adapter(tmp_path / "adapter", build_model(tmp_path / "narrow", 1, hidden=32))
    with pytest.raises(WeightUpdateError, match=f"in the base {tiny_models.first} it has"):
        await engine.update(str(tmp_path / "adapter"), version + 1)
    assert (engine.version, await engine.score(ids)) == (version, before)
    assert await engine.generate((50, 60), SamplingParams(max_tokens=2, seed=9), "goes-on")


async def test_a_request_that_spans_an_update_records_the_version_of_each_token(
    engine: VllmEngine, tiny_models: TinyModels
) -> None:
    await engine.update(tiny_models.first, engine.version + 1)
    old, new = engine.version, engine.version + 1
    long = [
        asyncio.create_task(engine.generate(p, SamplingParams(max_tokens=60, seed=i), f"long-{i}"))
        for i, p in enumerate(PROMPTS)
    ]
    await engine.generate((50, 60), SamplingParams(max_tokens=5, seed=9), "short")
    await engine.update(tiny_models.second, new)
    results = await asyncio.gather(*long)
    assert {version for result in results for version in result.versions} == {old, new}
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert list(result.versions) == sorted(result.versions)
        expected = {
            version: forward_logprobs(folder, prompt, result.tokens, 1.0)
            for version, folder in ((old, tiny_models.first), (new, tiny_models.second))
        }
        for place, (version, logprob) in enumerate(zip(result.versions, result.logprobs, strict=True)):
            assert logprob == pytest.approx(expected[version][place], abs=1e-4)


START_AND_WAIT = """
import asyncio, sys
from genevolve_ray.engines.vllm import VllmEngine

async def main():
    engine = await VllmEngine.create(sys.argv[1], max_model_len=64)
    print("ready", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
async def test_no_engine_process_survives_a_parent_that_is_killed(tiny_models: TinyModels, tmp_path: Path) -> None:
    script = tmp_path / "start_and_wait.py"
    script.write_text(START_AND_WAIT)
    root = str(Path(genevolve_ray.__file__).parents[1])
    parent = psutil.Popen(
        [sys.executable, str(script), tiny_models.first],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline() == "ready\n"
    children = parent.children(recursive=True)
    assert any("EngineCore" in child.name() for child in children)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    # Where nobody reaps orphans, the dead stay in the table as zombies.
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
