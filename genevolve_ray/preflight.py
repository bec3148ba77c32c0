"""Checks that take a moment and save minutes: what cannot run is said before anything starts."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

from genevolve_ray.config import RunConfig
from genevolve_ray.engines.checks import check_model
from genevolve_ray.evolution.plugins import PluginFault, PluginSpec
from genevolve_ray.faults import UserFault


def preflight(config: RunConfig, *, model: bool = True, local: bool = False) -> None:
    """Check that GPUs asked for exist, that the model can be sampled here, and that plug-ins load with their settings.

    A plug-in with a `runtime_env` is not looked at: it may be importable only where it runs, and is checked there.

    Args:
        config: the run.
        model: whether the policy must be there already.
        local: whether everything runs in this process, where no plug-in can have an environment of its own.

    Raises:
        UserFault: naming the value at fault.
    """
    check_devices(config)
    try:
        if model:
            check_model(model_folder(config.policy.model), device=config.engine.device)
    except (OSError, ValueError) as error:
        raise UserFault(f"policy.model: {error}") from error
    embedder = config.experience.embedder
    if config.experience.enabled and embedder.kind == "transformers":
        folder = Path(embedder.transformers.model)
        if not (folder / "config.json").is_file():
            raise UserFault(f"experience.embedder.transformers.model: {str(folder)!r} has no config.json")
    roles = ("requests", "tools", "renderer", "judge", *(("summariser",) if config.experience.enabled else ()))
    for role in roles:
        check_plugin(role, getattr(config, role), local)


def check_plugin(role: str, spec: PluginSpec, local: bool = False) -> None:
    """Check that a plug-in loads with its settings, where this process can. Raises UserFault naming the value at fault."""
    if spec.isolated:
        if local:
            keys = ", ".join(spec.runtime_env)
            raise UserFault(f"{role}.runtime_env ({keys}) needs processes of its own: run without --in-process")
        return
    try:
        kind = spec.resolve()
        settings = spec.settings(kind)
        if hasattr(kind, "check"):
            kind.check(settings)
    except PluginFault as error:
        raise UserFault(str(error) if str(error).startswith(f"{role}.") else f"{role}: {error}") from error
    except (ValueError, OSError, AttributeError) as error:
        raise UserFault(f"{role}: {error}") from error


def check_devices(config: RunConfig) -> None:
    """Check that a private cluster on this machine has the GPUs that the configuration asks for.

    Raises:
        UserFault: saying what was asked and what exists. A remote cluster answers for itself.
    """
    if config.cluster.address:
        return
    asked = {
        "engine.device": config.engine.device,
        "learner.device": config.learner.device,
        "cluster.rollout_gpus": config.cluster.rollout_gpus,
        "cluster.learner_gpus": config.cluster.learner_gpus,
        "cluster.tools.gpus": config.cluster.tools.gpus,
        "cluster.renderer.gpus": config.cluster.renderer.gpus,
        "cluster.judge.gpus": config.cluster.judge.gpus,
    }
    wanting = {key: value for key, value in asked.items() if value and not str(value).startswith("cpu")}
    if wanting and not (found := gpu_count()):
        settings = ", ".join(f"{key}={value}" for key, value in wanting.items())
        raise UserFault(f"{settings}: a GPU is asked for, this machine has {found}")


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver lists, 0 without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, timeout=8, check=False)
    return sum(line.startswith("GPU") for line in listed.stdout.splitlines())


def model_folder(model: str) -> Path:
    """Return the folder of a policy: a path, or `package:FOLDER` for one that ships inside an installed package.

    Raises:
        FileNotFoundError: when the package is not installed.
    """
    package, colon, name = model.partition(":")
    if not (colon and package.replace(".", "_").isidentifier()):
        return Path(model)
    try:
        return Path(str(resources.files(package) / name))
    except (ModuleNotFoundError, TypeError) as error:
        raise FileNotFoundError(f"{model}: there is no package {package}") from error
