"""The texts of the files of a new run: YAML with comments, scripts, and a README of five steps."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from genevolve_ray.commands.init_parts import SideService

_ORDER = "policy profile requests tools renderer judge summariser experience engine learner heldout cluster".split()
_ABOUT = {
    "policy": "the model to train",
    "profile": "what it reads; this model sees no pictures",
    "requests": "the requests that it is trained, validated and compared on",
    "tools": "search, image search, skills",
    "renderer": "draws programs",
    "judge": "scores images and programs",
    "summariser": "compares the best and the worst attempt",
    "experience": "the embedder of the experience memory",
    "engine": "samples tokens",
    "learner": "takes the optimization steps",
    "heldout": "the comparison before and after the run",
    "cluster": "processes and GPUs",
}
_BASES = {
    "paper": "the paper's method: experience on, VED 2.0, KL 1e-3, learning rate 1e-6, 200 steps of 8 x 6 rollouts",
    "atlas": "the embedded world: a tiny policy, on a CPU, without downloads",
}

_COLD_START = (
    "A base model is fine-tuned first, and the result is the policy (`policy.model`): "
    "`genevolve sft ROWS.jsonl --model MODEL_DIR --out policy --set device=cuda`. Where the model sees: "
    "`--set images=vision --set 'profile.observations={images: true, max_side: 640, max_pixels: 262144}'`."
)


def shell(*words: str) -> str:
    """Return a command line with every word quoted where needed."""
    return shlex.join(words)


def run_yaml(base: str, name: str, values: Mapping[str, Any], comments: Mapping[str, str], rule: str) -> str:
    """Return the text of run.yaml."""
    lines = [
        "# What differs from the base; `genevolve doctor run.yaml` shows what is missing, docs/configuration.md every key.",
        f"extends: {base} # {_BASES[base]}",
        f"name: {_scalar(name)}",
    ]
    for key in [key for key in _ORDER if key in values]:
        about = [_ABOUT[key], *([comments[key]] if key in comments else [])]
        if key == "cluster" and rule:
            about.append(rule)
        lines += ["", f"# {'; '.join(about)}", _block({key: values[key]})]
    return "\n".join(lines) + "\n"


def _block(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=None, width=1000).rstrip()


def _scalar(value: str) -> str:
    return yaml.safe_dump({"x": value}, width=1000).strip().removeprefix("x: ")


def server_files(server: SideService, device: str | None) -> dict[str, str]:
    """Return the files of a service beside the run: its configuration, and the script that starts it on a GPU."""
    role = server.role
    command = shell("genevolve", "serve", role, f"{role}.yaml", "--port", str(server.port), "--in-process")
    lines = [
        "#!/usr/bin/env bash",
        f"# Serves the {role} of run.yaml until Ctrl-C. --host 0.0.0.0 --token-env NAME serves other machines.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
    ]
    if server.instead:
        lines.append(f"# Or with the server of vLLM: {server.instead}")
    lines += [*([f"export CUDA_VISIBLE_DEVICES={device}"] if device is not None else []), f"exec {command}", ""]
    text = f"# The {role} that serve_{role}.sh serves; run.yaml calls it.\n{_block(server.config)}\n"
    return {f"{role}.yaml": text, f"serve_{role}.sh": "\n".join(lines)}


def readme(
    name: str, files: Mapping[str, str], variables: Sequence[str], devices: Sequence[str], *, tuned: bool
) -> str:
    """Return the text of README.md: five steps, all of which run in its folder.

    Args:
        name: the run.
        files: the other files by name.
        variables: environment variables of keys.
        devices: GPUs of the run.
        tuned: whether the policy needs a cold start.
    """
    run = f"runs/{name}"
    servers = [file for file in files if file.startswith("serve_")]
    visible = f"CUDA_VISIBLE_DEVICES={','.join(devices)} " if devices and servers else ""
    keys = [f"export {variable}=..." for variable in variables]
    steps = [
        (
            "Get the models",
            ["bash download.sh"] if "download.sh" in files else [],
            "Nothing is to be downloaded.",
        ),
        (
            "Start the services and set the keys",
            [*(f"bash {file} # in a terminal of its own" for file in servers), *keys],
            "Nothing is to be started beside the run, except what runs elsewhere already.",
        ),
        ("Check what is missing", ["genevolve doctor run.yaml --deep"], ""),
        ("Train; the same command resumes", [f"{visible}genevolve evolve run.yaml --run {run}"], ""),
        (
            "Look at the result and share it",
            [f"genevolve report {run}", f"genevolve export {run} --out exported"],
            "",
        ),
    ]
    fill_in = " Replace every FILL_IN." if "FILL_IN" in files["run.yaml"] else ""
    parts = [f"# {name}", f"Run every command in this folder. `run.yaml` is the whole configuration.{fill_in}"]
    for number, (title, commands, otherwise) in enumerate(steps, 1):
        parts.append(f"## {number}. {title}")
        parts.append("```bash\n" + "\n".join(commands) + "\n```" if commands else otherwise)
        if number == 1 and tuned:
            parts.append(_COLD_START)
    return "\n\n".join(parts) + "\n"
