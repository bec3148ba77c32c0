"""The cold start of the policy: an adapter that is fine-tuned on rows of the scripted teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_folder import PROVENANCE_FILE
from genevolve_ray.data.sft_training import train_on_rows
from genevolve_ray.errors import UserFault
from genevolve_ray.models.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.small.notices import PROVENANCE
from genevolve_ray.small.parts import file_sha256

if TYPE_CHECKING:
    from genevolve_ray.learning.sft import SftEvaluation, SftStep

SETTINGS: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 16.0},  # rank 4 on all linear layers has 1.2 million parameters
    "lr": 1.0e-3,
    "final_lr_fraction": 0.1,
    "warmup_fraction": 0.06,
    "betas": [0.9, 0.95],
    "weight_decay": 0.0,
    "epochs": 1,
    "max_rows": 256,
    "global_batch": 4,  # many small steps; their common prompt is computed once a step
    "heldout_fraction": 0.0,
    "token_budget": 2048,
    "checkpoint_every": 8,
    "profile": "small",
}
"""Settings of the fine-tuning by which the adapter that ships was trained, as `genevolve sft --set` takes them."""
ROWS_FILE = "train.jsonl"
"""The rows to train on, in the folder of rows."""
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name of the base that a packed adapter states."""


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


def train_cold_start(
    rows: Path,
    policy: Path,
    out: Path,
    progress: Callable[[str, int, int], None],
    *,
    config: SftRowsConfig | None = None,
) -> dict[str, Any]:
    """Fine-tune an adapter for a policy, and return the record of the training. A killed one resumes.

    Args:
        rows: the folder of `small.teacher.write_rows`, with `train.jsonl`.
        policy: the folder of `small.convert.convert_policy`.
        out: receives the adapter in peft's layout.
        progress: receives what is done, how much of it, and of how much.
        config: settings of the fine-tuning; None: `SETTINGS`.

    Raises:
        DataError, OccupiedFolder, UserFault: as `data.sft_training.train_on_rows`.
    """
    config = config or SftRowsConfig.model_validate(SETTINGS)
    return train_on_rows([rows / ROWS_FILE], policy, out, config, ReportedSft(progress))


def check_start(config: SftRowsConfig) -> None:
    """Check that an adapter to continue from (`lora.start`) has the record that a packed one has. Raises UserFault."""
    start = config.lora.start if config.lora is not None else None
    if start and not (Path(start) / PROVENANCE).is_file():
        raise UserFault(
            f"{start} as the start of cold_start: no {PROVENANCE} there, which names what an adapter was trained on; continue "
            "from the adapter of a setup"
        )


def pack_cold_start(trained: Path, rows: Path, policy: Path, out: Path, remark: str = "") -> Path:
    """Write a trained adapter as the package ships it: its factors in bfloat16, and where they come from.

    Args:
        trained: the result of `train_cold_start`, or of `genevolve sft` from another packed adapter (`lora.start`).
        rows: the folder of rows that it was trained on.
        policy: the base, as `small.convert.convert_policy` writes it.
        out: receives the three files.
        remark: what a reader of the record has to know besides.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    with safe_open(trained / ADAPTER_FILE, framework="pt") as factors:
        tensors = {name: factors.get_tensor(name).to(torch.bfloat16) for name in factors.keys()}  # noqa: SIM118
        save_file(tensors, out / ADAPTER_FILE, metadata=factors.metadata())
    described = json.loads((trained / ADAPTER_CONFIG_FILE).read_text("utf-8")) | {"base_model_name_or_path": BASE}
    described["target_modules"] = sorted(described["target_modules"])  # peft writes a set
    (out / ADAPTER_CONFIG_FILE).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", "utf-8")
    provenance = {
        "what": "adapter of the cold start of the policy of the world small",
        "script": "genevolve_ray/small/training/cold_start.py",
        "base": f"{BASE} (Apache-2.0) from its Q4_1 GGUF, not contained",
        "base_sha256": file_sha256(policy / "model.safetensors"),
        "data": "rows of the scripted teacher over facts of the World Factbook (public domain) and names of OpenMoji",
        "rows_sha256": file_sha256(rows / ROWS_FILE),
        "licence": "Apache-2.0",
        "made": datetime.now(UTC).date().isoformat(),
        **_training(json.loads((trained / PROVENANCE_FILE).read_text("utf-8"))),
        "sha256": {name: file_sha256(out / name) for name in (ADAPTER_FILE, ADAPTER_CONFIG_FILE)},
    } | ({"remark": remark} if remark else {})
    (out / PROVENANCE).write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n", "utf-8")
    return out


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the record of a packed adapter says of its training: paths of this machine are left out."""
    settings = record["settings"]
    kept = {key: record[key] for key in ("steps", "heldout", "package")}
    kept |= {
        "loss": [round(loss, 4) for loss in record["loss"]],
        "trained_on": min(record["trained_on"], record["steps"] * settings["global_batch"]),
    }
    if start := settings["lora"]["start"]:
        settings = settings | {"lora": settings["lora"] | {"start": "started_from"}}
        kept["started_from"] = json.loads((Path(start) / PROVENANCE).read_text("utf-8"))
    return kept | {"settings": settings}
