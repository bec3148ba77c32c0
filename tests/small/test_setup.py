"""The stages of the real setup fit together, and the quick ones make what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from genevolve_ray.commands.small import SetupProgress
from genevolve_ray.errors import UserFault
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small import setup, stages, weights
from genevolve_ray.small.parts import file_sha256, find_part
from genevolve_ray.small.preset import moved_values, preset_values, tools_config
from genevolve_ray.small.setup import setup_stages
from genevolve_ray.small.stages import PRESET_FOLDER, SetupFault, SetupStage, StagedSetup, StageWork
from genevolve_ray.small.training import cold_start, image_text, renderer
from genevolve_ray.small.training.settings import SmallTrainings
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


def test_trainings_and_their_rows_are_made_from_nothing_alone() -> None:
    more = set(named(setup_stages(from_nothing=True))) - set(named(setup_stages()))
    assert more == {"rows", "cold_start", "renderer_weights", "image_text_weights"}


@pytest.mark.parametrize(
    ("place", "name", "value", "again"),
    [
        (renderer, "RendererTraining", partial(renderer.RendererTraining, seed=7), "renderer_weights"),
        (image_text, "ImageTextTraining", partial(image_text.ImageTextTraining, steps=7), "image_text_weights"),
        (cold_start, "SETTINGS", cold_start.SETTINGS | {"lr": 7}, "cold_start"),
        (weights, "world_code", lambda: "other", "rows"),
    ],
    ids=["renderer", "image_text", "cold_start", "rows"],
)
def test_another_default_makes_its_training_again(
    place: ModuleType, name: str, value: object, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {stage.name: stage.inputs for stage in weights.trained_stages()}
    monkeypatch.setattr(place, name, value)
    after = {stage.name: stage.inputs for stage in weights.trained_stages()}
    assert [stage for stage in before if before[stage] != after[stage]] == [again]


def test_a_changed_module_of_the_world_makes_corpus_and_requests_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.name: stage.inputs for stage in setup_stages()}
    monkeypatch.setattr(stages, "file_sha256", lambda path: "other" if path.name == "clues.py" else "same")
    monkeypatch.setattr(setup, "world_code", stages.world_code.__wrapped__)
    after = {stage.name: stage.inputs for stage in setup_stages()}
    assert [stage for stage in before if before[stage] != after[stage]] == ["corpus", "requests"]


def test_a_damaged_model_folder_is_assembled_again_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []

    def train(library: object, embedder: Path, work: Path, config: object, progress: object) -> Path:
        trained.append(work)
        (work / "weights").mkdir(parents=True)
        (work / "weights/unet.safetensors").write_text("u")
        return work / "weights"

    def assemble(source: Path, embedder: Path, out: Path) -> None:
        shutil.copytree(source, out)

    monkeypatch.setattr(renderer, "train_renderer", train)
    monkeypatch.setattr(renderer, "assemble_renderer", assemble)
    monkeypatch.setattr(weights, "locate", lambda name: tmp_path)
    monkeypatch.setattr(weights, "PictureLibrary", lambda folder: None)
    made = [stage for stage in weights.trained_stages() if stage.name in ("renderer_weights", "renderer")]
    every = [SetupStage("embedder", "MiniLM", lambda work: work.out.mkdir()), *made]
    screen = SetupProgress(Console(quiet=True))
    assert StagedSetup(every, tmp_path / "s").run(screen) == ["embedder", "renderer_weights", "renderer"]
    (tmp_path / "s/renderer/unet.safetensors").write_text("damaged")
    assert StagedSetup(every, tmp_path / "s").run(screen) == ["renderer"] and len(trained) == 1


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
    assert first.keys() == {"recipe", "tower.safetensors", weights.PROVENANCE}
    assert weights.prebuilt_inputs("image_text") != first


@pytest.mark.parametrize("name", ["image_text", "renderer", "cold_start"])
def test_weights_are_those_of_their_record(shipped: Path, name: str) -> None:
    assert weights.prebuilt(name) == shipped and weights._weights(name) == shipped / "tower.safetensors"
    (shipped / "tower.safetensors").write_bytes(b"2")
    with pytest.raises(SetupFault, match=r"tower\.safetensors: sha256 is [0-9a-f]{64}, provenance\.json names"):
        weights.prebuilt(name)
    (shipped / "tower.safetensors").unlink()
    with pytest.raises(SetupFault, match="sha256 is none"):
        weights.prebuilt(name)


@pytest.mark.parametrize("name", ["image_text", "renderer", "cold_start"])
def test_what_ships_is_what_its_record_names(name: str) -> None:
    if not weights._prebuilt_folder(name).exists():
        pytest.skip("this installation has no weights")
    files = {path.name for path in weights.prebuilt(name).iterdir()}
    assert files == weights.prebuilt_inputs(name).keys() - {"recipe"}


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"sha256": 1}'])
def test_a_record_without_hashes_is_named(shipped: Path, record: str) -> None:
    (shipped / weights.PROVENANCE).write_text(record)
    with pytest.raises(SetupFault, match=r"provenance\.json names no hashes"):
        weights.prebuilt("renderer")


def test_a_finished_cold_start_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "train_cold_start", None)
    monkeypatch.setattr(cold_start, "pack_cold_start", lambda trained, rows, base, out: shutil.copytree(trained, out))
    place = work(tmp_path, "cold_start")
    place.kept.mkdir()
    for name in ("sft.json", "adapter_model.safetensors"):
        (place.kept / name).write_text(name)
    weights._train_cold_start(SmallTrainings(), place)
    assert (place.out / "adapter_model.safetensors").is_file() and (place.kept / "sft.json").is_file()


def test_a_cold_start_without_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="lora=None of cold_start: the cold start of small trains an adapter"):
        SmallTrainings.model_validate({"cold_start": {"lora": None}})


def test_an_adapter_without_a_record_is_refused_before_the_training(tmp_path: Path) -> None:
    trainings = SmallTrainings.model_validate({"cold_start": {"lora": {"start": str(tmp_path)}}})
    with pytest.raises(UserFault, match=rf"{tmp_path} as the start of cold_start: no provenance.json there"):
        weights._train_cold_start(trainings, work(tmp_path, "cold_start"))


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
    files = {Path(file.path).name for file in find_part("minilm").files}
    assert {path.name for path in place.out.iterdir()} == {*files, "ATTRIBUTION", "LICENSES"}


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

    [stage] = [stage for stage in weights.trained_stages() if stage.name == "image_text_weights"]
    assert "renderer" in stage.needs
    new_autoencoder().save_pretrained(tmp_path / "vae")
    pictures = torch.rand(2, 3, 64, 64)
    drawn = autoencoder_view(tmp_path)(pictures)
    assert drawn.shape == pictures.shape and 0 <= drawn.min() < drawn.max() <= 1


def test_the_image_tower_that_ships_is_assembled_for_the_judges(minilm: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    (tmp_path / "embedder").symlink_to(minilm)
    place = work(tmp_path, "image_text")
    weights._assemble_image_text(place)
    assert type(AutoModel.from_pretrained(place.out)).__name__ == "VisionTextDualEncoderModel"


def test_the_weights_that_ship_are_small_and_say_where_they_come_from() -> None:
    folders = [weights.prebuilt(name) for name in ("renderer", "image_text", "cold_start")]
    files = [path for folder in folders for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 12 << 20
    for folder in folders:
        hashes = json.loads((folder / weights.PROVENANCE).read_text())["sha256"]
        shipped = {path.name: path for path in folder.glob("*.safetensors")}
        assert {name: hashes[name] for name in shipped} == {name: file_sha256(path) for name, path in shipped.items()}
