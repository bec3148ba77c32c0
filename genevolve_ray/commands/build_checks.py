"""Checks before the first call of a data build, and the date and the paths that are fixed then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genevolve_ray.bench.jobs.settings_file import job_path, read_job
from genevolve_ray.commands.build_config import BuildConfig, BuildStage
from genevolve_ray.commands.build_stages import rubric_of
from genevolve_ray.commands.jobs import has_price
from genevolve_ray.commands.policies import DIRECT, named_policy
from genevolve_ray.data.build.grading import PROMPTS_FOLDER
from genevolve_ray.data.build.taxonomy import FOLDER as TAXONOMIES
from genevolve_ray.data.build.taxonomy import load_taxonomy
from genevolve_ray.doctor.preflight import check_embedder, check_plugin, check_secrets, placed, require_gpus
from genevolve_ray.doctor.settings_tree import fill_ins, plugin_settings
from genevolve_ray.doctor.toolbox import check_tools
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import PolicySource
from genevolve_ray.evolution.patience import nodes, plain_settings
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.models.companions import prints_date
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.secrets import REMEDY, hide_secrets

_JOB = "build"
_CALLING = (BuildStage.PROMPTS, BuildStage.TRAJECTORIES, BuildStage.AUDIT, BuildStage.TRUTHS)


def with_paths(config: BuildConfig) -> BuildConfig:
    """Return a configuration whose relative paths are absolute, since workers may have another working folder."""
    data, update = config.data, dict[str, Any]()
    if not (TAXONOMIES / f"{data.taxonomy}.yaml").is_file():
        update["taxonomy"] = _absolute(data.taxonomy)
    for key in ("writer", "teacher", "auditor", "second_auditor", "truth_grader"):
        spec: PluginSpec | None = getattr(data, key)
        rubric = None if spec is None else spec.config.get("rubric")
        if spec is not None and isinstance(rubric, str) and not (PROMPTS_FOLDER / f"{rubric}.md").is_file():
            update[key] = spec.model_copy(update={"config": {**spec.config, "rubric": _absolute(rubric)}})
    policy = config.policy.model_copy(update={"model": _absolute(config.policy.model)})
    return config.model_copy(update={"data": data.model_copy(update=update), "policy": policy})


def policy_path(policy: str | None) -> str | None:
    """Return `--policy` with an absolute path where it is a file or a folder."""
    return None if policy is None else _absolute(policy)


def _absolute(text: str) -> str:
    """Return the absolute path of a file or a folder that there is; any other text as it is."""
    return str(Path(text).resolve()) if text and Path(text).exists() else text


def used_roles(config: BuildConfig, stage: BuildStage) -> dict[str, PluginSpec]:
    """Return the plug-ins that a stage calls, by their keys."""
    data = config.data
    roles: dict[BuildStage, dict[str, PluginSpec | None]] = {
        BuildStage.RECIPES: {"data.entities.source": data.entities.source},
        BuildStage.PROMPTS: {"data.writer": data.writer},
        BuildStage.TRAJECTORIES: {"tools": config.tools} if data.teacher is None else {"data.teacher": data.teacher},
        BuildStage.AUDIT: {"data.auditor": data.auditor, "data.second_auditor": data.second_auditor},
        BuildStage.TRUTHS: {"renderer": config.renderer, "data.truth_grader": data.truth_grader},
    }
    return {role: spec for role, spec in roles.get(stage, {}).items() if spec is not None}


def check_build(
    config: BuildConfig,
    folder: Path,
    policy: str | None,
    until: BuildStage,
    *,
    in_process: bool,
    say: Callable[[str], None],
) -> tuple[BuildConfig, PolicySource | None]:
    """Check all stages up to `until`, and return the configuration with its date, and the policy that answers, if any.

    A date, if the profile or the template shows one, stays that of the first day of the folder.

    Raises:
        UserFault: naming the invalid value, before any call is made.
    """
    _check_sizes(config)
    roles = {role: spec for stage in until.begun for role, spec in used_roles(config, stage).items()}
    _check_filled_in(config, roles, policy, until)
    for role, spec in roles.items():
        with placed(config):
            if spec.isolated:
                raise UserFault(f"{role}.runtime_env: the workers of a data build share one environment")
            check_plugin(role, spec)
            rubric_of(role, spec)
    if config.data.teacher is not None and policy is not None:
        raise UserFault(f"--policy {policy}: data.teacher answers in this build (--set data.teacher=null)")
    if policy == DIRECT:
        raise UserFault(f"--policy {DIRECT}: a teacher plays whole trajectories; name a run, a folder or an endpoint")
    if BuildStage.TRAJECTORIES not in until.begun or config.data.teacher is not None:
        _check_use(config, roles, until, None, in_process, say)
        return config, None
    with named_policy(policy, config) as source:
        assert source is not None, "`direct` was refused"
        dated = config.model_copy(update={"date": _date(config, folder, source)})
        _check_use(dated, roles, until, source, in_process, say)
        check_tools(dated, source.model)
        return dated, source


def _check_use(
    config: BuildConfig,
    roles: dict[str, PluginSpec],
    until: BuildStage,
    source: PolicySource | None,
    in_process: bool,
    say: Callable[[str], None],
) -> None:
    """Check secrets, prices, embedder and devices of the stages."""
    settings: dict[str, Any] = {role: spec.model_dump(mode="json") for role, spec in roles.items()}
    endpoint = None if source is None else source.endpoint
    if endpoint is not None:
        settings["policy"] = endpoint.model_dump(mode="json")
    here = not config.cluster.address
    check_secrets(settings, here=here)
    if here:
        _check_tokens({**{role: plugin_settings(role, spec)[1] for role, spec in roles.items()}, "policy": endpoint})
    for key in hide_secrets(settings):
        say(f"{key} is a secret in plain: it is masked in files; {REMEDY}")
    for stage in _CALLING:
        if stage in until.begun:
            _check_cap(config, stage, settings)
    if _compares(config, until):
        check_embedder(_embedding(config))
    asked: dict[str, object] = {}
    if source is not None and source.model is not None:
        asked["engine.device"] = config.engine.device
    if not in_process:
        asked |= {f"data.stages.{s}.gpus": getattr(config.data.stages, s).gpus for s in _CALLING if s in until.begun}
    if here:
        require_gpus(asked)


def _compares(config: BuildConfig, until: BuildStage) -> bool:
    """Return whether requests are embedded."""
    similar = BuildStage.PROMPTS in until.begun and config.data.similar_meaning is not None
    return similar or BuildStage.TRUTHS in until.begun


def _embedding(config: BuildConfig) -> BuildConfig:
    """Return a configuration whose embedder is in use, whether or not a run would learn from experience."""
    return config.model_copy(update={"experience": config.experience.model_copy(update={"enabled": True})})


def _check_filled_in(config: BuildConfig, roles: Iterable[str], policy: str | None, until: BuildStage) -> None:
    """Check that the blanks of a preset that this build uses are filled in. Raises UserFault naming those that are not."""
    used = [f"{role}." for role in roles]
    if _compares(config, until):
        used.append("experience.embedder.")
    if policy is None and config.data.teacher is None and BuildStage.TRAJECTORIES in until.begun:
        used.append("policy.model")
    if left := [key for key, _ in fill_ins(_embedding(config)) if key.startswith(tuple(used))]:
        raise UserFault(f"not filled in: {', '.join(left)} (--set, or a build of your own)")


def _check_tokens(settings: dict[str, Any]) -> None:
    """Check that the variable of every token is set. Raises UserFault naming key and variable."""
    named = (
        (key, getattr(node, "token_env", ""))
        for role, own in settings.items()
        for key, node in nodes(plain_settings(own), role if role == "policy" else f"{role}.config")
    )
    unset = [f"{name} ({key}.token_env)" for key, name in named if name and not os.environ.get(name, "").strip()]
    if unset:
        raise UserFault(f"environment variables of tokens are not set: {', '.join(unset)}")


def _check_cap(config: BuildConfig, stage: BuildStage, settings: dict[str, Any]) -> None:
    """Check that a service of a stage with a cap of money has a price. Raises UserFault naming both."""
    money = getattr(config.data.stages, stage).cap.money
    roles = [*used_roles(config, stage), *(["policy"] if stage is BuildStage.TRAJECTORIES else [])]
    if money is not None and not any(has_price(settings.get(role)) for role in roles):
        named = ", ".join(role for role in roles if role in settings)
        raise UserFault(
            f"data.stages.{stage}.cap.money={money:g}: no service of this stage has a price, so the cost would always be "
            f"0; set `price` in the settings of {named}, or cap the calls"
        )


def _check_sizes(config: BuildConfig) -> None:
    """Check that the counts of all parts are not more than the recipes. Raises UserFault with the numbers."""
    data = config.data
    wanted = {part.name: part.count for one in (data.trajectory_parts, data.request_parts) for part in one.parts}
    counts = {name: count for name, count in wanted.items() if count is not None}
    rows = data.recipes if data.recipes is not None else load_taxonomy(data.taxonomy).rows
    if rows is not None and sum(counts.values()) > rows:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserFault(
            f"the parts want {sum(counts.values())} rows ({told}), and there are {rows} recipes: set data.recipes, or the "
            "sizes of data.trajectory_parts and data.request_parts, as `share` for any number of recipes"
        )


def _date(config: BuildConfig, folder: Path, source: PolicySource) -> str:
    """Return the date that the policy is shown, "" for none; the first day of a folder is kept in it."""
    if not (config.protocol.append_date or (source.model is not None and prints_date(source.model))):
        return ""
    if config.date:
        return config.date
    kept = read_job(folder, _JOB).get("date")
    if kept is None:
        kept = datetime.now(UTC).date().isoformat()
        write_object(job_path(folder, _JOB), {"date": kept})
    return str(kept)
