"""The cold start of the policy: an adapter that is fine-tuned on rows of the scripted teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.records.published.rejections import RejectionReport

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftEvaluation, SftStep

SETTINGS: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 16},
    "max_rows": 256,
    "epochs": 1,
    "global_batch": 4,
    "lr": 1.0e-3,
    "warmup_fraction": 0.06,
    "final_lr_fraction": 0.1,
    "betas": [0.9, 0.95],
    "weight_decay": 0.0,
    "heldout_fraction": 0.0,
    "token_budget": 2048,
    "checkpoint_every": 8,
    "profile": "small",
}
"""Settings of the fine-tuning by which the adapter that ships was trained, as `genevolve sft --set` takes them."""


class ReportedSft:
    """Report the steps of a fine-tuning as progress."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        """Report to a function of (what, done, total)."""
        self._progress, self._steps = progress, 0

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        """Receive the number of steps."""
        self._steps = steps
        self._progress("cold start", 0, steps)

    def resumed(self, done: int) -> None:
        """Receive the number of steps that were taken before."""
        self._progress("cold start", done, self._steps)

    def step(self, step: SftStep) -> None:
        """Report a step with its loss."""
        self._progress(f"cold start, loss {step.loss:.3f}", step.step + 1, self._steps)

    def heldout(self, done: int, evaluation: SftEvaluation) -> None:
        """Report the held-out loss."""
        self._progress(f"cold start, held-out loss {evaluation.loss:.3f}", done, self._steps)


def train_cold_start(rows: Path, policy: Path, out: Path, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Fine-tune an adapter for a policy, and return the record of the training. A killed one resumes.

    Args:
        rows: the folder of `small.teacher.write_rows`, with `train.jsonl`.
        policy: the folder of `small.convert.convert_policy`.
        out: receives the adapter in peft's layout.
        progress: receives what is done, how much of it, and of how much.

    Raises:
        DataError, OccupiedFolder, UserFault: as `data.sft_training.train_on_rows`.
    """
    config = SftRowsConfig.model_validate(SETTINGS)
    return train_on_rows([rows / "train.jsonl"], policy, out, config, ReportedSft(progress))
