"""`genevolve init`: a folder with a short YAML, scripts for its services, and a README of five steps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.commands.init_files import readme, run_yaml, server_files, shell
from genevolve_ray.commands.init_layout import GpuPlan, data_values, gpu_plan, parse_gpus
from genevolve_ray.commands.init_parts import ATLAS, RunPart, judge_part, policy_part, renderer_part, tools_part
from genevolve_ray.config import load_config
from genevolve_ray.doctor.machine import print_diagnosis
from genevolve_ray.doctor.run import examine
from genevolve_ray.errors import UserFault

_EMBEDDER = ("Qwen/Qwen3-Embedding-0.6B", "./models/Qwen3-Embedding-0.6B")
"""Embedding model of the preset `paper`."""


@dataclass(frozen=True)
class InitOptions:
    """Hold the choices of a new run; `init_parts.CHOICES` lists what each takes."""

    policy: str = ATLAS
    renderer: str = ATLAS
    judge: str = ATLAS
    tools: str = ATLAS
    gpus: str = "0"
    data: Path | None = None


def init_run(folder: Path, options: InitOptions) -> list[Path]:
    """Write the files of a new run into a folder, print what `genevolve doctor` finds, and return the files.

    Raises:
        UserFault: for an unknown choice, choices that do not go together, and files that exist.
    """
    files = planned(folder, options)
    if there := [name for name in files if (folder / name).exists()]:
        raise UserFault(f"{folder}: {', '.join(there)} exist and are not overwritten: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    with contextlib.chdir(folder):  # Paths of the YAML are relative to its folder.
        config = load_config("run.yaml")
        checks = examine(config, Path("runs") / config.name)
    print_diagnosis(checks, title=f"genevolve doctor {folder / 'run.yaml'}")
    return [folder / name for name in files]


def planned(folder: Path, options: InitOptions) -> dict[str, str]:
    """Return the texts of the files of a new run by name, without writing anything. Raises UserFault."""
    devices = parse_gpus(options.gpus)
    gpu = bool(devices)
    parts = {
        "policy": policy_part(options.policy),
        "tools": tools_part(options.tools),
        "renderer": renderer_part(options.renderer, gpu=gpu),
        "judge": judge_part(options.judge, gpu=gpu),
    }
    _check_together(options)
    base = ATLAS if options.policy == ATLAS else "paper"
    servers = [part.server for part in parts.values() if part.server is not None]
    inside = sum(part.inside_gpus for part in parts.values())
    plan = _plan(base, devices, services=len(servers), inside=inside)
    values = _values(base, parts, plan, options)
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-") or "run"
    comments = {key: part.comment for key, part in parts.items() if part.comment}
    downloads = [download for part in parts.values() for download in part.downloads]
    downloads += [_EMBEDDER] if base == "paper" and options.judge != ATLAS else []
    files = {"run.yaml": run_yaml(base, name, values, comments, plan.rule)}
    if downloads:
        lines = [_download(model, place) for model, place in dict.fromkeys(downloads)]
        files["download.sh"] = "\n".join(_script("Downloads the models; `hf` is part of huggingface_hub.", lines))
    for number, server in enumerate(servers):
        device = plan.services[number] if number < len(plan.services) else None
        files |= server_files(server, device)
    variables = dict.fromkeys(variable for part in parts.values() for variable in part.variables)
    files["README.md"] = readme(name, files, list(variables), plan.training, tuned=base == "paper")
    return files


def _download(model: str, place: str) -> str:
    name, _, revision = model.partition("@")
    return shell("hf", "download", name, *(["--revision", revision] if revision else []), "--local-dir", place)


def _script(purpose: str, lines: Sequence[str]) -> list[str]:
    return ["#!/usr/bin/env bash", f"# {purpose}", "set -euo pipefail", 'cd "$(dirname "$0")"', *lines, ""]


def _check_together(options: InitOptions) -> None:
    """Check that parts of the atlas are not mixed with others that know nothing of it. Raises UserFault."""
    served = options.renderer.startswith("qwen-service:")  # It may be the renderer of the atlas.
    if options.judge == ATLAS and options.renderer != ATLAS and not served:
        raise UserFault(
            "--judge atlas scores pictures of the atlas renderer alone: choose another judge, or both atlas"
        )
    if options.judge == ATLAS and options.data is not None:
        raise UserFault("--judge atlas scores requests of the atlas alone: choose another judge, or leave --data out")


def _plan(base: str, devices: Sequence[str], *, services: int, inside: int) -> GpuPlan:
    if base == ATLAS:  # Its engine and learner need no GPU.
        if devices and services + inside > len(devices):
            raise UserFault(f"--gpus {','.join(devices)}: renderer and judge need {services + inside}")
        cut = len(devices) - services
        return GpuPlan({}, "", tuple(devices[:cut]), tuple(devices[cut:]))
    return gpu_plan(devices, services=services, inside=inside)


def _values(base: str, parts: Mapping[str, RunPart], plan: GpuPlan, options: InitOptions) -> dict[str, Any]:
    """Return the keys of the YAML that differ from the base."""
    values: dict[str, Any] = {}
    for key, part in parts.items():
        if not (base == ATLAS and getattr(options, key) == ATLAS):
            values = _merged(values, part.values)
    values = _merged(values, plan.values)
    if base == ATLAS and values.get("judge", {}).get("type") == "endpoint":
        # The reward of the preset `atlas` has this formula; a verdict must have the same.
        values = _merged(values, {"judge": {"config": {"formula": "paper"}}})
    if base == "paper" and options.judge == ATLAS:
        # The verdicts of a run must have the formula of its reward. A trial needs no embedding model.
        values["judge"] = {"type": ATLAS, "config": {"formula": "release-summary"}}
        values["experience"] = {"embedder": {"kind": "hashing"}}
    elif base == "paper":
        values["experience"] = {"embedder": {"transformers": {"model": _EMBEDDER[1]}}}
    if options.data is not None or (base == "paper" and options.judge != ATLAS):
        values |= data_values(options.data)
    elif base == "paper":
        values |= {"requests": {"type": ATLAS, "config": {"seed": 1}}, "heldout": {"requests": 200}}
    return values


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
