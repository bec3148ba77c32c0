"""One stale tensor in vLLM is found and named, which neither the probe nor parity would show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from forgetful_worker import FORGOTTEN
from safetensors.torch import load_file, save_file
from test_vllm_transfer import Trainer
from tiny_qwen3 import CONTEXT, TinyModels

from genevolve_ray.engines import vllm
from genevolve_ray.engines.load_check import factor_checksums
from genevolve_ray.engines.protocol import Probe, SamplingParams, WeightUpdateError
from genevolve_ray.engines.vllm import VllmEngine
from genevolve_ray.learning.digests import tensor_checksum

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

NORM = "model.layers.1.self_attn.k_norm.weight"


def probe_with(tensors: dict[str, int] | None) -> Probe:
    """A probe that no weights fail: what is found, the checksums have found."""
    return Probe(token_ids=(5, 6), logprobs=(0.0,), tolerance=1e9, tensors=tensors)


@pytest.fixture
def newer(tiny_models: TinyModels) -> dict[str, torch.Tensor]:
    """A version whose norms differ from those of the others too; random models have them all at one."""
    tensors = load_file(Path(tiny_models.second) / "model.safetensors")
    tensors[NORM] = torch.linspace(0.9, 1.1, len(tensors[NORM]))
    return tensors


def stated(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor_checksum(tensor) for name, tensor in tensors.items()}


def write(tensors: dict[str, torch.Tensor], folder: Path, forgotten: str = "") -> str:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if forgotten:
        (folder / FORGOTTEN).write_text(forgotten)
    return str(folder)


async def test_a_sound_version_passes_and_every_tensor_is_compared(
    engine: VllmEngine, newer: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    await engine.update(write(newer, tmp_path / "v"), engine.version + 1, probe_with(stated(newer)))
    assert engine.untraced == ()
    assert engine.check_seconds > 0


async def test_an_adapter_is_compared_by_its_factors(
    engine: VllmEngine, adapter_case: Any, tiny_models: TinyModels
) -> None:
    factors = factor_checksums(adapter_case.folder)
    probe = adapter_case.probe.model_copy(update={"tensors": factors})
    await engine.update(adapter_case.folder, engine.version + 1, probe)
    name = sorted(factors)[3]
    wrong = probe.model_copy(update={"tensors": factors | {name: factors[name] + 1}})
    with pytest.raises(WeightUpdateError, match=f"{name} has other values"):
        await engine.update(adapter_case.folder, engine.version + 1, wrong)
    await engine.update(tiny_models.first, engine.version + 1)


async def test_a_norm_that_was_not_published_as_stated_is_named(
    engine: VllmEngine, newer: dict[str, torch.Tensor], tiny_models: TinyModels, tmp_path: Path
) -> None:
    old = load_file(Path(tiny_models.first) / "model.safetensors")[NORM]
    folder = write(newer | {NORM: old}, tmp_path / "v")
    with pytest.raises(WeightUpdateError, match=f"{NORM} has other values"):
        await engine.update(folder, engine.version + 1, probe_with(stated(newer)))
    with pytest.raises(WeightUpdateError, match=f"{NORM} has other values"):
        await engine.generate((50, 60), SamplingParams(max_tokens=2), "refused")
    await engine.update(tiny_models.first, engine.version + 1)


async def test_a_norm_that_is_missing_is_named(
    engine: VllmEngine, newer: dict[str, torch.Tensor], tiny_models: TinyModels, tmp_path: Path
) -> None:
    del newer[NORM]
    with pytest.raises(WeightUpdateError, match=f"not complete: {NORM} did not arrive"):
        await engine.update(write(newer, tmp_path / "v"), engine.version + 1)
    await engine.update(tiny_models.first, engine.version + 1)


async def test_over_a_transport_too(
    engine: VllmEngine, newer: dict[str, torch.Tensor], tiny_models: TinyModels
) -> None:
    trainer = Trainer(engine, asyncio.get_running_loop())
    source = trainer.source(tiny_models.second)
    await trainer.send(source, engine.version + 1, probe_with(source.checksums()))
    assert engine.untraced == ()
    with pytest.raises(WeightUpdateError, match=f"{NORM} has other values"):
        await trainer.send(source, engine.version + 1, probe_with(stated(newer)))
    await engine.update(tiny_models.first, engine.version + 1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def forgetful(tiny_models: TinyModels) -> AsyncIterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "WORKER_EXTENSION", "forgetful_worker.ForgetfulLoader")
        engine = await VllmEngine.create(tiny_models.first, max_model_len=CONTEXT, max_num_seqs=4)
    yield engine
    await engine.close()


async def test_an_update_leaves_every_tensor_in_its_memory(
    forgetful: VllmEngine, newer: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """CUDA graphs read weights from the addresses at which they were captured."""
    [before] = await forgetful._open().collective_rpc("places")
    assert {"model.embed_tokens.weight", NORM} <= set(before)
    await forgetful.update(write(newer, tmp_path / "v"), forgetful.version + 1)
    assert await forgetful._open().collective_rpc("places") == [before]


@pytest.mark.parametrize(
    ("forgotten", "named"),
    [(NORM, f"in {NORM}$"), ("lm_head.weight", r"in lm_head\.weight \(packed\) \(of model\.embed_tokens\.weight\)")],
)
async def test_a_tensor_that_vllm_did_not_take_over_is_named(
    forgetful: VllmEngine, newer: dict[str, torch.Tensor], tmp_path: Path, forgotten: str, named: str
) -> None:
    await forgetful.update(write(newer, tmp_path / "sound"), forgetful.version + 1)
    changed = {name: tensor * 1.5 for name, tensor in newer.items()}
    with pytest.raises(WeightUpdateError, match=named):
        await forgetful.update(write(changed, tmp_path / "v", forgotten), forgetful.version + 1)
