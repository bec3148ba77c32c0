"""Files on a node: unpacked once, checked, and never taken for other weights of the same number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from genevolve_ray.cluster.transports import host
from genevolve_ray.cluster.transports.host import FilesPayload, WeightsDamaged, forget_weights, run_folder, unpack
from genevolve_ray.evolution.weights import remove_folder


@pytest.fixture(autouse=True)
def _node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a node of its own, and what lies in the object store is handed over as it is."""
    monkeypatch.setattr(ray, "get", lambda contents: contents)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    root = tmp_path / "node"
    root.mkdir()
    monkeypatch.setattr(host, "run_folder", lambda: root)


def shipped(text: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, node: str = "there") -> FilesPayload:
    """Return what `pack` makes of a version of one file, as if it came from another node."""
    folder = tmp_path / "sent" / text.decode() / "v000001"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(text)
    monkeypatch.setattr(ray, "put", lambda data: np.array(data))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))
    files = host.pack(str(folder), elsewhere=True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    return files


def test_what_was_sent_lies_on_the_other_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Path(unpack(shipped(b"one", monkeypatch, tmp_path)))
    assert (found / "adapter_model.safetensors").read_bytes() == b"one"
    here = shipped(b"two", monkeypatch, tmp_path, node="here")
    assert unpack(here) == here.path, "on the learner's node they are read in place"


def test_the_same_number_of_another_run_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (shipped(text, monkeypatch, tmp_path) for text in (b"one", b"two"))
    folders = [Path(unpack(files)) for files in (first, second, first)]
    assert [(f / "adapter_model.safetensors").read_bytes() for f in folders] == [b"one", b"two", b"one"]
    assert folders[0] == folders[2]


def test_damage_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = shipped(b"one", monkeypatch, tmp_path)
    contents = (np.frombuffer(b"onf", dtype=np.uint8),)
    with pytest.raises(WeightsDamaged, match="adapter_model.safetensors of v000001.* arrived damaged"):
        unpack(FilesPayload(sent.path, sent.node, sent.digests, contents))


def test_runs_that_share_a_node_share_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "run_folder", run_folder)
    folders = []
    ids = [
        ("node 1", "job 1", "one"),
        ("node 1", "job 1", "two"),
        ("node 2", "job 1", "one"),
        ("node 1", "job 2", "one"),
    ]
    for node, job, name in ids:
        context = SimpleNamespace(namespace=name, get_node_id=lambda n=node: n, get_job_id=lambda j=job: j)
        monkeypatch.setattr(ray, "get_runtime_context", lambda c=context: c)
        folders.append(run_folder())
        assert run_folder() == folders[-1], "all processes of a run have the same one"
    assert len(set(folders)) == 4
    forget_weights()
    assert [folder.exists() for folder in folders] == [True, True, True, False]
    for folder in folders:
        remove_folder(folder)
