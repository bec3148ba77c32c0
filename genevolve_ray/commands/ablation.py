"""The command `genevolve ablate`: arms that differ in one component, over several seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder, preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_object


def _tuned(preset: str, overrides: Sequence[str], settings: Sequence[str], arms: Sequence[str]) -> dict[Any, RunConfig]:
    """Return the configuration of each arm that has its own settings, given as `ARM:key=value`."""
    from genevolve_ray.bench.arms import Arm

    own: dict[str, list[str]] = {}
    for setting in settings:
        arm, colon, override = setting.partition(":")
        if not colon or arm not in arms:
            raise UserFault(
                f"genevolve ablate: --set-arm {setting!r}: write ARM:key=value, ARM being one of {', '.join(arms)}"
            )
        own.setdefault(arm, []).append(override)
    return {Arm(arm): load_config(preset, [*overrides, *added]) for arm, added in own.items()}


def ablate_run(
    preset: str,
    arms: str,
    out: Path,
    *,
    seeds: int,
    steps: int | None,
    world_seed: int,
    requests: int,
    settings: Sequence[str],
    arm_settings: Sequence[str] = (),
) -> None:
    """Compare arms over seeds and write the result; the runs are kept next to it, and finished ones are read again."""
    from genevolve_ray.atlas.teacher import GENERIC

    if preset not in GENERIC:
        raise UserFault(f"genevolve ablate: unknown preset {preset!r}; known: {', '.join(GENERIC)}")
    from genevolve_ray.bench.ablation import AblationPlan, ablate
    from genevolve_ray.bench.arms import Arm, arm_config
    from genevolve_ray.viewer.ablation import write_ablation

    if out.suffix != ".json":
        raise UserFault(
            f"genevolve ablate: --json {str(out)!r} must end in .json: the runs and the report are kept in its folder"
        )
    names = [name.strip() for name in arms.split(",") if name.strip()]
    if unknown := [name for name in names if name not in list(Arm)]:
        raise UserFault(f"genevolve ablate: unknown arms {', '.join(unknown)}; known: {', '.join(Arm)}")
    overrides = [*settings, *([f"loop.steps={steps}"] if steps is not None else [])]
    config = load_config(preset, overrides)
    tuned = _tuned(preset, overrides, arm_settings, names)
    preflight(config)
    try:
        plan = AblationPlan(
            arms=tuple(map(Arm, names)), seeds=seeds, world_seed=world_seed, requests=requests, constant=GENERIC[preset]
        )
        for arm in plan.arms:
            arm_config(tuned.get(arm, config), arm, seed=1, constant=GENERIC[preset])
    except ValidationError as error:
        raise UserFault(f"genevolve ablate: --arms {arms!r}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UserFault(f"genevolve ablate: {error}") from error
    folder, model = out.with_suffix(""), model_folder(config.policy.model)
    result = asyncio.run(ablate(config, model, folder, plan, lambda text: print(text, flush=True), tuned))
    write_object(out, result)
    page = write_ablation(result, out.with_suffix(".html"))
    print(f"{out}\nreport: {page}")
