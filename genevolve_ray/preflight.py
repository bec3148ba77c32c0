"""Checks that take a moment and save minutes: what cannot run is said before anything starts."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from genevolve_ray.config import RunConfig
from genevolve_ray.engines.checks import check_model
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.faults import UserFault


def preflight(config: RunConfig, *, model: bool = True) -> None:
    """Check that GPUs asked for exist, that the model can be sampled here, and that plug-ins load with their settings.

    Args:
        config: the run.
        model: whether the policy must be there already.

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
        check_plugin(role, getattr(config, role))


def check_plugin(role: str, spec: PluginSpec) -> None:
    """Check that a plug-in loads with its settings. Raises UserFault naming the value at fault."""
    try:
        kind = spec.resolve()
        settings = kind.Config.model_validate(spec.config)
        if hasattr(kind, "check"):
            kind.check(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserFault(f"{role}.config.{key}: {first['msg']}, got {first['input']!r}") from error
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
