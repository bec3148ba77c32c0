"""The GPUs and the data of a new run, by plain rules that its YAML states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.commands.init_parts import FILL_IN
from genevolve_ray.errors import UserFault

FULL_WEIGHT_RANKS = 4
"""Ranks of the learner from which an 8B policy is trained with all its weights; fewer train an adapter."""
_ROWS = ("jsonl", "parquet", "json", "ndjson")
_PARTS = {
    "train": ("train", "rl"),
    "validation": ("validation", "val", "eval"),
    "heldout": ("test", "bench", "heldout"),
}
"""Beginnings of the names of files, by what their rows are for."""


@dataclass(frozen=True)
class GpuPlan:
    """Hold the GPUs of a run and of the services beside it."""

    values: dict[str, Any]
    """Keys of the run's YAML."""
    rule: str
    """The rule that was applied, in one sentence."""
    training: tuple[str, ...] = ()
    """Devices of the run."""
    services: tuple[str, ...] = ()
    """Devices of the services beside it, one each."""


def parse_gpus(text: str) -> tuple[str, ...]:
    """Return the devices of `--gpus`: a number of them, or their indices separated by commas. Raises UserFault."""
    if re.fullmatch(r"\d{1,4}", text):
        return tuple(str(index) for index in range(int(text)))
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(re.fullmatch(r"\d{1,4}", part) for part in found) or len(set(found)) < len(found):
        raise UserFault(f"--gpus {text!r}: write a number (4), or indices separated by commas (0,1,6)")
    return tuple(found)


def gpu_plan(devices: Sequence[str], *, services: int, inside: int) -> GpuPlan:
    """Divide the devices of a run that extends the preset `paper`.

    Every service beside the run and every replica inside it takes one. Of the rest, one is shared by engine and learner;
    from two on, the learner takes half (rounded down) and each other one has an engine.

    Raises:
        UserFault: when no device is left for the policy.
    """
    if not devices:
        cpu = {"device": "cpu", "dtype": "float32"}
        none = {"rollout_gpus": 0, "rollout_cpus": 0.35, "learner_gpus": 0, "learner_cpus": 0.3}
        engine = {**cpu, "vllm": {"kv_cache_mib": 1024}}
        values = {"engine": engine, "learner": cpu, "cluster": none}
        return GpuPlan(values, "no GPU: for a trial with a tiny policy")
    left = len(devices) - services - inside
    if left < 1:
        raise UserFault(
            f"--gpus {','.join(devices)}: {services + inside} of {len(devices)} go to renderer and judge, none is left for "
            "the policy: name more, or services that run elsewhere (qwen-service:URL, endpoint:MODEL@URL)"
        )
    training, beside = tuple(devices[: left + inside]), tuple(devices[left + inside :])
    ranks = left // 2
    learner: dict[str, Any] = {} if ranks >= FULL_WEIGHT_RANKS else {"lora": {}}
    if left == 1:
        half = {"rollout_gpus": 0.5, "learner_gpus": 0.5}
        values = {"engine": {"vllm": {"gpu_memory_utilization": 0.45}}, "learner": learner, "cluster": half}
        return GpuPlan(values, "one GPU: engine and learner share it, and the learner trains LoRA", training, beside)
    counts = {"rollout_workers": left - ranks, "rollout_gpus": 1, "learner_ranks": ranks, "learner_gpus": 1}
    form = "LoRA" if learner else "all weights, sharded"
    rule = (
        f"{left} GPUs: {left - ranks} engines, {ranks} for the learner ({form}; below {FULL_WEIGHT_RANKS} it is LoRA)"
    )
    return GpuPlan({"learner": learner, "cluster": counts} if learner else {"cluster": counts}, rule, training, beside)


def data_values(data: Path | None) -> dict[str, Any]:
    """Return the request source of `--data`: a file, or a folder of published rows (searched one folder deep).

    Raises:
        UserFault: for a path that does not exist, or a folder without training rows.
    """
    if data is None:
        names = {"paths": [f"{FILL_IN}/train.jsonl"], "heldout_paths": [f"{FILL_IN}/test.jsonl"]}
        return _source({**names, "validation_paths": [], "split": {"validation": 0.05}})
    path = data.expanduser().resolve()
    if path.is_file():
        return _source({"paths": [str(path)], **_without(validation=True, heldout=True)})
    if not path.is_dir():
        raise UserFault(f"--data {data}: no such file or folder")
    files = sorted(f for suffix in _ROWS for depth in ("*", "*/*") for f in path.glob(f"{depth}.{suffix}"))
    found = {part: [str(file) for file in files if _is_for(file, starts)] for part, starts in _PARTS.items()}
    if not found["train"]:
        raise UserFault(f"--data {data}: no file of training rows (train*.jsonl, train*.parquet) in it")
    config: dict[str, Any] = {"paths": found["train"]}
    config |= {f"{part}_paths": found[part] for part in ("validation", "heldout") if found[part]}
    return _source(config | _without(validation=not found["validation"], heldout=not found["heldout"]))


def _is_for(file: Path, starts: Sequence[str]) -> bool:
    if "sft" in file.parent.name.lower():  # Conversations to fine-tune on, which are no requests.
        return False
    return re.split(r"[-_.]", file.name.lower())[0] in starts


def _without(*, validation: bool, heldout: bool) -> dict[str, Any]:
    """Return the split for the parts that have no files of their own, which clears those of the preset."""
    split = {
        name: share for name, share, wanted in (("validation", 0.05, validation), ("test", 0.1, heldout)) if wanted
    }
    cleared: dict[str, Any] = {}
    if validation:
        cleared["validation_paths"] = []
    if heldout:
        cleared["heldout_paths"] = []
    return {**cleared, **({"split": split} if split else {})}


def _source(config: dict[str, Any]) -> dict[str, Any]:
    return {"requests": {"type": "published", "config": config}}
