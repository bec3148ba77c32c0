"""Compiled layers and Liger's kernels."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import fake_liger
import pytest
import torch
from learning_fakes import sequences
from pydantic import ValidationError
from tiny_qwen3_policy import tiny_model
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel

from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.kernels import LIGER, compile_layers, use_liger
from genevolve_ray.learning.step import Learner

PLAIN = LearnerConfig(lr=1e-3, temperature=0.7, token_budget=25)
COMPILED = PLAIN.model_copy(update={"compile": True, "gradient_checkpointing": 0.5})
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def compared(model_dir: Path) -> int:
    """Compare steps on packed rows with and without compilation; return the graphs that later steps added."""
    plain, compiled = Learner(model_dir, PLAIN), Learner(model_dir, COMPILED)
    graphs = []
    for step, longest in enumerate((20, 33)):
        batch = sequences(5, seed=step, longest=longest)
        expected, found = (learner.train_step(batch, step) for learner in (plain, compiled))
        assert found["micro_batches"] > 1
        for name in ("loss", "grad_norm", "entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0, "nothing was compiled"
    return graphs[-1] - graphs[0]


def test_compiled_layers_do_the_same_on_rows_of_any_length(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are captured and run without code generation, beside an engine that switched compilation off."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert compared(model_dir) == 0
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.slow
def test_generated_code_does_the_same(model_dir: Path) -> None:
    torch.compiler.reset()
    counters.clear()
    assert compared(model_dir) == 0


def test_compilation_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="learner.compile=true on a CPU needs a C"):
        compile_layers(tiny_model(), CPU)


def test_compiled_steps_are_not_exact() -> None:
    assert LearnerConfig().exact and not LearnerConfig(compile=True).exact
    with pytest.raises(ValidationError, match="compile=true .* leave out deterministic=true"):
        LearnerConfig(compile=True, deterministic=True)


def test_liger_replaces_all_but_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIGER, fake_liger)
    monkeypatch.setattr(fake_liger, "replaced", [])
    use_liger(tiny_model(), GPU)
    parts = {
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    assert fake_liger.replaced == [("qwen3", parts)]


def test_liger_needs_its_package_a_gpu_and_a_known_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIGER, None)
    with pytest.raises(ValueError, match="learner.kernels=liger needs the package liger-kernel"):
        use_liger(tiny_model(), GPU)
    with pytest.raises(ValueError, match="learner.kernels=liger needs learner.device=cuda, got cpu"):
        use_liger(tiny_model(), CPU)
    monkeypatch.setitem(sys.modules, LIGER, fake_liger)
    stranger = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="liger-kernel has no kernels for models of type 'gpt2'"):
        use_liger(stranger, GPU)
