"""Fine-tuning a model that sees: it learns what only pictures tell, and its checkpoint serves an engine."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from noisy_pictures import encoded, noise_file
from PIL import Image
from published_helpers import CALL, OBSERVATION, turn, write_lines
from seeing_rows import TWO_SEARCHES, as_folder, as_parquet, pictured_rows
from zoo import build

from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_pictures import RowExamples, RowPictures
from genevolve_ray.data.sft_rows import RowEncoder
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.engines.config import VllmConfig
from genevolve_ray.engines.protocol import PromptImage
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.trajectories import read_sft
from genevolve_ray.tools.showing import Observations

SEES = {"extends": "release", "observations": {"images": True, "max_side": 128}}
QUICK = {
    "dtype": "float32", "lr": 3e-3, "global_batch": 3, "epochs": 4, "token_budget": 400, "threads": 1,
    "images": "vision", "profile": SEES, "heldout_fraction": 0.0,
}  # fmt: skip


class Silent:
    """Hears a training and keeps its losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.heldouts: list[tuple[int, float]] = []

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        self.report, self.counts = report, (train, heldout, steps)

    def resumed(self, done: int) -> None:
        self.went_on_after = done

    def step(self, step: Any) -> None:
        self.losses.append(step.loss)

    def heldout(self, done: int, evaluation: Any) -> None:
        self.heldouts.append((done, evaluation.loss))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("seeing") / "model")


def train(file: Path, model: Path, out: Path, **settings: Any) -> tuple[dict[str, Any], Silent]:
    heard = Silent()
    return train_on_rows([file], model, out, SftRowsConfig.model_validate(QUICK | settings), heard), heard


def towers(*folders: Path) -> list[str]:
    """Return a digest of each model's vision tower."""
    found = []
    for folder in folders:
        state = load_policy(folder).state_dict()
        parts = [state[name].numpy().tobytes() for name in sorted(state) if ".visual." in name]
        found.append(hashlib.sha256(b"".join(parts)).hexdigest())
    return found


@pytest.mark.parametrize("write", [as_folder, as_parquet])
def test_rows_with_pictures_are_learned_and_the_checkpoint_serves_the_engine(
    model: Path, tmp_path: Path, write: Any
) -> None:
    file = write(tmp_path / "rows", *pictured_rows(6))
    made, heard = train(file, model, tmp_path / "out", heldout_fraction=0.4, seed=2, epochs=6)
    assert heard.losses[-1] < 0.6 * heard.losses[0]
    assert heard.heldouts[-1][1] < heard.heldouts[0][1] and heard.counts[1] >= 1
    assert made["pictures"] == {"max_side": 128, "max_pixels": None, "trained_on": 3 * heard.counts[0]}
    assert towers(model) == towers(tmp_path / "out"), "frozen"
    assert json.loads((tmp_path / "out/rejections.json").read_text())["rejected"] == {}


async def scored(engine: Any, out: Path, file: Path) -> tuple[float, float]:
    """Return the loss of a row's assistant turns by an engine on the checkpoint, and by the training."""
    from genevolve_ray.learning.sft import evaluate_sft

    pictures = RowPictures(out, Observations(**SEES["observations"]))  # type: ignore[arg-type]
    encoder, report = RowEncoder(load_tokenizer(out), pictures=pictures), RejectionReport()
    row = next(encoder.encode_all(read_sft([file], report), report))
    examples = RowExamples(pictures, report).of([row])
    media, start = [], 0
    for picture, its in zip(row.pictures, pictures.opened([p.place for p in row.pictures]), strict=True):
        start = row.tokens.index(pictures.tokens.id, start)
        data, end = encoded(its), start + pictures.tokens.count(picture.grid)
        sha = hashlib.sha256(data).hexdigest()
        media.append(PromptImage(span=MediaSpan(start=start, end=end, sha256=sha, grid=picture.grid), data=data))
        start = end
    try:
        found = await engine.score(list(row.tokens), media)
    finally:
        await engine.close()
    said = [found[place - 1] for start, end in row.spans for place in range(start, end)]
    return -sum(said) / len(said), evaluate_sft(load_policy(out), examples).loss


async def test_the_engine_scores_a_row_as_the_training_did(model: Path, tmp_path: Path) -> None:
    file, out = as_folder(tmp_path / "rows", *pictured_rows(2)), tmp_path / "out"
    train(file, model, out, epochs=1)
    mine, theirs = await scored(TransformersEngine(out), out, file)
    assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.e2e
async def test_vllm_scores_a_row_as_the_training_did(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.engines.vllm_settings import vllm_environment

    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)  # Ends with the test.
    file, out = as_folder(tmp_path / "rows", *pictured_rows(2)), tmp_path / "out"
    train(file, model, out, epochs=2, tower="trained")
    engine = await VllmEngine.create(out, max_num_seqs=4, config=VllmConfig(max_images=3, kv_cache_mib=64))
    mine, theirs = await scored(engine, out, file)
    assert mine == pytest.approx(theirs, abs=1e-4)


def colored_rows(count: int) -> tuple[list[dict[str, Any]], list[list[bytes]]]:
    """Return rows whose answers differ by what their pictures show, and by nothing in their texts."""
    rows, files = [], []
    for number in range(count):
        red = number % 2
        answer = turn("answer", {"gen_prompt": ("red", "blue")[red], "reference_images": []})
        made, _ = pictured_rows(1, CALL, OBSERVATION, answer)
        made[0]["id"] = str(number)
        made[0]["images"] = [f"images/{number}.png"]
        rows.append(made[0])
        files.append([encoded(Image.new("RGB", (64, 64), ((255, 0, 0), (0, 0, 255))[red]))])
    return rows, files


def test_a_trained_tower_moves_and_what_only_pictures_tell_is_learned(model: Path, tmp_path: Path) -> None:
    rows, files = colored_rows(6)
    settings = {"epochs": 60, "global_batch": 6, "token_budget": 4096, "lr": 1e-2, "tower": "trained"}
    made, heard = train(as_folder(tmp_path / "rows", rows, files), model, tmp_path / "out", **settings)
    others = as_folder(tmp_path / "others", rows, [files[1], files[0]] * 3)
    _, swapped = train(others, tmp_path / "out", tmp_path / "again", max_steps=1)
    assert swapped.losses[0] > 10 * heard.losses[-1], "the other color's picture: the learned answer is wrong"
    before, after = towers(model, tmp_path / "out")
    assert before != after and made["settings"]["tower"] == "trained"


def test_steps_do_not_depend_on_micro_batches(model: Path, tmp_path: Path) -> None:
    file = as_folder(tmp_path, *pictured_rows(4))
    losses = [
        train(file, model, tmp_path / str(budget), token_budget=budget, global_batch=4, epochs=2)[1].losses
        for budget in (1, 10_000)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_layers_that_are_computed_again_change_nothing(model: Path, tmp_path: Path) -> None:
    file = as_folder(tmp_path, *pictured_rows(3))
    losses = [
        train(file, model, tmp_path / str(again), gradient_checkpointing=again, tower="trained", epochs=3)[1].losses
        for again in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_bfloat16_passes_see(model: Path, tmp_path: Path) -> None:
    file = as_folder(tmp_path, *pictured_rows(3))
    _, heard = train(file, model, tmp_path / "out", dtype="bfloat16", max_steps=2, tower="trained")
    assert len(heard.losses) == 2 and all(loss == loss for loss in heard.losses)


def test_nothing_left_to_train_on_is_an_error(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, files = pictured_rows(2, *TWO_SEARCHES)
    file = as_folder(tmp_path, rows, files)

    class Losing(Silent):
        def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
            for row in rows:
                (tmp_path / row["images"][0]).unlink()

    config = SftRowsConfig.model_validate(QUICK)
    with pytest.raises(DataError, match=r"(?s)no row is left to train on.*missing_image: 2"):
        train_on_rows([file], model, tmp_path / "out", config, Losing())
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(("images", "shown", "said"), [("vision", False, "no pictures"), ("text", True, "pictures")])
def test_a_profile_that_shows_otherwise_is_a_warning(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, images: str, shown: bool, said: str
) -> None:
    file = as_folder(tmp_path, *pictured_rows(1))
    profile = {"extends": "release", "name": "mine", "observations": {"images": shown}}
    with caplog.at_level(logging.WARNING):
        train(file, model, tmp_path / "out", images=images, profile=profile, max_steps=1)
    assert f"images={images}, but runs of profile 'mine' show the policy {said} (profile.obs" in caplog.text


def test_a_tower_is_trained_on_pictures_only() -> None:
    with pytest.raises(ValueError, match="tower=trained needs images=vision, got images=text"):
        SftRowsConfig(tower="trained")


def test_a_model_that_does_not_see_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [pictured_rows(1)[0][0]])
    with pytest.raises(DataError, match=r"blind: images=vision, but the model does not see"):
        train(file, build("qwen3", tmp_path / "blind"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_seed_trains_the_same_weights(model: Path, tmp_path: Path) -> None:
    rows, files = pictured_rows(3)
    files[1][0] = noise_file(5, kind="JPEG")
    outs = []
    for name, write in (("lines", as_folder), ("columns", as_parquet)):
        train(write(tmp_path / name, rows, files), model, tmp_path / f"out-{name}", max_steps=2)
        outs.append(load_policy(tmp_path / f"out-{name}").state_dict())
    assert all(torch.equal(tensor, outs[1][name]) for name, tensor in outs[0].items())
