"""Bad models are refused before anything heavy starts."""

from __future__ import annotations

import importlib.metadata as metadata
import json
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.engines.checks import check_model, check_shards, room_for, vocabulary_size
from genevolve_ray.engines.protocol import PromptTooLong


def write_model(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize("config", [{"head_dim": 16}, {"hidden_size": 64, "num_attention_heads": 4}])
def test_small_heads_are_refused_on_cpu(tmp_path: Path, config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="head_dim is 16 .* needs head_dim >= 32"):
        check_model(write_model(tmp_path, **config))
    check_model(tmp_path, device="cuda")


def test_heads_of_32_pass(tmp_path: Path) -> None:
    check_model(write_model(tmp_path, head_dim=32))


def test_heads_that_do_not_divide_among_the_gpus_are_named(tmp_path: Path) -> None:
    write_model(tmp_path, num_attention_heads=6)
    check_shards(tmp_path, 3)
    with pytest.raises(ValueError, match=r"tensor_parallel_size=4 does not divide the 6 attention heads"):
        check_shards(tmp_path, 4)


def test_models_that_see_need_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "vision_config": {},
        "text_config": {"head_dim": 32, "vocab_size": 64},
    }
    write_model(tmp_path, **config)
    monkeypatch.setattr(metadata, "version", {"torchvision": "0.28.0"}.__getitem__)
    check_model(tmp_path)
    assert vocabulary_size(tmp_path) == 64

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match=f"{tmp_path} sees: it needs torchvision.* make setup"):
            check_model(tmp_path, device=device)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: .*nowhere"):
        check_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        check_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="not valid JSON"):
        check_model(tmp_path)


def test_the_room_ends_with_the_context() -> None:
    assert (room_for(10, 5, 20), room_for(18, 5, 20)) == (5, 2)
    with pytest.raises(PromptTooLong, match=r"20 tokens, .* 20"):
        room_for(20, 5, 20)
