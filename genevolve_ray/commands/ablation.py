"""The command `genevolve ablate`: arms that differ in one component, over several seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder, preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.files import write_object


def _tuned(preset: str, overrides: Sequence[str], settings: Sequence[str], arms: Sequence[str]) -> dict[str, RunConfig]:
    """Return the configuration of each arm that has its own settings, given as `ARM:key=value`."""
    own: dict[str, list[str]] = {}
    for setting in settings:
        arm, colon, override = setting.partition(":")
        if not colon or arm not in arms:
            raise UserFault(
                f"genevolve ablate: --set-arm {setting!r}: write ARM:key=value, ARM being one of {', '.join(arms)}"
            )
        own.setdefault(arm, []).append(override)
    return {arm: load_config(preset, [*overrides, *added]) for arm, added in own.items()}


def _worlds(text: str) -> tuple[int, ...]:
    """Return the seeds of several test worlds. Raises UserFault for anything but numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise UserFault(f"genevolve ablate: --test-world {text!r}: {wrong[0]!r} is no seed; write them as 3,4")
    return tuple(map(int, parts))


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
    test_worlds: str = "",
) -> None:
    """Compare arms over seeds and write the result; the runs are kept next to it, and finished ones are read again."""
    from genevolve_ray.atlas.teacher import GENERIC

    if preset not in GENERIC:
        raise UserFault(f"genevolve ablate: unknown preset {preset!r}; known: {', '.join(GENERIC)}")
    from genevolve_ray.bench.ablation import AblationPlan, ablate
    from genevolve_ray.bench.arms import arm_config, arm_of, check_comparable
    from genevolve_ray.viewer.ablation import write_ablation

    if out.suffix != ".json":
        raise UserFault(
            f"genevolve ablate: --json {str(out)!r} must end in .json: the runs and the report are kept in its folder"
        )
    names = [name.strip() for name in arms.split(",") if name.strip()]
    try:
        for name in names:
            arm_of(name)
    except ValueError as error:
        raise UserFault(f"genevolve ablate: {error}") from error
    overrides = [*settings, *([f"loop.steps={steps}"] if steps is not None else [])]
    config = load_config(preset, overrides)
    tuned = _tuned(preset, overrides, arm_settings, names)
    preflight(config)
    try:
        plan = AblationPlan(
            arms=tuple(names),
            seeds=seeds,
            world_seed=world_seed,
            test_worlds=_worlds(test_worlds),
            requests=requests,
            constant=GENERIC[preset],
        )
        for arm, own in tuned.items():
            check_comparable(config, arm, own)
        for arm in plan.arms:
            arm_config(tuned.get(arm, config), arm, seed=1, constant=GENERIC[preset])
    except ValidationError as error:
        shown = f"--arms {arms!r}" + (f", --test-world {test_worlds!r}" if test_worlds else "")
        raise UserFault(f"genevolve ablate: {shown}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UserFault(f"genevolve ablate: {error}") from error
    folder, model = out.with_suffix(""), model_folder(config.policy.model)
    result = asyncio.run(ablate(config, model, folder, plan, lambda text: print(text, flush=True), tuned))
    write_object(out, result)
    page = write_ablation(result, out.with_suffix(".html"))
    print(f"{out}\nreport: {page}")
