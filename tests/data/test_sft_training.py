"""Fine-tuning on rows: it learns them, holds some back, and says what it left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import CHATML, byte_tokenizer
from published_helpers import ANSWER, sft_row, write_lines, write_parquet
from pydantic import ValidationError
from transformers import AutoTokenizer

from genevolve_ray.agent.profile import load_prompt
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.agent.trained_prompt import PROMPT_FILE
from genevolve_ray.data.sft_config import SftRowsConfig, learner_config, sft_config
from genevolve_ray.data.sft_rows import RowEncoder
from genevolve_ray.data.sft_sets import load_rows
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.learning.build import build_policy
from genevolve_ray.learning.distributed import lone_rank
from genevolve_ray.learning.policy import load_policy
from genevolve_ray.learning.sft import evaluate_sft
from genevolve_ray.records.published.rejections import DataError, RejectionReason, RejectionReport

QUICK = {"dtype": "float32", "lr": 3e-3, "global_batch": 4, "epochs": 4, "token_budget": 4096, "threads": 1}


class Listener:
    """Keeps what a training says."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.steps: list[Any] = []
        self.losses: list[tuple[int, float]] = []
        self.went_on_after = 0

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        self.started.append((report.kept, train, heldout, steps))

    def step(self, step: Any) -> None:
        self.steps.append(step)

    def resumed(self, done: int) -> None:
        self.went_on_after = done

    def heldout(self, done: int, evaluation: Any) -> None:
        self.losses.append((done, evaluation.loss))


def train(tmp_path: Path, model_dir: Path, rows: list[Any], **settings: Any) -> tuple[dict[str, Any], Listener, Path]:
    listener, out = Listener(), tmp_path / "out"
    path = write_lines(tmp_path / "rows.jsonl", rows)
    config = SftRowsConfig.model_validate(QUICK | settings)
    return train_on_rows([path], model_dir, out, config, listener), listener, out


def load(paths: list[Path], report: RejectionReport, **settings: Any) -> tuple[set[str], set[str]]:
    rows = load_rows(paths, RowEncoder(byte_tokenizer(CHATML)), SftRowsConfig.model_validate(settings), report)
    return {row.id for row in rows.train}, {row.id for row in rows.heldout}


def test_the_defaults_are_the_papers() -> None:
    settings = sft_config(SftRowsConfig(), rows=8800)
    assert (settings.steps, settings.lr, settings.weight_decay) == (550, 1e-5, 1e-6)
    assert (settings.warmup_fraction, settings.dtype, SftRowsConfig().cutoff) == (0.02, "bfloat16", 32768)
    assert sft_config(SftRowsConfig(max_steps=7), rows=8800).steps == 7


def test_training_learns_the_rows_and_leaves_a_checkpoint_with_its_reports(tmp_path: Path, model_dir: Path) -> None:
    eval_rows = write_lines(tmp_path / "eval.jsonl", [sft_row(i) for i in (1, 90, 91)])
    rows = [sft_row(i) for i in range(8)] + [b"{", sft_row(9, images=[])]
    made, heard, out = train(tmp_path, model_dir, rows, heldout_paths=[eval_rows])
    # Row 1 asks what a held-out row asks.
    assert heard.started == [(10, 7, 3, 7)]
    assert [done for done, _ in heard.losses] == [0, 2, 4, 6, 7]
    assert heard.losses[-1][1] < 0.7 * heard.losses[0][1]
    assert made["steps"] == len(heard.steps) == math.ceil(4 * 7 / 4)
    report = json.loads((out / "rejections.json").read_text())
    assert report["rejected"] == {"held_out_request": 1, "not_json": 1, "image_count": 1}
    assert json.loads((out / "sft.json").read_text()) == json.loads(json.dumps(made))
    encoder = RowEncoder(AutoTokenizer.from_pretrained(out, local_files_only=True))
    examples = [row.example() for row in load_rows([eval_rows], encoder, SftRowsConfig(), RejectionReport()).train]
    assert evaluate_sft(load_policy(out), examples).loss == pytest.approx(heard.losses[-1][1], rel=0.2)


def test_muon_trains_the_matrices_too(tmp_path: Path, model_dir: Path) -> None:
    rows = [sft_row(i) for i in range(6)]
    made, heard, _ = train(tmp_path, model_dir, rows, optimizer="muon", heldout_fraction=0, epochs=6)
    assert made["settings"]["optimizer"] == "muon"
    assert heard.steps[-1].loss < 0.8 * heard.steps[0].loss
    _, adamw, _ = train(tmp_path / "adamw", model_dir, rows, heldout_fraction=0, epochs=6)
    assert heard.steps[0].loss == adamw.steps[0].loss and heard.steps[-1].loss != adamw.steps[-1].loss


@pytest.mark.parametrize("given", [{"ranks": 2}, {"dtype": "bfloat16"}, {"offload": True}])
def test_muon_takes_whole_weights_in_one_process(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="optimizer=muon needs ranks=1, dtype=float32 and offload=false, got"):
        SftRowsConfig.model_validate({"dtype": "float32", "optimizer": "muon", **given})


def test_a_number_of_rows_is_drawn_by_seed_after_the_held_out_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [sft_row(i) for i in range(40)])
    every, away = load([path], RejectionReport(), heldout_fraction=0.2)
    drawn = {}
    for seed in (1, 2):
        drawn[seed], heldout = load([path], RejectionReport(), heldout_fraction=0.2, max_rows=10, seed=seed)
        assert len(drawn[seed]) == 10 and not drawn[seed] & heldout
    assert drawn[1] <= every and drawn[1] != drawn[2]
    assert load([path], RejectionReport(), heldout_fraction=0.2, max_rows=10) == (drawn[1], away)
    assert load([path], RejectionReport(), heldout_fraction=0.2, max_rows=99) == (every, away)


def test_bfloat16_trains_on_float32_weights_and_saves_bfloat16(tmp_path: Path, model_dir: Path) -> None:
    from safetensors import safe_open

    _, heard, out = train(
        tmp_path, model_dir, [sft_row(i) for i in range(6)], dtype="bfloat16", heldout_fraction=0, max_steps=2
    )
    assert heard.losses == []
    assert len(heard.steps) == 2 and all(math.isfinite(step.loss) for step in heard.steps)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_rank_rounds_what_several_ranks_round(tmp_path: Path, model_dir: Path, dtype: str) -> None:
    rows = [sft_row(i) for i in range(4)]
    _, heard, _ = train(tmp_path, model_dir, rows, dtype=dtype, heldout_fraction=0, max_steps=1)
    config = SftRowsConfig.model_validate(QUICK | {"dtype": dtype})
    model, _ = build_policy(model_dir, learner_config(config), lone_rank("cpu"))
    encoder = RowEncoder(AutoTokenizer.from_pretrained(model_dir, local_files_only=True))
    made = load_rows([tmp_path / "rows.jsonl"], encoder, SftRowsConfig(heldout_fraction=0), RejectionReport()).train
    examples = [row.example() for row in made]
    expected = evaluate_sft(model, examples, config.token_budget, config.dtype, lone_rank("cpu")).loss
    assert heard.steps[0].loss == pytest.approx(expected, rel=1e-6)


def test_the_same_seed_trains_the_same_weights(tmp_path: Path, model_dir: Path) -> None:
    rows = [sft_row(i) for i in range(6)]
    outs = []
    for name in ("a", "b"):
        _, _, out = train(tmp_path / name, model_dir, rows, max_steps=2)
        outs.append((out / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


def test_held_out_rows_are_split_by_request_whatever_their_order(tmp_path: Path) -> None:
    made = [sft_row(i) for i in range(40)]
    other = [sft_row(i, ANSWER) for i in range(40)]  # The same requests, answered in another way.
    lines = write_lines(tmp_path / "a.jsonl", [*made, *other])
    shuffled = write_parquet(tmp_path / "b.parquet", [*other[::-1], *made])
    train_ids, heldout_ids = load([lines], RejectionReport(), heldout_fraction=0.3)
    assert load([shuffled], RejectionReport(), heldout_fraction=0.3) == (train_ids, heldout_ids)
    assert len(train_ids) + len(heldout_ids) == 80
    # Both answers to a request are on one side.
    assert len(heldout_ids) % 2 == 0 and heldout_ids


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path: Path) -> None:
    path, report = write_lines(tmp_path / "rows.jsonl", [sft_row(1, images=[])]), RejectionReport()
    with pytest.raises(DataError, match=r"(?s)no row to train on in .*rows\.jsonl: 1 rows, 0 kept.*image_count: 1"):
        load([path], report)
    assert report.rejected == {RejectionReason.IMAGE_COUNT: 1}


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    from tiny_qwen3 import build_model

    build_model(tmp_path / "model", seed=0)
    with pytest.raises(DataError, match="chat_template|chat template"):
        train(tmp_path, tmp_path / "model", [sft_row(1)])
    assert not (tmp_path / "out").exists()


def test_the_words_of_the_rows_stay_with_the_model_and_are_compared_with_the_profile(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = sft_row()["messages"][0]["content"]
    made, _, out = train(tmp_path, model_dir, [sft_row()], max_steps=1)
    assert (out / PROMPT_FILE).read_text() == words
    assert "is not that of profile 'release': line 1" in made["prompt_difference"]
    assert made["prompt_difference"] in caplog.text
    same = {"name": "rows", "prompt": str(out / PROMPT_FILE)}
    made, _, _ = train(tmp_path / "again", model_dir, [sft_row()], max_steps=1, profile=same)
    assert (made["profile"], made["prompt_difference"]) == ("rows", "")
    assert load_prompt(read_profile(same).prompt) == words
