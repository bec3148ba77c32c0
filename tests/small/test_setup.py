"""The stages of the real setup fit together, and the quick ones make what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small import setup, weights
from genevolve_ray.small.parts import find_part
from genevolve_ray.small.preset import moved_values, preset_values, tools_config
from genevolve_ray.small.setup import setup_stages
from genevolve_ray.small.stages import PRESET_FOLDER, SetupFault, SetupStage, StagedSetup, StageWork
from genevolve_ray.small.training import cold_start
from genevolve_ray.tools.folder.toolbox import FolderTools
from genevolve_ray.tools.protocol import EpisodeContext


def named(stages: list[SetupStage]) -> list[str]:
    return [stage.name for stage in stages]


def work(root: Path, name: str) -> StageWork:
    """Return the places of a stage as a setup gives them."""
    scratch = root / ".work" / name
    scratch.mkdir(parents=True)
    return StageWork(root, scratch / "out", scratch / "kept", lambda what, done, total: None)


@pytest.mark.parametrize("from_nothing", [False, True], ids=["prebuilt", "from nothing"])
def test_the_stages_make_every_folder_that_the_preset_names(from_nothing: bool, tmp_path: Path) -> None:
    staged = StagedSetup(setup_stages(from_nothing=from_nothing), tmp_path)
    wanted = {path.relative_to(PRESET_FOLDER).parts[0] for path in map(Path, texts(preset_values())) if below(path)}
    assert wanted <= staged.stages.keys()
    assert {"policy", "embedder", "corpus", "index", "requests", "renderer", "image_text"} <= wanted


def below(path: Path) -> bool:
    return path.is_relative_to(PRESET_FOLDER)


def texts(value: object) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in texts(one)]
    return [value] if isinstance(value, str) else []


def test_rows_and_cold_start_are_made_from_nothing_alone() -> None:
    more = set(named(setup_stages(from_nothing=True))) - set(named(setup_stages()))
    assert more == {"rows", "cold_start"}


def test_a_part_with_other_content_makes_its_stages_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.name: stage.inputs for stage in setup_stages()}
    monkeypatch.setattr(setup, "_pins", lambda name: f"other {name}")
    after = {stage.name: stage.inputs for stage in setup_stages()}
    assert [name for name in before if before[name] != after[name]] == [
        "parts",
        "base",
        "embedder",
        "corpus",
        "requests",
    ]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ship one file of weights with its record, and another file that the record does not name."""
    monkeypatch.setattr(weights, "_prebuilt_folder", lambda name: tmp_path)
    (tmp_path / "tower.safetensors").write_bytes(b"1")
    (tmp_path / ".stray.safetensors").write_bytes(b"0")
    record = {"sha256": {"tower.safetensors": hashlib.sha256(b"1").hexdigest()}}
    (tmp_path / weights.PROVENANCE).write_text(json.dumps(record))
    return tmp_path


def test_the_weights_that_ship_are_inputs(shipped: Path) -> None:
    first = weights.prebuilt_inputs("image_text")
    (shipped / "tower.safetensors").write_bytes(b"2")
    assert first.keys() == {"recipe", "tower.safetensors"} and weights.prebuilt_inputs("image_text") != first


@pytest.mark.parametrize("name", ["image_text", "renderer", "cold_start"])
def test_weights_are_those_of_their_record(shipped: Path, name: str) -> None:
    assert weights.prebuilt(name) == shipped and weights._weights(name) == shipped / "tower.safetensors"
    (shipped / "tower.safetensors").write_bytes(b"2")
    with pytest.raises(SetupFault, match=r"tower\.safetensors: sha256 is [0-9a-f]{64}, provenance\.json names"):
        weights.prebuilt(name)
    (shipped / "tower.safetensors").unlink()
    with pytest.raises(SetupFault, match="sha256 is none"):
        weights.prebuilt(name)


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"sha256": 1}'])
def test_a_record_without_hashes_is_named(shipped: Path, record: str) -> None:
    (shipped / weights.PROVENANCE).write_text(record)
    with pytest.raises(SetupFault, match=r"provenance\.json names no hashes"):
        weights.prebuilt("renderer")


def test_a_finished_cold_start_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "train_cold_start", None)
    place = work(tmp_path, "cold_start")
    place.kept.mkdir()
    for name in ("sft.json", "adapter_model.safetensors"):
        (place.kept / name).write_text(name)
    weights._train_cold_start(place)
    assert (place.out / "adapter_model.safetensors").is_file() and (place.kept / "sft.json").is_file()


def test_an_installation_without_weights_says_how_to_train_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_prebuilt_folder", lambda name: tmp_path)
    with pytest.raises(SetupFault, match="has no weights.*--from-nothing"):
        weights.prebuilt("renderer")


def test_paths_of_the_preset_move_to_another_folder() -> None:
    values = {"a": {"model": "runs/small/policy"}, "b": ["runs/small/x.jsonl", 1], "c": "runs/smaller/y"}
    moved = {"a": {"model": "/s/policy"}, "b": ["/s/x.jsonl", 1], "c": "runs/smaller/y"}
    assert moved_values(values, Path("/s")) == moved


def test_the_embedder_is_copied_from_the_pinned_files(minilm: Path, tmp_path: Path) -> None:
    place = work(tmp_path, "embedder")
    setup._copy_embedder(place)
    assert {path.name for path in place.out.iterdir()} == {Path(file.path).name for file in find_part("minilm").files}


async def test_a_run_finds_every_vector_in_the_index(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/Mongolia.md").write_text("# Capital\n\nUlaanbaatar.\n\n# Currency\n\ntugrik\n")
    (tmp_path / "embedder").symlink_to(minilm)
    reported: list[tuple[str, int, int]] = []
    places = work(tmp_path, "index")
    place = StageWork(tmp_path, places.out, places.kept, lambda *told: reported.append(told))
    await setup._embed_corpus(place)
    places.out.rename(tmp_path / "index")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}
    assert len(before) == 1 and reported[-1] == ("texts embedded", 2, 2)
    tools = FolderTools(tools_config(tmp_path), MemoryImages()).tools
    episode = EpisodeContext(request=Request(id="r", prompt="p", eval_type=EvalType.KNOWLEDGE))
    observed = await tools["search"].call({"queries": ["capital of Mongolia"]}, episode)
    assert "Ulaanbaatar" in str(observed)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()} == before


def test_the_image_tower_is_trained_on_what_the_renderer_draws(tmp_path: Path) -> None:
    import torch

    from genevolve_ray.small.training.autoencoder import new_autoencoder
    from genevolve_ray.small.training.views import autoencoder_view

    [stage] = [stage for stage in weights.trained_stages() if stage.name == "image_text"]
    assert "renderer" in stage.needs
    new_autoencoder().save_pretrained(tmp_path / "vae")
    pictures = torch.rand(2, 3, 64, 64)
    drawn = autoencoder_view(tmp_path)(pictures)
    assert drawn.shape == pictures.shape and 0 <= drawn.min() < drawn.max() <= 1


def test_the_image_tower_that_ships_is_assembled_for_the_judges(minilm: Path, tmp_path: Path) -> None:
    from genevolve_ray.engines.image_space import ImageSpaceModel

    (tmp_path / "embedder").symlink_to(minilm)
    place = work(tmp_path, "image_text")
    weights._assemble_image_text(place)
    assert ImageSpaceModel(str(place.out), key="model")
