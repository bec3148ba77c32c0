"""What each rank of the distributed tests does, in a process of its own."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from learning_fakes import sequences

from genevolve_ray.learning.config import LearnerConfig

PROBE = [3, 9, 27, 41, 5]
SHOWN = ("loss", "grad_norm", "entropy", "parity", "parity_max", "clip_high", "approx_kl", "ratio_max", "tokens")


@dataclass(frozen=True)
class Case:
    """A learner and the batches that it trains on; `counts` has the number of sequences of each step."""

    model_dir: str
    config: LearnerConfig
    counts: tuple[int, ...]
    longest: int = 20


def train(case: Case, out: Path, ranks: Any = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Go through a learner's whole life and return what is seen of it; rank 0 writes files to `out`."""
    from genevolve_ray.learning.step import Learner

    learner = Learner(case.model_dir, case.config, (0, 63), ranks=ranks)
    if checkpoint:
        learner.load(checkpoint)
    seen: dict[str, Any] = {"start": learner.state_hash(), "scores": learner.score(sequences(5))}
    seen["gradients"] = gradients(learner, case)
    metrics = [learner.train_step(sequences(n, i, case.longest), i) for i, n in enumerate(case.counts)]
    seen["metrics"] = [{name: m[name] for name in (*SHOWN, *(["kl"] if "kl" in m else []))} for m in metrics]
    seen["scores_after"] = learner.score(sequences(5))
    seen["probe"] = learner.raw_logprobs(PROBE)
    seen["hash"] = learner.state_hash()
    learner.save(out / "checkpoint")
    learner.write_weights(out / "weights")
    learner.train_step(sequences(4, 77), 9)
    learner.load(out / "checkpoint")
    seen["hash_again"] = learner.state_hash()
    seen["probe_again"] = learner.raw_logprobs(PROBE)
    return seen


def gradients(learner: Any, case: Case) -> dict[str, torch.Tensor]:
    """Return the gradient of each trained parameter over the first batch, before any update."""
    from genevolve_ray.learning.distributed import full

    batch = sequences(case.counts[0], 0, case.longest)
    learner._optimizer.zero_grad()
    learner._accumulate(learner._split(batch), batch)
    return {name: full(p.grad).clone() for name, p in learner.model.named_parameters() if p.grad is not None}


def _main(rank: int, size: int, port: int, case: Case, out: Path, checkpoint: str | None) -> None:
    from genevolve_ray.learning.distributed import join_ranks, leave_ranks

    torch.set_num_threads(1)
    ranks = join_ranks(rank, size, f"127.0.0.1:{port}", timeout=60)
    torch.save(train(case, out, ranks, checkpoint), out / f"seen_{rank}.pt")
    leave_ranks()


def train_on_ranks(case: Case, size: int, out: Path, checkpoint: str | None = None) -> list[dict[str, Any]]:
    """Run `train` on several ranks and return what each saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    multiprocessing.spawn(_main, (size, port, case, out, checkpoint), nprocs=size)
    return [torch.load(out / f"seen_{rank}.pt", weights_only=True) for rank in range(size)]
