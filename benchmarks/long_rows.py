"""Peak memory of a learner step on one sequence of 32,768 tokens, over the plain way: `python -m benchmarks.long_rows`.

The model is small, and its vocabulary is that of Qwen3. Each figure is the growth of a fresh process's peak resident
memory over a short step. The plain way holds the logits of all tokens in float32. It is measured at the two lengths that
fit, and its line through them gives the figure for 32,768 tokens.

Shape legend: T tokens of the sequence, V vocabulary.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Row, Spread, paired_ratio, prepare_process, say

SHAPE = "--device cpu --layers 4 --hidden 128 --heads 4 --kv-heads 2 --head-dim 32 --intermediate 384".split()
LENGTH, PLAIN_LENGTHS = 32_768, (1024, 2048)
SHORT = 64
WAYS: dict[str, dict[str, Any]] = {
    "all layers recomputed": {"gradient_checkpointing": True},
    "every second layer recomputed": {"gradient_checkpointing": 0.5},
    "no layer recomputed": {},
}


def run(length: int = LENGTH, plain_lengths: tuple[int, int] = PLAIN_LENGTHS) -> list[Row]:
    """Measure, and return the rows of the table."""
    short, long = (grown("plain way", tokens) for tokens in plain_lengths)
    per_token = (long - short) / (plain_lengths[1] - plain_lengths[0])
    plain = long + per_token * (length - plain_lengths[1])
    rows = [
        Row(f"plain way, {tokens} tokens", Spread.of([mib]), "MiB")
        for tokens, mib in zip(plain_lengths, (short, long), strict=True)
    ]
    rows.append(Row(f"plain way, {length} tokens, computed from these", Spread.of([plain]), "MiB"))
    for name in WAYS:
        mib = grown(name, length)
        ratio = paired_ratio([mib], [plain])
        rows.append(Row(f"learner, {length} tokens, {name}", Spread.of([mib]), "MiB", ratio, "plain way"))
    return rows


def grown(way: str, tokens: int) -> float:
    """Return MiB by which a step in a fresh process raises its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        mib = float(pool.apply(_grown, (way, tokens)))
    say(f"{way}, {tokens} tokens: {mib:,.0f} MiB")
    return mib


def _grown(way: str, tokens: int) -> float:
    from benchmarks.gpu_smoke import make_sequences, parse, write_model
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    settings, warm = (parse([*SHAPE, "--tokens", str(n), "--sequence", str(n)]) for n in (tokens, SHORT))
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        write_model(settings, Path(folder))
        learner = Learner(folder, LearnerConfig(token_budget=tokens, threads=1, lr=0.0, **WAYS.get(way, {})))

    def step(batch: list[Any]) -> None:
        if way in WAYS:
            learner.train_step(batch, 0)
        else:
            _plain(learner.model, batch[0])

    step(make_sequences(warm))
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(make_sequences(settings))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _plain(model: Any, sequence: Any) -> None:
    """Run the passes as they are usually written: all logits [T, V] in float32, log-softmax, gather, backward."""
    import torch

    ids_T = torch.tensor(sequence.tokens)
    model.config._attn_implementation = "sdpa"
    logits_T_V = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
    logprobs_T = logits_T_V.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    logprobs_T[torch.tensor(sequence.policy_mask[1:])].sum().backward()
    model.zero_grad(set_to_none=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="long_rows", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="short rows: shows that it runs, measures nothing")
    quick = parser.parse_args(arguments).quick
    prepare_process(1)
    from benchmarks.report import print_table

    rows = run(512, (128, 256)) if quick else run()
    print_table({"peak memory of a step": [row.as_json() for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
