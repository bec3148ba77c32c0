"""Hashes of what trainings and stages are made from, and embeddings that are written or reported."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.small import setup
from genevolve_ray.small.setup import embed_in_parts, setup_stages
from genevolve_ray.small.stages import SetupFault
from genevolve_ray.small.training.hashes import array_hash, encoder_hash, pictures_hash, text_hash


def test_an_array_is_hashed_with_its_type_and_shape() -> None:
    values = np.arange(6, dtype=np.uint8)
    different = [values, values + 1, values.reshape(2, 3), values.view(np.int8), values[::-1]]
    assert len({array_hash(each) for each in different}) == len(different)
    assert array_hash(values[::2]) == array_hash(values[::2].copy())


def test_texts_are_not_joined() -> None:
    assert text_hash(["ab", "c"]) != text_hash(["a", "bc"])


def test_an_encoder_with_another_tokenizer_has_another_hash(tmp_path: Path) -> None:
    folders: list[Path] = []
    for vocabulary in ("a\n", "b\n"):
        folder = tmp_path / f"encoder-{len(folders)}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "vocab.txt").write_text(vocabulary)
        folders.append(folder)
    assert encoder_hash(folders[0]) != encoder_hash(folders[1])
    with pytest.raises(UserFault, match=r"it has no model\.safetensors"):
        encoder_hash(tmp_path)


def test_a_changed_drawing_changes_the_hash_of_a_library(tmp_path: Path) -> None:
    library: Any = SimpleNamespace(folder=tmp_path)
    (tmp_path / "1F408.svg").write_text("<svg/>")
    before = pictures_hash(library, ["1F408"])
    (tmp_path / "1F408.svg").write_text("<svg></svg>")
    assert pictures_hash(library, ["1F408"]) != before


def test_names_from_unicode_are_an_input_of_what_has_them() -> None:
    stages = {stage.name: stage.inputs for stage in setup_stages(from_nothing=True)}
    assert {stages[name].get("unicode") for name in ("corpus", "renderer_weights")} == {unicodedata.unidata_version}


class Lengths:
    """Embed a text as its length, at most a number of times."""

    identity = "lengths"

    def __init__(self, calls: int = 99) -> None:
        self._calls = calls

    async def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not self._calls:
            raise AssertionError("one call too many")
        self._calls -= 1
        return np.array([[len(text), 1] for text in texts], np.float32)


async def test_embeddings_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")
    with pytest.raises(SetupFault, match="0 of 2 embeddings of texts could be written"):
        await embed_in_parts(["a", "bc", "a"], Lengths(), tmp_path / "full", "texts")


async def test_embeddings_are_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_EMBEDDED_AT_ONCE", 2)
    texts = ["a", "bc", "def", "ghij", "klmno"]
    await embed_in_parts(texts[:4], Lengths(2), tmp_path, "texts")
    (file,) = tmp_path.iterdir()
    with np.load(file) as kept:
        assert kept["rows"][:, 0].tolist() == [1, 2, 3, 4]
    await embed_in_parts(texts, Lengths(1), tmp_path, "texts")
    with np.load(file) as kept:
        assert kept["rows"][:, 0].tolist() == [1, 2, 3, 4, 5]
