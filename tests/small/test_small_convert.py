"""Folders in HF layout from packages that carry weights: nothing of the quantization stays, and nothing half-made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import CONTROL, WORDS, gguf_bytes, tiny_config, write_gguf

from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.errors import UserFault
from genevolve_ray.learning.config import LoraConfig
from genevolve_ray.learning.lora import attach_adapter, publish_adapter
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.models.adapters import AdapterMisfit
from genevolve_ray.small.convert import convert_policy, copy_embedder, merge_cold_start

VOCABULARY = len(CONTROL) + len(gguf_bytes()) + len(WORDS)


@pytest.fixture(scope="module")
def llama() -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config(VOCABULARY)).eval()


@pytest.fixture(scope="module")
def converted(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("converted")
    return convert_policy(write_gguf(root / "tiny.gguf", llama), root / "policy")


def test_the_converted_policy_has_the_weights_of_the_gguf_in_bfloat16(converted: Path, llama: Any) -> None:
    import torch

    found = load_policy(converted, "bfloat16").state_dict()
    for name, tensor in llama.state_dict().items():
        assert torch.equal(found[name], tensor.bfloat16()), name


def test_nothing_says_that_the_policy_was_quantized(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["rms_norm_eps"], config["tie_word_embeddings"]) == ("bfloat16", 1e-5, True)
    sampling = json.loads((converted / "generation_config.json").read_text())
    assert (sampling["bos_token_id"], sampling["eos_token_id"], sampling["pad_token_id"]) == (1, 2, 2)


def test_the_tokenizer_keeps_template_special_tokens_and_single_digits(converted: Path) -> None:
    tokenizer = load_tokenizer(converted)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("  42 a")) == ["ĠĠ", "4", "2", "Ġa"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (CONTROL[1], CONTROL[2], CONTROL[2])
    assert (tokenizer.unk_token, tokenizer.model_max_length) == (CONTROL[0], 128)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert rendered == "<|im_start|>user\na<|im_end|>\n"


def test_a_gguf_with_another_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    other = write_gguf(tmp_path / "other.gguf", pre="qwen2")
    with pytest.raises(UserFault, match=r"other\.gguf: tokenizer\.ggml\.pre is 'qwen2'"):
        convert_policy(other, tmp_path / "policy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf"]


def test_a_broken_conversion_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserFault, match=r"cut\.gguf cannot be read as a GGUF"):
        convert_policy(cut, tmp_path / "policy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "whole.gguf"]


def test_an_occupied_folder_is_not_replaced(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserFault, match="exists already"):
        merge_cold_start(converted, converted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_the_embedder_is_copied_file_by_file(minilm: Path, tmp_path: Path) -> None:
    out = copy_embedder(minilm, tmp_path / "embedder")
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(out.glob("*.md")) and (out / "ATTRIBUTION").is_file()


def test_an_embedder_with_another_file_is_refused_by_hash(minilm: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in minilm.iterdir():
        if file.is_file():
            (source / file.name).symlink_to(file)
    (source / "vocab.txt").unlink()
    with pytest.raises(UserFault, match=r"has no vocab\.txt"):
        copy_embedder(source, tmp_path / "embedder")
    (source / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(UserFault, match=r"vocab\.txt is not the published file: SHA-256 .*, expected 07eced37"):
        copy_embedder(source, tmp_path / "embedder")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_adapter_is_merged_into_a_bfloat16_folder(converted: Path, tmp_path: Path) -> None:
    import torch

    model = load_policy(converted)
    description = attach_adapter(model, LoraConfig(rank=2, alpha=4))
    state = {
        name: torch.full_like(tensor, 0.01) if ".lora_" in name else tensor
        for name, tensor in model.state_dict().items()
    }
    publish_adapter(state, description, tmp_path / "adapter", "bfloat16")
    merge_cold_start(tmp_path / "adapter", converted, tmp_path / "merged")
    base, merged = (load_policy(folder, "bfloat16").state_dict() for folder in (converted, tmp_path / "merged"))
    name = "model.layers.0.mlp.down_proj.weight"
    # rank 2, factors of 0.01, scaling 2: every entry grows by 2 * 2 * 0.01 * 0.01.
    assert torch.equal(merged[name], (base[name].float() + 4e-4).bfloat16())
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (converted / "tokenizer.json").read_bytes()
    assert "fine-tuned" in (tmp_path / "merged" / "ATTRIBUTION").read_text("utf-8")
    assert (tmp_path / "merged" / "LICENSES" / "Apache-2.0").is_file()


def test_an_adapter_of_another_model_is_refused(converted: Path, tmp_path: Path) -> None:
    model = load_policy(converted)
    description = attach_adapter(model, LoraConfig(rank=2, alpha=4))
    state = {name.replace("layers.1", "layers.7"): tensor for name, tensor in model.state_dict().items()}
    publish_adapter(state, description, tmp_path / "adapter", "bfloat16")
    with pytest.raises(AdapterMisfit, match=r"model\.layers\.7"):
        merge_cold_start(tmp_path / "adapter", converted, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
