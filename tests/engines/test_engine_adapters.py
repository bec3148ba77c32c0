"""An adapter alone as an update: merged into the base of the engine, judged by the probe, refused where it does not fit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tiny_qwen3 import BANNED, CONTEXT, TinyModels, build_model

from genevolve_ray.contracts import engine as contract
from genevolve_ray.engines.protocol import SamplingParams, WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine


def make(folder: str, **settings: Any) -> TransformersEngine:
    return TransformersEngine(folder, banned=BANNED, max_model_len=CONTEXT, **settings)


@pytest_asyncio.fixture
async def engine(tiny_models: TinyModels) -> AsyncIterator[TransformersEngine]:
    engine = make(tiny_models.first)
    yield engine
    await engine.close()


async def test_an_adapter_is_an_update_like_any(engine: TransformersEngine, adapter_case: contract.EngineCase) -> None:
    await contract.check_update(engine, adapter_case)


async def test_adapters_are_merged_into_the_base_and_not_into_each_other(
    engine: TransformersEngine, adapter_case: contract.EngineCase, tiny_models: TinyModels
) -> None:
    plain = await engine.score(adapter_case.probe.token_ids)
    for version in (1, 2):
        assert await engine.update(adapter_case.folder, version, adapter_case.probe) < 1e-5
    await engine.update(tiny_models.first, 3)
    assert await engine.score(adapter_case.probe.token_ids) == plain


async def test_another_base_of_the_same_shape_is_found_out_by_the_probe_and_named(
    tiny_models: TinyModels, adapter_case: contract.EngineCase
) -> None:
    engine = make(tiny_models.second)
    message = f"is off by .* on the probe.*the adapter was merged into the base {tiny_models.second}"
    with pytest.raises(WeightUpdateError, match=message):
        await engine.update(adapter_case.folder, 1, adapter_case.probe)
    with pytest.raises(WeightUpdateError):
        await engine.generate(adapter_case.prompt, SamplingParams(max_tokens=2), "after")
    await engine.close()


async def test_a_base_of_another_shape_is_named_before_anything_is_loaded(
    adapter_case: contract.EngineCase, tmp_path: Path
) -> None:
    narrow = build_model(tmp_path / "narrow", 1, hidden=32)
    engine = make(narrow)
    with pytest.raises(WeightUpdateError, match=rf"changes model\.layers.*in the base {narrow} it has \("):
        await engine.update(adapter_case.folder, 1, adapter_case.probe)
    # The engine goes on with what it had.
    found = await engine.generate(adapter_case.prompt, SamplingParams(max_tokens=2, seed=1), "after")
    assert (engine.version, set(found.versions)) == (0, {0})
    await engine.close()


async def test_whole_weights_of_another_shape_are_an_update_that_failed(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    with pytest.raises(WeightUpdateError, match=r"has shape \(300, 32\), in the model \(300, 64\)"):
        await engine.update(build_model(tmp_path / "narrow", 1, hidden=32), 1)
