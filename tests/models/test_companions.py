"""The files of a model folder that are not weights travel as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genevolve_ray.models.companions import companion_files, copy_companions, copy_config, prints_date

KEPT = (
    "LICENSE",
    "README.md",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.model",
    "extra/tekken.json",
)
LEFT = (
    ".git/config",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "adapter_config.json",
    "original/consolidated.00.pth",
    "nested/config.json",
    "nested/vocab.json",
    "runs/one/run.json",
    "runs/one/report.html",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in (*KEPT, *LEFT, "config.json"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(json.dumps({"name": name}))
    return tmp_path / "model"


def test_everything_but_weights_and_other_models_is_kept(model: Path) -> None:
    assert sorted(map(str, companion_files(model))) == sorted((*KEPT, "config.json"))


def test_copies_are_the_same_bytes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    copy_companions(model, tmp_path / "out", config=False)
    assert {n: (tmp_path / "out" / n).read_text() for n in KEPT} == {n: (model / n).read_text() for n in KEPT}
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("place", [".", "runs", "runs/two/checkpoints/000001", "..", "../other"])
def test_a_target_may_be_anywhere(model: Path, place: str) -> None:
    target = model / place
    target.mkdir(parents=True, exist_ok=True)
    copy_companions(model, target)
    assert json.loads((target / "LICENSE").read_text()) == {"name": "LICENSE"}
    assert not (target / "runs" / "two").exists() or place == "."


def test_links_of_a_cache_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("vocabulary")
    (model / "vocab.txt").symlink_to(tmp_path / "blob")
    (tmp_path / "out").mkdir()
    copy_companions(model, tmp_path / "out")
    copied = tmp_path / "out" / "vocab.txt"
    assert (copied.is_symlink(), copied.read_text()) == (False, "vocabulary")


def test_a_configuration_changes_in_its_dtype_alone(tmp_path: Path) -> None:
    before = {"torch_dtype": "bfloat16", "temperature": 0.6, "text_config": {"dtype": "bfloat16", "n": 1}, "name": "ä"}
    (tmp_path / "config.json").write_text(json.dumps(before))
    (tmp_path / "out").mkdir()
    copy_config(tmp_path, tmp_path / "out", "float32")
    after = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert after == before | {"torch_dtype": "float32", "text_config": {"dtype": "float32", "n": 1}}


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_with_a_date_is_found_wherever_it_is(tmp_path: Path, name: str) -> None:
    assert not prints_date(tmp_path)
    (tmp_path / name).write_text('{"chat_template": "{{ strftime_now(\'%d\') }}"}')
    assert prints_date(tmp_path)
