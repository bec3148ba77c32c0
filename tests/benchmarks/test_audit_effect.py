"""The comparison of audited with unaudited rows: which commands it runs, and what it says of their results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit_effect import main

REWARDS = {"audited": 0.7, "unaudited": 0.5}


class FakeCommands:
    """Leaves the results that the commands of the comparison read, and keeps the arguments."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.fails = ""

    def run(self, command: list[str], check: bool) -> None:
        assert check
        arguments = command[3:]
        self.ran.append(arguments)
        if arguments[0] == self.fails:
            raise subprocess.CalledProcessError(2, command)
        if arguments[0] == "data":
            self.build(Path(arguments[-1]), audited=not any("audit_thresholds" in word for word in arguments))
        elif arguments[0] == "sft":
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True)
            for name in ("provenance.json", "sft.json"):
                (folder / name).write_text("{}")
        else:
            kind = arguments[3].rpartition("-")[2]
            scores: dict[str, float | None] = dict.fromkeys(map(str, range(20)), REWARDS[kind])
            scores |= {"lost": None if kind == "audited" else REWARDS[kind]}
            Path(arguments[-1]).write_text(json.dumps({"rewards": scores, "rewards_greedy": scores}))

    def build(self, folder: Path, *, audited: bool) -> None:
        scales = (
            *("suitability", "reference_grounding", "process"),
            *("skill_integration", "prompt_faithfulness", "supervised_value"),
        )
        journal = folder / "stages/audit-1/rows.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": name, "rejected": None, "audit": json.dumps(dict.fromkeys(scales, 5) | {"process": process})}
            for name, process in (("good", 5), ("bad", 1))
        ]
        journal.write_text("".join(json.dumps({"row": row}) + "\n" for row in rows))
        part = folder / "dataset/sft/train.jsonl"
        part.parent.mkdir(parents=True)
        part.write_text("".join(json.dumps({"id": row["id"]}) + "\n" for row in rows[: 1 if audited else 2]))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    made = FakeCommands()
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


def compare(out: Path) -> int:
    return main(["--out", str(out), "--seeds", "1", "2", "--rows", "2", "--worlds", "3"])


def test_both_data_sets_train_one_base_model_in_the_same_way(commands: FakeCommands, tmp_path: Path) -> None:
    assert compare(tmp_path) == 0
    assert [words[0] for words in commands.ran] == ["sft", *["data", "sft", "bench"] * 4]
    trainings = [words for words in commands.ran if "max_rows=2" in words]
    assert {words[words.index("--model") + 1] for words in trainings} == {str(tmp_path / "base")}
    first, second, *_ = ([word for word in words if str(tmp_path) not in word] for words in trainings)
    assert first == second


def test_the_difference_leaves_out_what_a_service_failed_to_score(commands: FakeCommands, tmp_path: Path) -> None:
    compare(tmp_path)
    made: dict[str, Any] = json.loads((tmp_path / "audit_effect.json").read_text())
    assert made["sampled"]["audited"] == [0.7, 0.7]
    differences = [made["sampled"]["difference"], *made["sampled"]["difference_of_seeds"]]
    assert [round(found["mean"], 6) for found in differences] == [0.2] * 3
    assert made["faults_audited"] == [dict.fromkeys(made["faults_audited"][0], 0.0)] * 2
    assert made["faults_unaudited"][0]["process"] == made["faults_unaudited"][0]["any"] == 0.5


def test_it_resumes_after_a_command_that_failed(commands: FakeCommands, tmp_path: Path) -> None:
    commands.fails = "bench"
    assert compare(tmp_path) == 1
    commands.fails, commands.ran = "", []
    assert compare(tmp_path) == 0
    assert commands.ran[0][0] == "bench"
    commands.ran = []
    assert compare(tmp_path) == 0
    assert not commands.ran
