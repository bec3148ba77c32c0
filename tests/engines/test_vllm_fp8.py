"""vLLM with 8-bit weights on a CPU: every update quantizes the learner's weights anew, and parity shows the difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from safetensors.torch import load_file
from test_vllm_transfer import Trainer
from tiny_qwen3 import CONTEXT, TinyModels

from genevolve_ray.engines import vllm
from genevolve_ray.engines.config import VllmConfig
from genevolve_ray.engines.protocol import Probe, WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.engines.vllm import VllmEngine
from genevolve_ray.learning.digests import tensor_checksum

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

IDS = tuple(range(10, 60))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quantized(tiny_models: TinyModels) -> AsyncIterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "WORKER_EXTENSION", "forgetful_worker.ForgetfulLoader")
        engine = await VllmEngine.create(
            tiny_models.first,
            dtype="bfloat16",
            max_model_len=CONTEXT,
            max_num_seqs=4,
            config=VllmConfig(quantization="fp8", kv_cache_mib=16),
            transfer="gloo",
        )
    yield engine
    await engine.close()


async def plain(folder: str) -> list[float]:
    """The log-probs of a fixed sequence in float32."""
    reference = TransformersEngine(folder, max_model_len=CONTEXT)
    scored = await reference.score(IDS)
    await reference.close()
    return scored


async def gap(engine: VllmEngine, folder: str) -> float:
    """The mean |engine - plain forward| over a fixed sequence."""
    pairs = zip(await engine.score(IDS), await plain(folder), strict=True)
    return sum(abs(a - b) for a, b in pairs) / (len(IDS) - 1)


@pytest.mark.parametrize("way", ["folder", "transfer"])
async def test_an_update_quantizes_the_new_weights_in_place(
    quantized: VllmEngine, tiny_models: TinyModels, way: str
) -> None:
    llm = quantized._open()
    await quantized.update(tiny_models.first, quantized.version + 1)
    [before] = await llm.collective_rpc("places")
    if way == "folder":
        await quantized.update(tiny_models.second, quantized.version + 1)
    else:
        trainer = Trainer(quantized, asyncio.get_running_loop())
        await trainer.send(trainer.source(tiny_models.second), quantized.version + 1, None)
    old, new = [await gap(quantized, folder) for folder in (tiny_models.first, tiny_models.second)]
    assert new < old / 5, "the engine samples the new weights, rounded"
    assert len(quantized.untraced) == 14, "7 linear layers in each of 2 blocks"
    assert all("_proj." in name for name in quantized.untraced)
    assert await llm.collective_rpc("places") == [before]


async def test_the_probe_judges_the_rounding_and_checksums_what_is_not_rounded(
    quantized: VllmEngine, tiny_models: TinyModels
) -> None:
    tensors = load_file(Path(tiny_models.second) / "model.safetensors")
    stated = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
    probe = Probe(token_ids=IDS, logprobs=tuple(await plain(tiny_models.second)), tolerance=1e-4, tensors=stated)
    with pytest.raises(WeightUpdateError, match="probe"):
        await quantized.update(tiny_models.second, quantized.version + 1, probe)
    loose = probe.model_copy(update={"tolerance": 0.5})
    assert 1e-4 < await quantized.update(tiny_models.second, quantized.version + 1, loose) < 0.5
    wrong = loose.model_copy(update={"tensors": stated | {"model.norm.weight": 1}})
    with pytest.raises(WeightUpdateError, match=r"model\.norm\.weight has other values"):
        await quantized.update(tiny_models.second, quantized.version + 1, wrong)
