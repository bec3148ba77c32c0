"""The check of a load: tensors that did not arrive, arrived changed, or were not taken over are named."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen3 import CONTEXT, TinyModels
from torch import Tensor, nn

from genevolve_ray.engines import transformers
from genevolve_ray.engines.load_check import LoadWatch, check_arrived, check_held, check_load
from genevolve_ray.engines.protocol import Probe, WeightUpdateError
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.engines.vllm_tensors import HeldTensors
from genevolve_ray.learning.digests import tensor_checksum

NORM = "model.layers.1.self_attn.k_norm.weight"


def weights_of(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def with_stale_norm(models: TinyModels, folder: Path) -> tuple[str, dict[str, int]]:
    """A version one of whose norms was not updated, and the learner's checksums of the version as it should be."""
    new = weights_of(models.second)
    new[NORM] = torch.linspace(0.9, 1.1, len(new[NORM]))
    published = {name: tensor_checksum(tensor) for name, tensor in new.items()}
    save_file(new | {NORM: weights_of(models.first)[NORM]}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder), published


def test_the_checksums_stay_among_the_processes_of_a_run() -> None:
    probe = Probe(token_ids=(1, 2), logprobs=(-1.0,), tensors={"a": 1})
    assert "tensors" not in probe.model_dump_json(), "older workers refuse fields that they do not know"
    assert pickle.loads(pickle.dumps(probe)).tensors == {"a": 1}


def test_what_did_not_arrive_and_what_arrived_changed_is_named() -> None:
    check_arrived({"a": 1}, {"a": 1, "tied": 1}, 3)
    with pytest.raises(WeightUpdateError, match=r"version 3 is not complete: b did not arrive"):
        check_arrived({"a": 1, "b": 2}, {"a": 1}, 3)
    with pytest.raises(WeightUpdateError, match=r"version 3 did not arrive .*: b has other values"):
        check_arrived({"a": 1, "b": 2}, {"a": 1, "b": 3}, 3)


def row(loaded: int, held: int | None, elements: int = 4, held_elements: int = 4) -> dict[str, Any]:
    return {
        "names": ["x"],
        "loaded": loaded,
        "loaded_elements": elements,
        "held": held,
        "held_elements": held_elements,
    }


def test_shards_add_up_and_copies_count_as_often_as_there_are() -> None:
    check_held([{"w": row(7, 3, held_elements=2)}, {"w": row(7, 4, held_elements=2)}], 1)
    check_held([{"w": row(7, 7)}, {"w": row(7, 7)}], 1)
    with pytest.raises(WeightUpdateError, match=r"does not hold the loaded values in w \(of x\)"):
        check_held([{"w": row(7, 7)}, {"w": row(7, 6)}], 1)
    with pytest.raises(WeightUpdateError, match="in w"):
        check_held([{"w": row(7, None, held_elements=0)}], 1)


class Kernel:
    """Stands for vLLM's method of a linear layer on a CPU: the weight vanishes into a kernel."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)


class Stacked(nn.Module):
    """Stands for vLLM's stacked q, k and v."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.output_partition_sizes, self.input_size_per_partition = [4, 2, 2], 8
        self.weight = nn.Parameter(torch.empty(0) if packed else torch.zeros(8, 8), requires_grad=False)
        self.quant_method = Kernel()
        if packed:
            self.cpu_linear = nn.functional.linear


class Attention(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv_proj = Stacked(packed=packed)
        self.attn.k_norm = nn.LayerNorm(8, bias=False)

    def load(self, tensors: Iterator[tuple[str, Tensor]], skip: str = "") -> None:
        """Loads as vLLM does: parts into the stacked weight, then the kernel packs it."""
        layer, norm = self.attn.qkv_proj, self.attn.k_norm.weight
        # While a load runs, vLLM has tensors without storage in place of its own.
        layer.weight = nn.Parameter(torch.empty(8, 8, device="meta"), requires_grad=False)
        self.attn.k_norm.weight = nn.Parameter(torch.empty(8, device="meta"))
        stacked, places = torch.zeros(8, 8), {"q": slice(0, 4), "k": slice(4, 6), "v": slice(6, 8)}
        for name, tensor in tensors:
            if skip and skip in name:
                continue
            if "norm" in name:
                norm.data.copy_(tensor)
            else:
                stacked[places[name.split(".")[1][0]]] = tensor
        self.attn.k_norm.weight = norm
        layer.weight = nn.Parameter(stacked, requires_grad=False)
        if hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def attention(request: pytest.FixtureRequest) -> Attention:
    return Attention(packed=request.param)


@pytest.fixture
def version() -> dict[str, Tensor]:
    sizes = {"q_proj": (4, 8), "k_proj": (2, 8), "v_proj": (2, 8), "k_norm": (8,)}
    return {f"attn.{name}.weight": torch.randn(size) for name, size in sizes.items()}


def report_of(attention: Attention, version: dict[str, Tensor], skip: str = "") -> dict[str, Any]:
    held = HeldTensors(attention)
    watch = LoadWatch(held.place, torch.float32)
    attention.load(watch.stored(watch.published(iter(version.items()))), skip)
    assert watch.untraced == []
    return {"arrived": watch.arrived, "missing": watch.missing, "rows": held.rows(watch.loaded)}


def test_a_load_that_takes_everything_over_passes(attention: Attention, version: dict[str, Tensor]) -> None:
    report = report_of(attention, version)
    check_load([report], {name: tensor_checksum(tensor) for name, tensor in version.items()}, 1)
    assert set(report["rows"]) == {"attn.k_norm.weight", *(f"attn.qkv_proj.weight[{p}_proj]" for p in "qkv")}


@pytest.mark.parametrize(
    ("skipped", "named"),
    [("k_norm", r"attn\.k_norm\.weight$"), ("k_proj", r"attn\.qkv_proj\.weight\[k_proj\] \(of attn\.k_proj\.weight\)")],
)
def test_a_tensor_that_the_engine_skips_is_named(
    attention: Attention, version: dict[str, Tensor], skipped: str, named: str
) -> None:
    with pytest.raises(WeightUpdateError, match=named):
        check_load([report_of(attention, version, skipped)], None, 1)


def test_a_kernel_that_was_not_packed_again_is_stale(version: dict[str, Tensor]) -> None:
    attention = Attention(packed=True)
    check_load([report_of(attention, version)], None, 1)
    newer = {name: tensor + 1 for name, tensor in version.items()}
    attention.attn.qkv_proj.quant_method.process_weights_after_loading = lambda layer: None
    attention.attn.qkv_proj.quant_method.__dict__["_genevolve_packed"] = True
    held = HeldTensors(attention)
    watch = LoadWatch(held.place, torch.float32)
    for _ in watch.stored(iter(newer.items())):
        pass
    with pytest.raises(WeightUpdateError, match=r"qkv_proj\.weight\[q_proj\]"):
        check_held([held.rows(watch.loaded)], 2)


def test_weights_are_compared_in_the_type_of_the_engine() -> None:
    attention = Attention(packed=False).bfloat16()
    version = {"attn.k_norm.weight": torch.randn(8)}
    held = HeldTensors(attention)
    watch = LoadWatch(held.place, torch.bfloat16)
    for _, tensor in watch.stored(iter(version.items())):
        attention.attn.k_norm.weight.data.copy_(tensor)
    check_held([held.rows(watch.loaded)], 1)


def test_quantized_tensors_are_listed_and_all_others_are_compared(version: dict[str, Tensor]) -> None:
    attention = Attention(packed=False)
    attention.attn.qkv_proj.weight = nn.Parameter(torch.zeros(8, 8).to(torch.float8_e4m3fn), requires_grad=False)
    held = HeldTensors(attention)
    watch = LoadWatch(held.place, torch.float32)
    attention.load(watch.stored(watch.published(iter(version.items()))), skip="k_norm")
    watch.require(version)
    assert watch.untraced == [f"attn.{p}_proj.weight" for p in "qkv"]
    assert watch.missing == []
    report = {"arrived": watch.arrived, "missing": watch.missing, "rows": held.rows(watch.loaded)}
    published = {name: tensor_checksum(tensor) for name, tensor in version.items()}
    with pytest.raises(WeightUpdateError, match=r"does not hold the loaded values in attn\.k_norm\.weight$"):
        check_load([report], published, 1)
    with pytest.raises(WeightUpdateError, match=r"attn\.q_proj\.weight has other values"):
        check_load([report], published | {"attn.q_proj.weight": 1}, 1)


@pytest.mark.parametrize("stated", [True, False])
async def test_the_reference_engine_names_a_norm_that_the_version_does_not_have_as_published(
    stated: bool, tiny_models: TinyModels, tmp_path: Path
) -> None:
    folder, published = with_stale_norm(tiny_models, tmp_path)
    engine = TransformersEngine(tiny_models.first, max_model_len=CONTEXT)
    probe = Probe(token_ids=(5, 6), logprobs=(0.0,), tolerance=1e9, tensors=published if stated else None)
    if stated:
        with pytest.raises(WeightUpdateError, match=f"{NORM} has other values"):
            await engine.update(folder, 1, probe)
    else:
        await engine.update(folder, 1, probe)
    await engine.close()


async def test_the_reference_engine_names_a_norm_that_it_did_not_take_over(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = weights_of(tiny_models.second)
    new[NORM] = torch.linspace(0.9, 1.1, len(new[NORM]))
    save_file(new, tmp_path / "model.safetensors", metadata={"format": "pt"})
    copy = transformers.copy_tensors

    def copy_all_but_one(own: dict[str, Tensor], tensors: Any) -> Any:
        before = own[NORM].clone()
        result = copy(own, tensors)
        own[NORM].copy_(before)
        return result

    engine = TransformersEngine(tiny_models.first, max_model_len=CONTEXT)
    monkeypatch.setattr(transformers, "copy_tensors", copy_all_but_one)
    with pytest.raises(WeightUpdateError, match=f"does not hold the loaded values in {NORM}"):
        await engine.update(str(tmp_path), 1)
    monkeypatch.undo()
    await engine.update(str(tmp_path), 2)
    await engine.close()
