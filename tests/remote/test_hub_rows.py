"""Rows of data sets on a hub: which files a name means, offline too, and one line for what cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import Hub, fake_hub

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.remote.hub_rows import hub_files, is_hub_data, local_rows

ROWS = b'{"messages": []}\n'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub() as found:
        found.datasets["org/rows"] = {"README.md": b"x", "train.jsonl": ROWS, "eval.jsonl": ROWS + ROWS}
        found.datasets["org/shards"] = {
            "data/train-00000-of-00002.parquet": b"1",
            "data/train-00001-of-00002.parquet": b"2",
        }
        found.datasets["org/one"] = {"rows.json": b"[]"}
        found.datasets["org/unclear"] = {"a.jsonl": ROWS, "b.jsonl": ROWS}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def test_a_name_of_the_hub_is_told_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/here").touch()
    for source in ("hf://datasets/org/rows/train.jsonl", "hf:/datasets/org/rows", "org/rows", "org/rows@main"):
        assert is_hub_data(source)
    for source in ("atlas", "org/here", "rows.jsonl", "data/train.jsonl", "a/b/c", "/data/rows"):
        assert not is_hub_data(source)
    assert local_rows("rows.jsonl") == [Path("rows.jsonl")]


def test_a_file_is_downloaded_once(hub: Hub) -> None:
    [file] = hub_files("hf://datasets/org/rows/eval.jsonl")
    assert (file.name, file.read_bytes()) == ("eval.jsonl", ROWS + ROWS)
    [again] = local_rows(Path("hf://datasets/org/rows/eval.jsonl"))
    assert again == file
    assert len([call for call in hub.asked if call.startswith("GET /datasets")]) == 1


def test_a_name_means_the_training_rows(hub: Hub) -> None:
    assert [file.name for file in hub_files("org/rows")] == ["train.jsonl"]
    assert [file.name for file in hub_files("hf://datasets/org/rows@main")] == ["train.jsonl"]
    assert [file.read_bytes() for file in hub_files("org/shards")] == [b"1", b"2"]
    assert [file.read_bytes() for file in hub_files("hf://datasets/org/shards/data")] == [b"1", b"2"]
    assert [file.name for file in hub_files("org/one")] == ["rows.json"]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("org/unclear", "is not clear (a.jsonl, b.jsonl)"),
        ("org/missing", "no such data set or revision"),
        ("hf://datasets/org/rows/test.jsonl", "has no such file"),
        ("hf://datasets/org/rows/folder", "no file of rows there"),
        ("hf://models/org/rows", "write hf://datasets/ORG/NAME/PATH"),
    ],
)
def test_what_cannot_be_had_is_one_line(source: str, named: str, hub: Hub) -> None:
    with pytest.raises(UserFault) as fault:
        hub_files(source)
    assert str(fault.value).startswith(f"{source}: ") and named in str(fault.value)


def test_offline_the_cache_answers_and_what_it_lacks_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = hub_files("org/rows")
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_files("org/rows") == [file]
    assert hub_files("hf://datasets/org/rows/train.jsonl") == [file]
    for source in ("org/shards", "hf://datasets/org/rows/eval.jsonl"):
        with pytest.raises(UserFault, match="not in the cache, and HF_HUB_OFFLINE forbids downloads"):
            hub_files(source)
    assert len(hub.asked) == asked


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits between its tries
    for source in ("org/rows", "hf://datasets/org/rows/train.jsonl"):
        with pytest.raises(InfraFailure, match=f"{source}: the hub cannot be reached"):
            hub_files(source)
