"""Stages of `gpu_all` about the learner: steps at the shapes of Qwen3, and the choices that change their speed and memory.

All weights are random. In a rehearsal the same stages run on a tiny model on a CPU, which measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_learner import measure, parse
from benchmarks.gpu_smoke import make_sequences, write_model
from benchmarks.measure import Goal, LeftOut, Options, Row, Spread, paired_ratio, say

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.distributed import Ranks

SMALL = ("--layers", "28", "--hidden", "2048", "--heads", "16", "--intermediate", "6144")
SHAPES: Mapping[str, tuple[str, ...]] = {
    "1.7B": SMALL,
    "4B": ("--layers", "36", "--hidden", "2560", "--heads", "32", "--intermediate", "9728"),
    "8B": ("--layers", "36", "--hidden", "4096", "--heads", "32", "--intermediate", "12288"),
}
ADAPTER = ("--lora", "16", "--checkpointing")
TOKENS = ("--tokens", "16384", "--sequence", "16384", "--repeats", "3")
GAP = 1e-3
"""Largest mean |log-prob| gap between packed and padded rows, and between numbers of ranks, in float32."""


def settings_of(options: Options, shape: str, *arguments: str) -> argparse.Namespace:
    """Return the settings of learner steps: 16,384 tokens of one sequence, in a rehearsal a tiny model on a CPU."""
    size = ("--tiny",) if options.quick else (*SHAPES[shape], *TOKENS)
    return parse(["--device", options.device, *size, *arguments])


@contextmanager
def policy_of(settings: argparse.Namespace, dtype: str = "bfloat16") -> Iterator[Path]:
    """Yield the folder of a random policy."""
    with TemporaryDirectory(prefix="genevolve-gpu-") as folder:
        write_model(settings, folder, dtype)
        yield Path(folder)


def measured(options: Options, shape: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the result of learner steps. Raises ArithmeticError when they are not finite or change no weight."""
    say(f"{shape} {' '.join(arguments)}")
    result = measure(settings_of(options, shape, *arguments), folder)
    gc.collect()
    if not result["ok"]:
        raise ArithmeticError(f"steps of {shape} {' '.join(arguments)} are not finite, or change no weight")
    return result


def step_rows(
    what: str, result: Mapping[str, Any], base: Mapping[str, Any] | None = None, over: str = "plain"
) -> list[Row]:
    """Return tokens/s (over those of `base`), MFU and peak memory of learner steps."""
    step = result["step"]
    seconds, tokens = step["seconds_each"], step["tokens"]
    rows = [Row(what, Spread.of([tokens / s for s in seconds]), "tokens/s")]
    if base is not None:
        rows = [replace(rows[0], ratio=paired_ratio(base["step"]["seconds_each"], seconds), over=over)]
    if result["mfu"] is not None:
        rows.append(Row(f"{what}, MFU", Spread.of([result["mfu"]]), "", goal=Goal(0.45, "at least")))
    if step["peak_memory_bytes"] is not None:
        rows.append(Row(f"{what}, peak memory", Spread.of([step["peak_memory_bytes"] / 2**30]), "GiB"))
    return rows


def adapter(options: Options, shape: str) -> list[Row]:
    """Measure an adapter's steps at a shape, all layers recomputed."""
    with policy_of(settings_of(options, shape)) as folder:
        return step_rows(f"{shape}, LoRA", measured(options, shape, folder, *ADAPTER))


def layers(options: Options) -> list[Row]:
    """Measure steps of all parameters with all, half or none of the layers recomputed, and with offload."""
    import torch

    choices = {
        "all layers recomputed": ("--checkpointing",),
        "every second layer": ("--checkpointing", "0.5"),
        "none": (),
        "all, offload": ("--checkpointing", "--offload"),
    }
    rows: list[Row] = []
    base: dict[str, Any] | None = None
    with policy_of(settings_of(options, "1.7B")) as folder:
        for name, arguments in choices.items():
            try:
                result = measured(options, "1.7B", folder, *arguments)
            except torch.OutOfMemoryError:
                say(f"{name} does not fit into the memory of {options.device}")
                continue
            rows += step_rows(f"1.7B, {name}", result, base, "all layers recomputed")
            base = base or result
    return rows


def compiled(options: Options) -> list[Row]:
    """Measure compiled layers over plain ones; a rehearsal captures their graphs and generates no code."""
    import torch

    if options.quick:
        torch.compile = partial(torch.compile, backend="eager")
    with policy_of(settings_of(options, "1.7B")) as folder:
        plain, fast = (measured(options, "1.7B", folder, *ADAPTER, *more) for more in ((), ("--compile",)))
    rows = step_rows("1.7B, LoRA, compiled", fast, plain)
    first = fast["step"]["seconds_first"] - plain["step"]["seconds_first"]
    return [*rows, Row("longer first step", Spread.of([first]), "s")]


def liger(options: Options) -> list[Row]:
    """Measure Liger's kernels over those of torch."""
    if options.device == "cpu" or find_spec("liger_kernel") is None:
        raise LeftOut("needs a GPU and the package liger-kernel")
    with policy_of(settings_of(options, "1.7B")) as folder:
        # Liger changes functions of the process, so the plain steps come first.
        plain, fast = (measured(options, "1.7B", folder, *ADAPTER, "--kernels", name) for name in ("torch", "liger"))
    gap = abs(fast["step"]["loss"] - plain["step"]["loss"])
    return [*step_rows("1.7B, LoRA, Liger", fast, plain), Row("gap of the loss", Spread.of([gap]), "")]


# --- equality --------------------------------------------------------------------------------------------------------


def group_of(settings: argparse.Namespace) -> list[TrainSequence]:
    """Return sequences of which neighbors share their first half, as rollouts of a group do."""
    plain = make_sequences(settings)
    half = settings.sequence // 2
    return [replace(s, tokens=[*plain[i - i % 2].tokens[:half], *s.tokens[half:]]) for i, s in enumerate(plain)]


def exact(settings: argparse.Namespace, **changes: Any) -> LearnerConfig:
    """Return the settings of float32 steps that leave the weights where they are."""
    from genevolve_ray.learning.config import LearnerConfig

    return LearnerConfig(device=settings.device, token_budget=settings.tokens, lr=0.0, **changes)


def seen(folder: Path, config: LearnerConfig, batch: list[TrainSequence], ranks: Ranks | None = None) -> dict[str, Any]:
    """Return log-probs, loss and gradient norm of one step."""
    from genevolve_ray.learning.step import Learner

    learner = Learner(folder, config, ranks=ranks)
    scores = [score for row in learner.score(batch) for score in row]
    learner.train_step(batch, 0)  # compiles what a device compiles
    return {"scores": scores, **learner.train_step(batch, 1)}


def gaps(what: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[Row]:
    """Return how far two results differ. Raises ArithmeticError for more than rounding."""
    pairs = list(zip(mine["scores"], other["scores"], strict=True))
    found = {
        "mean |log-prob| gap": math.fsum(abs(a - b) for a, b in pairs) / len(pairs),
        "relative gap of the gradient norm": abs(mine["grad_norm"] / other["grad_norm"] - 1),
    }
    if over := {name: gap for name, gap in found.items() if not gap <= GAP}:
        raise ArithmeticError(f"{what}: {over}, limit {GAP}")
    return [Row(f"{what}: {name}", Spread.of([gap]), "", goal=Goal(GAP, "at most")) for name, gap in found.items()]


def small(options: Options) -> argparse.Namespace:
    """Return the settings of a model that float32 steps on padded rows fit."""
    size = ("--tiny",) if options.quick else (*SMALL, "--tokens", "8192", "--sequence", "1024", "--layers", "4")
    return parse(["--device", options.device, *size])


def trees(options: Options) -> list[Row]:
    """Compare packed rows of prefix trees (FlexAttention on a GPU) with padded ones, in result and time."""
    settings = small(options)
    batch = group_of(settings)
    with policy_of(settings, "float32") as folder:
        packed, padded = (seen(folder, exact(settings, packed_rows=packs), batch) for packs in (True, False))
    ratio = paired_ratio([packed["seconds"]], [padded["seconds"]])
    row = Row("step on packed rows", Spread.of([packed["seconds"]]), "s", ratio, "padded rows")
    return [*gaps("packed and padded", packed, padded), row]


def two_ranks(options: Options) -> list[Row]:
    """Compare two ranks with one: rows shared by both, layers kept gathered, two layers gathered ahead."""
    import torch

    from genevolve_ray.learning.launch import run_on_ranks

    if options.device != "cpu" and torch.cuda.device_count() < 2:
        raise LeftOut("needs two GPUs: context parallel, prefetch, kept layers")
    settings = small(options)
    batch = group_of(settings)
    ways: dict[str, dict[str, Any]] = {
        "each row over two ranks": {"context_parallel": 2},
        "layers kept, two ahead": {"reshard_after_forward": False, "prefetch_layers": 2},
    }
    with policy_of(settings, "float32") as folder:
        alone = seen(folder, exact(settings), batch)
        rows = []
        for name, changes in ways.items():
            work = partial(seen, folder, exact(settings, **changes), batch)
            rows += gaps(name, run_on_ranks(2, options.device, 1, work), alone)
    return rows


STAGES = (
    ("learner: packed rows equal padded ones", trees),
    ("learner: two ranks equal one", two_ranks),
    ("learner: layers recomputed, offload", layers),
    ("learner: compiled", compiled),
    ("learner: Liger", liger),
    ("learner: 4B at 16k", partial(adapter, shape="4B")),
    ("learner: 8B at 16k", partial(adapter, shape="8B")),
)
SECONDS = {
    "learner: packed rows equal padded ones": 60,
    "learner: two ranks equal one": 60,
    "learner: layers recomputed, offload": 120,
    "learner: Liger": 60,
    "learner: 8B at 16k": 120,
}
"""Other limits than the usual one."""
