"""Learner of a rehearsal: a digest over all its input instead of a model, and a step of a set length."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import ImageInputs, TrainSequence
    from genevolve_ray.learning.redraw_config import GuidedDraws

NULL_FILE = "null.json"
"""Holds the digest among a version's files."""
_MIB = 1 << 20


def null_logprob(state: str) -> float:
    """Return the log-prob of every token under a digest (hex): between -1.1 and -0.1.

    The engine of a rehearsal computes it too, so that an engine with the wrong weights is found as a real one would be.
    """
    return -(0.1 + int(state[:8], 16) / 0xFFFFFFFF)


class NullLearner:
    """Provide the methods of `learning.step.Learner` that a run uses, without any computation."""

    def __init__(self, step_seconds: float = 0.0, weights_mib: float = 0.0, *, first: bool = True) -> None:
        """Start from the digest of no input.

        Args:
            step_seconds: duration of a step.
            weights_mib: size of the weights that every version is padded to.
            first: whether this rank writes.
        """
        self._state = hashlib.sha256(b"").hexdigest()
        self._seconds, self._padding, self._first = step_seconds, int(weights_mib * _MIB), first
        self.gaps: list[list[float]] = []
        self._early: list[TrainSequence] = []

    def accumulate(self, sequences: Sequence[TrainSequence], step: int) -> None:
        """Keep a part of a batch for `train_step`."""
        self._early += sequences

    def drop(self) -> None:
        """Forget the parts of a batch."""
        self._early = []

    def train_step(
        self, sequences: Sequence[TrainSequence], step: int, draws: GuidedDraws | None = None
    ) -> dict[str, float]:
        """Take a batch, with its earlier parts and its re-draws, into the digest; return the metrics that need no model.

        `parity` is mean |behavior - own| log-prob over the tokens that version `step` sampled.
        """
        started, own = time.perf_counter(), null_logprob(self._state)
        sequences, self._early = [*self._early, *sequences], []
        gaps, stale = [], 0
        for sequence in sequences:
            versions = sequence.versions or [step] * len(sequence.tokens)
            for wanted, logprob, version in zip(sequence.policy_mask, sequence.logprobs, versions, strict=True):
                if wanted and version == step:
                    gaps.append(abs(logprob - own))
                stale += wanted and version != step
        redrawn = () if draws is None else draws.sequences
        batch = json.dumps([self._state, [[list(s.tokens), s.advantage] for s in (*sequences, *redrawn)]])
        self._state = hashlib.sha256(batch.encode()).hexdigest()
        self.gaps = [[] for _ in sequences]
        time.sleep(max(0.0, self._seconds - (time.perf_counter() - started)))
        metrics = {
            "sequences": float(len(sequences)),
            "tokens": float(sum(len(s.tokens) for s in sequences)),
            "policy_tokens": float(sum(s.policy_tokens for s in sequences)),
            "stale_tokens": float(stale),
            "seconds": time.perf_counter() - started,
        }
        if draws is not None:
            metrics["redraw_sequences"] = float(len(draws.sequences))
        return metrics | ({"parity": sum(gaps) / len(gaps)} if gaps else {})

    def raw_logprobs(self, token_ids: Sequence[int], images: ImageInputs | None = None) -> list[float]:
        """Return the probe of a weight update."""
        return [null_logprob(self._state)] * (len(token_ids) - 1)

    def write_weights(self, folder: str | Path) -> None:
        """Write the digest and its padding."""
        if not self._first:
            return
        if self._padding:
            with open(Path(folder) / "padding.bin", "wb") as file:
                for _ in range(self._padding // _MIB):
                    file.write(self._state.encode() * (_MIB // 64))
        self.save(folder)

    def save(self, folder: str | Path) -> None:
        """Write the digest."""
        if self._first:
            (Path(folder) / NULL_FILE).write_text(json.dumps({"state": self._state}), encoding="utf-8")

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote."""
        self._state = json.loads((Path(folder) / NULL_FILE).read_text(encoding="utf-8"))["state"]

    def state_hash(self) -> str:
        """Return the digest."""
        return self._state if self._first else ""
