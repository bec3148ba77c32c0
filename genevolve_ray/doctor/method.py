"""Differences of a run from the method of its base that are easy to cause by accident."""

from __future__ import annotations

from genevolve_ray.config import ConfigError, RunConfig, load_config
from genevolve_ray.doctor.machine import Check
from genevolve_ray.doctor.parts import note
from genevolve_ray.evolution.layers import is_file
from genevolve_ray.learning.ved_config import GradientRatio


def method(config: RunConfig) -> list[Check]:
    """Return a finding for each of experience, VED and KL that a run lacks and a preset or file that it extends has.

    Of a run without a base, one finding names what it lacks: the library's defaults are not the method's values.
    """
    run = _parts(config)
    lacking = [key for key, (_, value) in run.items() if not value]
    # A run that names a preset differs from it by options; a file differs from what it extends.
    bases = config.layers[1:] if config.layers and is_file(config.layers[0]) else config.layers
    if not bases:
        named = ", ".join(run[key][0] for key in lacking)
        return (
            [note("method", f"this run has no {named}", "`extends: paper` at the head of the file")] if lacking else []
        )
    loaded = {name: base for name in bases if (base := _loaded(name)) is not None}
    found = []
    for key in lacking:
        having = {name: _parts(base)[key][1] for name, base in loaded.items() if _parts(base)[key][1]}
        for name, value in list(having.items())[:1]:
            written = f"{key}={str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
            found.append(note("method", f"this run has no {run[key][0]}, {name} has {written}", f"--set {written}"))
    return found


def _parts(config: RunConfig) -> dict[str, tuple[str, float | GradientRatio]]:
    """Return, by its key, name and value of each part of the method; a part is off where its value is 0."""
    return {
        "experience.enabled": ("experience", config.experience.enabled),
        "learner.ved.coefficient": ("VED", config.learner.ved.coefficient),
        "learner.kl.coefficient": ("KL", config.learner.kl.coefficient),
    }


def _loaded(name: str) -> RunConfig | None:
    try:
        return load_config(name)
    except ConfigError:  # Moved since then, or valid only with options.
        return None
