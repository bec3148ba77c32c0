"""The stages of the cold start on a tiny policy: an adapter from rows, then a policy that holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from agent_fakes import CHATML
from published_helpers import sft_row, write_lines
from safetensors.torch import load_file
from tiny_qwen3 import build_model, build_tokenizer

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.small import weights
from genevolve_ray.small.made_files import MadeStage
from genevolve_ray.small.parts import file_sha256
from genevolve_ray.small.stages import SetupStage, StagedSetup
from genevolve_ray.small.training import cold_start


class Reports:
    """Keep what is reported."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def begin(self, stage: SetupStage, why: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None:
        self.told.append((what, done, total))

    def end(self, stage: SetupStage, made: MadeStage) -> None: ...


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "SETTINGS", cold_start.SETTINGS | {"max_rows": 8, "threads": 1})


def write_base(folder: Path) -> None:
    build_model(folder, seed=0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    folder.mkdir()
    write_lines(folder / "train.jsonl", [sft_row(number) for number in range(9)])


def test_rows_become_an_adapter_and_the_adapter_a_policy(tmp_path: Path) -> None:
    last = [stage for stage in weights.trained_stages() if stage.name in ("cold_start", "policy")]
    base = SetupStage("base", "a tiny policy", lambda work: write_base(work.out))
    rows = SetupStage("rows", "rows", lambda work: write_rows(work.out))
    stages = [base, rows, *last]
    reports = Reports()
    assert StagedSetup(stages, tmp_path).run(reports) == ["base", "rows", "cold_start", "policy"]
    assert [(done, total) for _, done, total in reports.told] == [(0, 2), (1, 2), (2, 2)]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "policy"))
    assert before.keys() == after.keys()
    assert any((before[name].bfloat16() != after[name]).any() for name in before if name.endswith("proj.weight"))
    made, record = tmp_path / "cold_start", json.loads((tmp_path / "cold_start/provenance.json").read_bytes())
    assert {factor.dtype for factor in load_file(made / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert record["sha256"] == {name: file_sha256(made / name) for name in record["sha256"]}
    assert record["rows_sha256"] == file_sha256(tmp_path / "rows/train.jsonl")
    assert {"adapter_config.json", "adapter_model.safetensors", "provenance.json"} <= {p.name for p in made.iterdir()}


def test_a_packed_adapter_continues_and_its_record_has_both_trainings_without_paths(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_rows(tmp_path / "rows")
    first, second = (tmp_path / name for name in ("first", "second"))
    for out, start, remark in ((first, None, ""), (second, str(first / "packed"), "the second part")):
        lora = cold_start.SETTINGS["lora"] | {"start": start}
        config = SftRowsConfig.model_validate(cold_start.SETTINGS | {"lora": lora, "max_steps": 1})
        watcher = cold_start.ReportedSft(lambda what, done, total: None)
        train_on_rows([tmp_path / "rows/train.jsonl"], tmp_path / "base", out, config, watcher)
        cold_start.pack_cold_start(out, tmp_path / "rows", tmp_path / "base", out / "packed", remark)
    record = json.loads((second / "packed/provenance.json").read_bytes())
    assert record["started_from"] == json.loads((first / "packed/provenance.json").read_bytes())
    assert record["remark"] == "the second part" and (record["steps"], record["trained_on"]) == (1, 4)
    assert str(tmp_path) not in json.dumps(record)
