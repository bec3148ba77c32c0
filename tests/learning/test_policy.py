"""Policies load, save and hash as promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from genevolve_ray.learning.policy import load_policy, save_policy, state_hash, state_to_folder


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'.*nowhere' does not exist"):
        load_policy(tmp_path / "nowhere")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_policy(tmp_path)


def test_an_unknown_dtype_is_named(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="unknown policy dtype 'float8'"):
        load_policy(model_dir, dtype="float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="'cuda' was asked for"):
        load_policy(model_dir, device="cuda")


def test_saved_policies_load_unchanged_in_transformers(tmp_path: Path, model_dir: Path) -> None:
    vocabulary = {f"w{i}": i for i in range(64)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")))
    policy = load_policy(model_dir)
    save_policy(policy, tokenizer, tmp_path / "first")
    save_policy(policy, tmp_path / "first", tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert state_hash(again.state_dict()) == state_hash(policy.state_dict())
    assert AutoTokenizer.from_pretrained(tmp_path / "second").convert_tokens_to_ids(["w7"]) == [7]


def test_a_folder_without_tokenizer_is_an_error(tmp_path: Path, model: Qwen3ForCausalLM) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tokenizer files"):
        save_policy(model, tmp_path / "empty", tmp_path / "out")


def test_a_weights_folder_holds_tied_tensors_once(tmp_path: Path, model: Qwen3ForCausalLM) -> None:
    state_to_folder(model.state_dict(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "model.embed_tokens.weight" in tensors and "lm_head.weight" not in tensors
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    assert state_hash(load_policy(tmp_path).state_dict()) == state_hash(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_state_hash_sees_names_values_shapes_and_dtypes_but_not_order(dtype: torch.dtype) -> None:
    a, b = torch.arange(6).to(dtype), torch.ones(3).to(dtype)
    reference = state_hash({"a": a, "b": b})
    assert state_hash({"b": b, "a": a}) == reference
    variants = [{"a": b, "b": a}, {"a": a + 1, "b": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a.to(torch.int8), "b": b}]
    assert reference not in {state_hash(v) for v in variants}
