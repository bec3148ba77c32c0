"""What each rank of the distributed tests does, in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from learning_fakes import sequences, siblings, taught
from seeing_fakes import looking, picture

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import LearnerConfig

PROBE = [3, 9, 27, 41, 5]
SHOWN = (
    "parity_images",
    "loss",
    "grad_norm",
    "entropy",
    "parity",
    "parity_max",
    "clip_high",
    "approx_kl",
    "ratio_max",
    "tokens",
)


@dataclass(frozen=True)
class Case:
    """A learner and the batches that it trains on; `counts` has the number of sequences of each step.

    `sees`: every third sequence of a batch shows pictures, but none of the second step. `parts`: each step is added in
    so many.
    """

    model_dir: str
    config: LearnerConfig
    counts: tuple[int, ...]
    longest: int = 20
    sees: bool = False
    parts: int = 1


def train(case: Case, out: Path, ranks: Any = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Go through a learner's whole life and return what is seen of it; rank 0 writes files to `out`."""
    from genevolve_ray.learning.digests import tensor_checksum
    from genevolve_ray.learning.policy import state_hash
    from genevolve_ray.learning.step import Learner

    learner = Learner(case.model_dir, case.config, (0, 63), ranks=ranks)
    if checkpoint:
        learner.load(checkpoint)
    seen: dict[str, Any] = {"start": learner.state_hash(), "scores": learner.score(batch_of(case, 5, 0))}
    seen["gradients"] = gradients(learner, case)
    metrics = []
    for step, count in enumerate(case.counts):
        *early, rest = [batch_of(case, count, step)[part :: case.parts] for part in range(case.parts)]
        for part in early:
            learner.accumulate(part, step)
        metrics.append(learner.train_step(rest, step))
        seen[f"gaps_{step}"] = learner.gaps
    seen["metrics"] = [{n: x for n, x in m.items() if n in SHOWN or n.startswith(("kl", "ved_"))} for m in metrics]
    seen["scores_after"] = learner.score(batch_of(case, 5, 0))
    seen["probe"] = learner.raw_logprobs(PROBE)
    seen["hash"] = learner.state_hash()
    learner.save(out / "checkpoint")
    learner.write_weights(out / "weights")
    learner.write_merged(out / "merged")
    seen["sent"] = state_hash(dict(learner.outgoing()))
    stated = {name: tensor_checksum(tensor) for name, tensor in learner.outgoing()}
    assert learner.outgoing().checksums() == stated, "sums over shards are those of whole tensors"
    learner.train_step(sequences(4, 77), 9)
    learner.load(out / "checkpoint")
    seen["hash_again"] = learner.state_hash()
    seen["probe_again"] = learner.raw_logprobs(PROBE)
    return seen


def batch_of(case: Case, count: int, seed: int) -> list[TrainSequence]:
    """Return a batch in which every other sequence has a teacher, where the case distils."""
    batch = siblings(sequences(count, seed, case.longest))
    every = 2 if case.config.ved.teaches else count + 1
    batch = [taught(s, (7, 11, 13), narrow(s)) if i % every == every - 1 else s for i, s in enumerate(batch)]
    if not case.sees:
        return batch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(case.model_dir)
    shown = [[picture(config, n) for n in (0, i)] if i % 3 == 0 and seed != 1 else [] for i in range(count)]
    return [looking(config, s, pictures) for s, pictures in zip(batch, shown, strict=True)]


def narrow(sequence: TrainSequence) -> list[bool]:
    """Return a gate of kinds that leaves one policy token, fewer than the gate of gaps would select."""
    return [i == 0 for i in range(sequence.policy_tokens)]


def gradients(learner: Any, case: Case) -> dict[str, torch.Tensor]:
    """Return the gradient of each trained parameter over the first batch, before any update."""
    from genevolve_ray.learning.distributed import full, sum_replicated

    batch = batch_of(case, case.counts[0], 0)
    learner._optimizer.zero_grad()
    learner._objective.add_gradients(learner._passes.split(batch), learner._objective.with_teacher(batch), 0)
    sum_replicated(learner._parameters, learner._ranks)
    return {name: full(p.grad).clone() for name, p in learner.model.named_parameters() if p.grad is not None}


def _main(rank: int, size: int, port: int, case: Case, out: Path, checkpoint: str | None) -> None:
    from genevolve_ray.learning.distributed import join_ranks

    torch.set_num_threads(1)
    ranks = join_ranks(rank, size, f"127.0.0.1:{port}", timeout=60)
    torch.save(train(case, out, ranks, checkpoint), out / f"seen_{rank}.pt")
    torch.distributed.destroy_process_group()
    # The result is on disk, and torch's threads race with the end of the interpreter: now and then one aborts.
    os._exit(0)


def train_on_ranks(case: Case, size: int, out: Path, checkpoint: str | None = None) -> list[dict[str, Any]]:
    """Run `train` on several ranks and return what each saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    # Ranks are forked from a process that has imported these modules and computed nothing.
    multiprocessing.set_forkserver_preload([__name__, "genevolve_ray.learning.step", "transformers.modeling_utils"])
    torch.multiprocessing.start_processes(
        _main, (size, port, case, out, checkpoint), nprocs=size, start_method="forkserver"
    )
    return [torch.load(out / f"seen_{rank}.pt", weights_only=True) for rank in range(size)]


def compare_gradients(mine: dict[str, Any], expected: dict[str, Any]) -> None:
    gradients, others = mine.pop("gradients"), expected.pop("gradients")
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-5, atol=1e-5 * float(others[name].abs().max()))


def compare(mine: dict[str, Any], expected: dict[str, Any]) -> None:
    for step, other in zip(mine["metrics"], expected["metrics"], strict=True):
        for name, value in step.items():
            assert value == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    for key in ("scores", "scores_after", *(name for name in mine if name.startswith("gaps"))):
        for row, other_row in zip(mine[key], expected[key], strict=True):
            assert row == pytest.approx(other_row, abs=1e-5)
    assert mine["probe"] == pytest.approx(expected["probe"], abs=1e-5)
    assert mine["hash_again"] == mine["hash"]
    assert mine["probe_again"] == mine["probe"]
