"""The statistics of the benchmarks, the shapes they replay, and a command line that answers at once."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, parse
from benchmarks.episodes import TurnShape, one_turn, turn_shapes
from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat
from benchmarks.memory import filled, one_core
from benchmarks.report import busy, print_table
from benchmarks.step import phases
from genevolve_ray.records.ledger import SpanKind, TokenLedger


def test_spread_is_median_and_range() -> None:
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(median=3.0, low=1.0, high=5.0, count=3)


def test_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine was three times slower in the second repetition: the ratio does not see it.
    assert paired_ratio([2.0, 6.0], [4.0, 12.0]) == Spread(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize("limits", [[1.0], [1.0, 0.0], []])
def test_ratio_needs_a_positive_limit_for_each_value(limits: list[float]) -> None:
    with pytest.raises(ValueError, match="limits"):
        paired_ratio([1.0, 2.0], limits)


def test_goals_have_a_side() -> None:
    assert Goal(0.7, "at least").met(0.7)
    assert not Goal(0.7, "at least").met(0.69)
    assert Goal(0.7, "at most").met(0.7)
    assert not Goal(0.7, "at most").met(0.71)


def test_goal_is_about_the_ratio_and_without_one_about_the_value() -> None:
    value, ratio = Spread.of([5.0]), Spread.of([0.9])
    assert Row("a", value, "s", ratio, "limit", Goal(1.0, "at most")).met
    assert not Row("a", value, "s", goal=Goal(1.0, "at most")).met
    assert Row("a", value, "s").met is None


def test_stopwatch_leaves_the_warm_up_out() -> None:
    watch = Stopwatch(warm_up=1)
    for seconds in (9.0, 1.0, 2.0):
        watch.add("work", seconds)
    assert watch.seconds("work") == [1.0, 2.0]
    assert watch.rates("work", [90.0, 10.0, 10.0]) == [10.0, 5.0]


def test_repeat_adds_the_warm_up() -> None:
    seen: list[int] = []
    repeat(3, seen.append)
    assert seen == [0, 1, 2, 3]


def test_replayed_turns_are_those_of_the_ledger() -> None:
    ledger = TokenLedger()
    ledger.append_context([1, 2, 3], SpanKind.PROMPT)
    ledger.append_policy([4], [-0.1], [0], SpanKind.THINK)
    ledger.append_policy([5, 6], [-0.1, -0.1], [0, 0], SpanKind.TOOL_CALL)
    ledger.append_context([7], SpanKind.OBSERVATION)
    ledger.append_policy([8], [-0.1], [0], SpanKind.ANSWER)
    ledger.append_context([9], SpanKind.OBSERVATION)
    turns = turn_shapes(ledger)
    assert turns == [TurnShape((1, 2, 3), 3), TurnShape((7,), 1)]
    assert one_turn(turns) == [TurnShape((1, 2, 3), 4)]


def test_phases_leave_out_the_first_step_and_count_a_missing_phase_as_nothing() -> None:
    metrics = [
        {"step": 1, "seconds_rollout": 50.0, "seconds_step": 100.0},
        {"step": 2, "seconds_rollout": 6.0, "seconds_step": 8.0},
        {"step": 3, "seconds_rollout": 6.0, "seconds_validation": 4.0, "seconds_step": 12.0},
    ]
    whole, rollout, validation = phases(metrics)
    assert whole.value == Spread(10.0, 8.0, 12.0, 2)
    assert whole.met
    assert rollout.ratio == Spread(0.625, 0.5, 0.75, 2)
    assert validation.value == Spread(2.0, 0.0, 4.0, 2)


def test_busy_machine_is_named() -> None:
    assert busy(2, 0.3) == ""
    assert "load 3.0 on 2 cores" in busy(2, 3.0)


def test_table_shows_ratio_goal_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("episodes", Spread.of([1234.0]), "tokens/s", Spread.of([0.5]), "raw", Goal(0.7, "at least"))
    print_table({"episodes": [row.as_json()]})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("1,234", "0.5", ">= 0.7", "NO"))


def test_repeats_follow_the_size_unless_given() -> None:
    assert parse(["--quick"]).repeats == 2
    assert parse(["--quick", "--repeats", "4"]).repeats == 4
    assert parse([]).only is None


def test_help_names_every_benchmark_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib\n"
        "from benchmarks.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers', 'trl', 'pydantic'} & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in NAMES)
    assert shown.splitlines()[-1] == "[]"


def test_unknown_policy_folder_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "learner", "--policy", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {tmp_path} has no config.json"


def test_smoke_script_without_gpu_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from benchmarks.gpu_smoke import main

    assert main([]) == 2


def test_transfer_script_without_gpu_is_skipped_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from benchmarks.gpu_transfer import main

    assert main([]) == 2
    assert "skipped: --way ipc with --ranks 1 and --workers 1 needs 1 GPUs" in capsys.readouterr().err
    assert main(["--way", "nccl", "--workers", "3"]) == 2
    assert "needs 4 GPUs" in capsys.readouterr().err


def test_smoke_script_runs_on_a_cpu(tmp_path: Path) -> None:
    import json

    from benchmarks.gpu_smoke import main

    out = tmp_path / "smoke.json"
    assert main(["--device", "cpu", "--tiny", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["parity_bf16"]["mean"] <= result["parity_bf16"]["limit"]
    assert result["weight_copy"]["equal"]


def test_the_measured_memory_is_full_of_different_bundles() -> None:
    memory = filled(20, dimension=8)
    assert len(memory) == memory.config.capacity == 20
    for entry, vector in zip(memory.rows(), memory.vectors.copy(), strict=True):
        found = memory.retrieve(vector, "another", 0)
        assert found is not None
        assert found.number == entry.number


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind a process to a core")
def test_one_core_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_learner_script_runs_on_a_cpu(tmp_path: Path) -> None:
    import json

    from benchmarks.gpu_learner import main, peak_tflops

    out = tmp_path / "learner.json"
    arguments = ["--device", "cpu", "--tiny", "--lora", "4", "--checkpointing", "--kl", "--json", str(out)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    # Four causal sequences of 128 tokens, two layers of two heads of 32: six operations per pair of the half square.
    assert result["flops"]["attention"] == 6 * 4 * 128**2 * 2 * 32 * 2
    assert result["mfu"] is None and result["profile"][0]["share"] > 0
    settings = argparse.Namespace(peak_tflops=None)
    assert peak_tflops(settings, "NVIDIA H100 80GB HBM3") == 989.0
    assert peak_tflops(settings, "NVIDIA H100 PCIe") == 756.0


def test_learner_script_without_gpu_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from benchmarks.gpu_learner import main

    assert main([]) == 2


def test_stages_of_an_engine_have_names_of_their_own_and_a_trial_needs_no_gpu() -> None:
    from benchmarks.gpu_engine import STAGES
    from benchmarks.gpu_parts import size_of

    assert len({name for name, _ in STAGES}) == len(STAGES) == 6
    assert size_of(Options(Path("policy"), quick=True)).device == "cpu"


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("stage", ["engine: sleep and wake", "engine: weight sync"])
def test_a_stage_of_an_engine_rehearses_on_a_cpu(stage: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_engine", "--quick", "--repeats", "1", "--only", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
