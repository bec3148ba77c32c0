"""Adapters as they are published: what is merged from the files equals what the learner merges, and the rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fakes import sequences
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from genevolve_ray.learning.config import LearnerConfig, LoraConfig, PublishForm
from genevolve_ray.learning.distributed import load_full_state
from genevolve_ray.learning.lora import adapter_state, check_publishable
from genevolve_ray.learning.rescoring import Rescorer
from genevolve_ray.learning.step import Learner
from genevolve_ray.models.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    AdapterMisfit,
    check_published,
    copy_tensors,
    merged_tensors,
    published_tensors,
    read_adapter,
    weight_files,
)

CONFIG = LearnerConfig(lr=1e-2, temperature=0.7, lora=LoraConfig(rank=4, alpha=8.0))


def trained(model_dir: Path, **changes: Any) -> Learner:
    learner = Learner(model_dir, CONFIG.model_copy(update=changes))
    for step in range(2):
        learner.train_step(sequences(seed=step), step)
    return learner


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    return {n: (t.dtype, t.contiguous().view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()}


def peft_folder(folder: Path, base: Path, **settings: Any) -> PeftModel:
    """Write an adapter of peft's own making, with random factors, and return its model."""
    torch.manual_seed(3)
    wanted = PeftLora(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **settings})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), wanted)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def edit(folder: Path, **changes: Any) -> None:
    file = folder / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- the same weights either way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_is_merged_from_the_files_equals_the_learners_weights_bit_for_bit(
    model_dir: Path, tmp_path: Path, stored: torch.dtype, held: str
) -> None:
    base, adapter, whole = tmp_path / "base", tmp_path / "adapter", tmp_path / "whole"
    AutoModelForCausalLM.from_pretrained(model_dir, dtype=stored).save_pretrained(base)
    learner = trained(base, dtype=held)
    learner.write_weights(adapter)
    learner.write_merged(whole)
    check_published(adapter, base)
    assert bits(dict(published_tensors(adapter, base))) == bits(load_file(whole / "model.safetensors"))
    assert bits(dict(published_tensors(whole, base))) == bits(load_file(whole / "model.safetensors"))


def test_an_adapter_that_has_learned_nothing_is_the_base_to_the_bit(model_dir: Path, tmp_path: Path) -> None:
    Learner(model_dir, CONFIG).write_weights(tmp_path)
    assert bits(dict(published_tensors(tmp_path, model_dir))) == bits(load_file(model_dir / "model.safetensors"))


def test_a_base_in_shards_is_found_by_its_index(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.write_weights(tmp_path / "adapter")
    shards = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(shards, max_shard_size="20kB")
    (shards / "stray.safetensors").write_bytes(b"not of the model")
    assert len(weight_files(shards)) > 1
    expected = bits(dict(published_tensors(tmp_path / "adapter", model_dir)))
    assert bits(dict(published_tensors(tmp_path / "adapter", shards))) == expected


def test_tensors_are_read_one_by_one(model_dir: Path, tmp_path: Path) -> None:
    trained(model_dir).write_weights(tmp_path)
    read: list[str] = []

    def base() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in load_file(model_dir / "model.safetensors").items():
            read.append(name)
            yield name, tensor

    merged = merged_tensors(base(), read_adapter(tmp_path))
    assert [next(merged)[0], next(merged)[0]] == read


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 20, "q_proj": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_scalings_are_those_of_peft(model_dir: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = peft_folder(tmp_path, model_dir, **settings)
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    found = read_adapter(tmp_path).factors
    assert {n: f.scaling for n, f in found.items()} == {f"{n}.weight": m.scaling["default"] for n, m in layers.items()}
    mine, theirs = dict(published_tensors(tmp_path, model_dir)), model.merge_and_unload().state_dict()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def test_half_precision_factors_are_multiplied_in_float32(model_dir: Path, tmp_path: Path) -> None:
    peft_folder(tmp_path, model_dir)
    exact = {name: t.bfloat16().float() for name, t in load_file(tmp_path / ADAPTER_FILE).items()}
    save_file(exact, tmp_path / ADAPTER_FILE)
    expected = bits(dict(published_tensors(tmp_path, model_dir)))
    save_file({name: t.bfloat16() for name, t in exact.items()}, tmp_path / ADAPTER_FILE)
    assert bits(dict(published_tensors(tmp_path, model_dir))) == expected


def test_the_rescorer_takes_an_adapter_as_it_takes_whole_weights(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.write_weights(tmp_path / "adapter")
    learner.write_merged(tmp_path / "whole")
    rescorer, tokens, scores = Rescorer(model_dir), [3, 9, 27, 41, 5], []
    for name in ("whole", "adapter", "adapter"):
        rescorer.load(tmp_path / name)
        scores.append(rescorer.score(tokens, [False, False, True, True, True], 0.7).logprobs)
    # Loaded twice: it is merged into the base, not into what was there.
    assert scores[0] == scores[1] == scores[2]
    expected = Learner(model_dir, CONFIG).raw_logprobs(tokens)
    rescorer.load(model_dir)
    plain = rescorer.score(tokens, [False, False, True, True, True], 1.0).logprobs
    assert plain == pytest.approx(expected[1:], abs=1e-5)


# --- what is published -----------------------------------------------------------------------------------------------


def test_the_adapter_travels_unless_whole_weights_are_asked_for(model_dir: Path, tmp_path: Path) -> None:
    trained(model_dir).write_weights(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {ADAPTER_CONFIG_FILE, ADAPTER_FILE}
    merged = CONFIG.model_copy(update={"lora": LoraConfig(rank=4, alpha=8.0, publish=PublishForm.MERGED)})
    Learner(model_dir, merged).write_weights(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {"model.safetensors"}


def test_what_is_published_does_not_tell_where_the_base_lies(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    learner.write_weights(tmp_path / "published")
    text = (tmp_path / "published" / ADAPTER_CONFIG_FILE).read_text()
    assert json.loads(text)["base_model_name_or_path"] == model_dir.name and str(model_dir) not in text
    learner.save(tmp_path / "checkpoint")
    kept = json.loads((tmp_path / "checkpoint" / ADAPTER_CONFIG_FILE).read_text())
    assert kept["base_model_name_or_path"] == str(model_dir.resolve())


def test_the_checksum_is_that_of_what_the_adapter_adds(model_dir: Path, tmp_path: Path) -> None:
    learner = trained(model_dir)
    first = learner.write_adapter(tmp_path / "a")
    assert learner.write_adapter(tmp_path / "b") == first
    learner.train_step(sequences(seed=7), 2)
    assert learner.write_adapter(tmp_path / "c") != first
    # The same factors under another alpha, or in a base of another dtype, are other weights.
    for number, changes in enumerate(({"lora": LoraConfig(rank=4, alpha=9.0)}, {"dtype": "bfloat16"})):
        other = Learner(model_dir, CONFIG.model_copy(update=changes))
        load_full_state(other.model, trained(model_dir).state_dict()["model"], adapter_state)
        assert other.write_adapter(tmp_path / str(number)) != first


def test_a_base_whose_files_use_other_names_is_told_at_the_start(model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(model_dir, CONFIG)
    check_publishable(learner.model, model_dir)
    renamed = {f"old.{name}": t for name, t in load_file(model_dir / "model.safetensors").items()}
    save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"publish=adapter: the adapter changes model\.layers\.0.*publish=merged sends"
    ):
        check_publishable(learner.model, tmp_path)


# --- refused, by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=true cannot be merged"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\] cannot be merged'),
        ({"bias": "all"}, "bias='all' cannot be merged"),
        ({"lora_bias": True}, "lora_bias=true cannot be merged"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.* is not a factor of a linear layer"),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters=.* cannot be merged"),
    ],
)
def test_adapters_that_are_more_than_low_rank_factors(
    model_dir: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    peft_folder(tmp_path, model_dir, **settings)
    with pytest.raises(AdapterMisfit, match=f"{tmp_path}.*{message}"):
        check_published(tmp_path, model_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' requires a base with other weights"),
        ({"r": 8}, r"has factors of shapes \(4, .*\) and .*, but its rank is 8"),
        ({"r": 0}, "are numbers above 0, .* has 0"),
        ({"lora_alpha": "6"}, "are numbers above 0, .* has '6'"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern has a bad pattern '\('"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=true"),
    ],
)
def test_descriptions_that_cannot_be_honoured(
    model_dir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    peft_folder(tmp_path, model_dir)
    edit(tmp_path, **changes)
    with pytest.raises(AdapterMisfit, match=message):
        read_adapter(tmp_path)


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 40)
    save_file(tensors, folder / "model.safetensors")


def _quantised(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(32, 48, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")


def _one_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if ".1." not in n}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _other_shape,
            r"changes model.layers.1.mlp.down_proj.weight of shape \(32, 48\), in the base {} it has \(32, 40\)",
        ),
        (_quantised, r"model.layers.1.mlp.down_proj.weight, which in the base {} is quantized \(I8\)"),
        (_one_layer, r"model.layers.1.mlp.down_proj.weight, which the base {} does not have \(2 of 4 such tensors\)"),
    ],
    ids=["shape", "quantised", "missing"],
)
def test_a_base_that_does_not_fit_is_named(
    model_dir: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_dir, base)
    peft_folder(tmp_path / "adapter", base)
    spoil(base)
    with pytest.raises(AdapterMisfit, match=message.format(base)):
        check_published(tmp_path / "adapter", base)


def test_a_factor_that_meets_no_tensor_is_an_error_of_the_merging_too(model_dir: Path, tmp_path: Path) -> None:
    peft_folder(tmp_path, model_dir)
    base = load_file(model_dir / "model.safetensors")
    del base["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(AdapterMisfit, match=r"changes model.layers.0.self_attn.q_proj.weight.*\(1 of 4"):
        dict(merged_tensors(base.items(), read_adapter(tmp_path)))


def test_folders_that_are_no_version(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no .*safetensors to load in {tmp_path}"):
        check_published(tmp_path, model_dir)
    peft_folder(tmp_path, model_dir)
    shutil.copyfile(model_dir / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(AdapterMisfit, match=r"an adapter and full weights \(model.safetensors\)"):
        check_published(tmp_path, model_dir)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / ADAPTER_FILE).write_bytes(b"torn")
    with pytest.raises(AdapterMisfit, match="cannot be read"):
        check_published(tmp_path, model_dir)
    (tmp_path / ADAPTER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {ADAPTER_FILE} in {tmp_path}"):
        check_published(tmp_path, model_dir)


def test_an_index_names_files_of_its_own_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="names a file outside its folder: '../secret.safetensors'"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="lacks gone.safetensors"):
        weight_files(tmp_path)


def test_tensors_of_another_shape_are_not_broadcast() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"a has shape \(1, 3\), in the model \(2, 3\)"):
        copy_tensors(own, [("a", torch.ones(1, 3))])
    assert copy_tensors(own, [("a", torch.ones(2, 3)), ("c", torch.ones(1))]) == (["b"], ["c"])
    assert own["a"].sum() == 6


def test_no_learner_goes_on_from_an_adapter_that_it_cannot_merge(model_dir: Path, tmp_path: Path) -> None:
    peft_folder(tmp_path, model_dir, lora_alpha=8, use_dora=True)
    lora = LoraConfig(rank=4, alpha=8.0, start=str(tmp_path))
    with pytest.raises(ValueError, match="use_dora=true cannot be merged"):
        Learner(model_dir, CONFIG.model_copy(update={"lora": lora}))
