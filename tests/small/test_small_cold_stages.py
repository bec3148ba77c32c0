"""The stages of the cold start on a tiny policy: an adapter from rows, then a policy that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_fakes import CHATML
from published_helpers import sft_row, write_lines
from safetensors.torch import load_file
from tiny_qwen3 import build_model, build_tokenizer

from genevolve_ray.small import weights
from genevolve_ray.small.parts import file_sha256
from genevolve_ray.small.stages import MadeStage, SetupStage, StagedSetup
from genevolve_ray.small.training import cold_start


class Reports:
    """Keep what is reported."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def begin(self, stage: SetupStage, why: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None:
        self.told.append((what, done, total))

    def end(self, stage: SetupStage, made: MadeStage) -> None: ...


def test_rows_become_an_adapter_and_the_adapter_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "SETTINGS", cold_start.SETTINGS | {"max_rows": 8, "threads": 1})

    def base(work: Any) -> None:
        build_model(work.out, seed=0)
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(work.out)

    def rows(work: Any) -> None:
        work.out.mkdir()
        write_lines(work.out / "train.jsonl", [sft_row(number) for number in range(9)])

    last = [stage for stage in weights.trained_stages() if stage.name in ("cold_start", "policy")]
    stages = [SetupStage("base", "a tiny policy", base), SetupStage("rows", "rows", rows), *last]
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
