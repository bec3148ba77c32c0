"""Checks that take a moment and save minutes: a run that cannot work is rejected before anything starts."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.trained_prompt import prompt_warning
from genevolve_ray.cluster.session import cluster_address
from genevolve_ray.cluster.sockets import check_temporary_folder
from genevolve_ray.config import RunConfig, key_place
from genevolve_ray.doctor.machine import find_gpus
from genevolve_ray.doctor.model_folder import check_architecture, check_embedded, check_streamed, check_texts
from genevolve_ray.doctor.settings_tree import (
    fill_ins,
    plugin_roles,
    plugin_settings,
    services,
    setup_folder,
    unmade,
    unset_references,
    unset_tokens,
)
from genevolve_ray.doctor.sight import check_sight
from genevolve_ray.doctor.toolbox import check_tools
from genevolve_ray.engines.checks import check_samplable, engine_context
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.evolution.redraws import check_group_judge
from genevolve_ray.evolution.telemetry.traces import check_traces
from genevolve_ray.evolution.trackers.opening import check_trackers
from genevolve_ray.judges.protocol import declared_components, gives_kscore, judges_groups
from genevolve_ray.models.hub import local_model
from genevolve_ray.records.rewards import OpenReward
from genevolve_ray.records.secrets import MASK, REMEDY, masked_keys
from genevolve_ray.remote.proxies import mounted
from genevolve_ray.small.stages import PRESET_FOLDER

_LOG = logging.getLogger(__name__)


def preflight(config: RunConfig, *, model: bool = True, local: bool = False) -> None:
    """Check in a moment that nothing is left to fill in, and that GPUs, policy, embedder, plug-ins and tokens exist.

    `genevolve doctor` checks the same and more, and reports everything at once (`doctor.run`).

    A plug-in with a `runtime_env` is skipped: it may be importable only where it runs, and is checked there.

    Args:
        config: the run.
        model: whether the policy must exist already.
        local: whether everything runs in this process, where no plug-in can have an environment of its own.

    Raises:
        UserFault: naming the invalid value.
    """
    check_filled_in(config)
    check_setup(config)
    check_trackers(config.logging)
    check_traces(config.logging.traces)
    check_devices(config, local)
    check_sockets(config, local=local)
    if config.gateway.port:
        check_address(config.gateway.host, config.gateway.port, "gateway.port")
    check_date(config)
    if model:
        check_policy(config)
    check_embedder(config)
    for role in plugin_roles(config):
        with placed(config):
            check_plugin(role, config.plugin(role), local)
    check_examination(config)
    check_reward(config)
    check_truths(config)
    check_tokens(config)
    check_proxies(config)
    check_tools(config, model_folder(config.policy.model) if model and config.rehearsal is None else None)


@contextmanager
def placed(config: RunConfig) -> Iterator[None]:
    """Begin the message of a fault that begins with a key by the place of its value: file and line, or `--set`."""
    try:
        yield
    except UserFault as fault:
        key = str(fault).partition(": ")[0]
        place = key_place(config, key) if "." in key and " " not in key else ""
        if not place:
            raise
        raise UserFault(f"{place}{fault}") from fault


def check_filled_in(config: RunConfig) -> None:
    """Check that the blanks of a preset are filled in. Raises UserFault naming those that are not."""
    if left := fill_ins(config):
        keys = ", ".join(key for key, _ in left)
        raise UserFault(f"not filled in: {keys} (--set, or a copy of the preset; see `genevolve doctor`)")


def check_setup(config: RunConfig) -> None:
    """Check that what the preset `small` names was made. Raises UserFault naming the first key and folder."""
    if missing := unmade(config):
        key, path = missing[0]
        more = f" ({len(missing) - 1} more are missing)" if missing[1:] else ""
        elsewhere = setup_option(config)
        where = elsewhere or " in this folder, or name the small.yaml of another folder as the preset"
        raise UserFault(f"{key}={path}: no such file or folder{more}: run genevolve small setup{where}")


def setup_option(config: RunConfig) -> str:
    """Return the option of `genevolve small setup` that makes what a run names of it, "" for the folder of the preset."""
    folder = setup_folder(config)
    return "" if folder == PRESET_FOLDER else f" --out {folder}"


def check_sockets(config: RunConfig, *, local: bool = False) -> None:
    """Check that the sockets of Ray and vLLM fit into the folder for temporary files. Raises UserFault."""
    here = local or not cluster_address(config.cluster)
    check_temporary_folder(ray=not local and here, vllm=here and config.engine.kind == "vllm")


def check_address(host: str, port: int, key: str) -> None:
    """Check that a server can listen on an address. Raises UserFault naming the key and the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise UserFault(f"{key}={port}: cannot listen on {host}:{port}: {error.strerror or error}") from error


def check_policy(config: RunConfig) -> None:
    """Check that the policy can be sampled and trained here, and that its tokenizer fits. Raises UserFault."""
    try:
        folder = model_folder(config.policy.model)
        check_sight(folder, config.protocol, config.engine)
        check_sampled(folder, config.engine)
        check_final_step(folder, config.protocol)
        for warning in (prompt_warning(folder, config.protocol), unexamined_requests(config)):
            if warning:
                _LOG.warning("%s", warning)
        if config.rehearsal is None:
            check_architecture(folder, decoded=config.engine.kind == "transformers")
            if config.cluster.weights != "host":
                check_streamed(folder, config.cluster.weights)
    except (OSError, ValueError) as error:
        raise UserFault(f"policy.model: {error}") from error


def check_sampled(folder: Path, engine: EngineConfig) -> None:
    """Check that an engine can sample a model folder, that its context is long enough, and that its tokenizer fits.

    Raises:
        FileNotFoundError, ValueError: naming the missing file, or the key and value.
    """
    check_samplable(folder, engine)
    engine_context(folder, engine.max_model_len)
    check_texts(folder)


def unexamined_requests(config: RunConfig) -> str:
    """Return a warning where the judge of the atlas meets requests from elsewhere, "" otherwise."""
    atlas = "genevolve_ray.atlas."
    if not config.judge.type.startswith(atlas) or config.requests.type.startswith(atlas) or not config.reward.examines:
        return ""
    return (
        f"judge {config.judge.type} examines programs against facts of the atlas, which requests from elsewhere do not "
        "carry: samples of requests that need such facts have no reward (reward.text_weight=0 rewards pictures alone)"
    )


def check_final_step(folder: Path, profile: ProtocolProfile) -> None:
    """Check that the chat template takes the last announcement of a profile as a turn of its own.

    Raises:
        ValueError: naming the setting that helps.
    """
    if profile.final_step_as != "turn":
        return
    from genevolve_ray.agent.chat import ChatFormat, load_tokenizer

    try:
        ChatFormat(load_tokenizer(folder)).check_user_turns()
    except ValueError as error:
        raise ValueError(
            f"{folder}: {error}; profile {profile.name!r} announces the last turn in a message of its own "
            "(profile.final_step_as: note puts it into the observation before)"
        ) from error


def check_date(config: RunConfig) -> None:
    """Check that there is a date where the profile shows one. Raises UserFault."""
    if config.protocol.append_date and not config.date:
        raise UserFault(
            f"profile={config.protocol.name} shows the policy a date, but date is not set (date=YYYY-MM-DD)"
        )


def check_embedder(config: RunConfig) -> None:
    """Check that a configured embedding model exists. Raises UserFault."""
    embedder = config.experience.embedder
    if config.experience.enabled and embedder.kind == "transformers":
        folder = local_model(embedder.transformers.model, "experience.embedder.transformers.model")
        if not (folder / "config.json").is_file():
            raise UserFault(f"experience.embedder.transformers.model: {str(folder)!r} has no config.json")
        try:
            check_embedded(folder)
        except (OSError, ValueError) as error:
            raise UserFault(f"experience.embedder.transformers.model: {error}") from error


def check_plugin(role: str, spec: PluginSpec, local: bool = False) -> None:
    """Check that a plug-in loads with its settings, if this process can. Raises UserFault naming the invalid value."""
    if spec.isolated:
        if local:
            keys = ", ".join(spec.runtime_env)
            raise UserFault(f"{role}.runtime_env ({keys}) needs separate processes: run without --in-process")
        return
    kind, settings = plugin_settings(role, spec)
    try:
        if hasattr(kind, "check"):
            kind.check(settings)
    except (ValueError, OSError, AttributeError) as error:
        raise UserFault(f"{role}: {error}") from error


def check_examination(config: RunConfig) -> None:
    """Check that the judge examines programs where the reward counts them. Raises UserFault."""
    chosen = config.judge.config.get("sufficiency_check", "required")
    if chosen != "required" and config.reward.examines:
        rewarded = f"reward.text_weight is {config.reward.text_weight}"
        if config.reward.components:
            rewarded = "reward.components needs sufficiency"
        raise UserFault(
            f"judge.config.sufficiency_check={chosen}, but {rewarded}: a run needs `required`, or a reward without it"
        )


def check_truths(config: RunConfig) -> None:
    """Check that requests without ground-truth images are kept only where no judge needs one. Raises UserFault."""
    if config.requests.config.get("truths") == "optional" and (roles := config.truth_roles):
        raise UserFault(
            f"requests.config.truths=optional keeps requests without a ground-truth image, which {roles[0]} "
            f"({roles[0]}.type={config.plugin(roles[0]).type}) needs: use required"
        )


def check_reward(config: RunConfig) -> None:
    """Check that the judges declare the components that the reward names, and that it gives a number. Raises UserFault.

    A judge that has an environment of its own is checked where the run starts. Re-draws exclude judges of groups.
    """
    check_formulas(config)
    declared = {}
    for role, spec in config.judge_specs.items():
        if spec.isolated:
            return
        kind, settings = plugin_settings(role, spec)
        if judges_groups(kind):
            if role == "judge":
                raise UserFault(f"judge.type={spec.type} judges groups: name it under judges, and another one as judge")
            check_group_judge(config, role)
        declared[role.removeprefix("judges.")] = declared_components(kind, settings)
    if config.reward.components:
        OpenReward(config.reward, declared)
    elif not gives_kscore(*plugin_settings("judge", config.judge)):
        raise UserFault(f"judge gives no KScore: set reward.components, from {', '.join(declared['judge'])}")


def check_formulas(config: RunConfig) -> None:
    """Check that open verdicts have the KScore of `reward.formula`. Raises UserFault naming a judge with another one."""
    # By the formula, only verdicts with the grades are computed again.
    for role, spec in config.judge_specs.items():
        if spec.isolated:
            continue
        kind, settings = plugin_settings(role, spec)
        named, used = getattr(settings, "formula", None), config.reward.formula
        measured = "kscore" in declared_components(kind, settings) and not gives_kscore(kind, settings)
        if measured and named not in (None, used):
            raise UserFault(
                f"{role} gives KScores by the formula {named!s} in an open verdict, which reward.formula={used!s} cannot "
                "alter: use one formula"
            )


def check_kscore(spec: PluginSpec) -> None:
    """Check that a judge whose KScores a command writes declares one. Raises UserFault.

    A judge that has an environment of its own is asked once it runs (`evolution.services.kscore_judge`).
    """
    if spec.isolated:
        return
    kind, settings = plugin_settings("judge", spec)
    if not gives_kscore(kind, settings):
        declared = declared_components(kind, settings)
        raise UserFault(f"judge.type={spec.type} gives no KScore, only {', '.join(declared)}: name another judge")


def check_tokens(config: RunConfig) -> None:
    """Check that every variable of a token or of a `${NAME}` is set. Raises UserFault.

    A remote cluster has variables of its own.
    """
    check_secrets(config.model_dump(mode="json"), here=not config.cluster.address)
    if config.cluster.address:
        return
    if missing := unset_tokens(config):
        named = ", ".join(f"{token.variable} ({token.key}.token_env)" for token in missing)
        raise UserFault(f"environment variables of tokens are not set: {named}")


def check_secrets(settings: Mapping[str, Any], *, here: bool) -> None:
    """Check that secrets can be read: that each `${NAME}` is set, and that no value is one that was masked.

    Args:
        settings: plain settings by their keys.
        here: whether the processes that read them are on this machine.

    Raises:
        UserFault: naming the keys.
    """
    if unset := unset_references(settings, here=here):
        named = ", ".join(f"{name} ({key})" for key, name in unset)
        raise UserFault(f"environment variables of settings are not set: {named}")
    if lost := list(masked_keys(settings)):
        raise UserFault(f"{', '.join(lost)}: the files of a run hold {MASK} in place of a secret; {REMEDY}")


def check_proxies(config: RunConfig) -> None:
    """Check that the proxy of each service's address can be used. Raises UserFault naming the variable."""
    for service in services(config):
        mounted(tuple(url for url in service.config.urls if "://" in url))


def check_devices(config: RunConfig, local: bool = False) -> None:
    """Check that this process, or a private cluster on this machine, has the GPUs that the configuration requests.

    Raises:
        UserFault: naming the requested and the available devices. A remote cluster is not checked.
    """
    if not local and cluster_address(config.cluster):
        return
    asked = {
        "engine.device": config.engine.device,
        "learner.device": config.learner.device,
        "cluster.rollout_gpus": config.cluster.rollout_gpus,
        "cluster.learner_gpus": config.cluster.learner_gpus,
        **{f"cluster.{role}.gpus": service.gpus for role, service in config.services.items()},
    }
    embedder = config.experience.embedder
    if config.experience.enabled and embedder.kind == "transformers":
        asked["experience.embedder.transformers.device"] = embedder.transformers.device
    require_gpus(asked)


def require_gpus(asked: Mapping[str, object]) -> None:
    """Check that this machine has a GPU where a setting requests one.

    Args:
        asked: settings by their key: a device by name, or a number of GPUs.

    Raises:
        UserFault: naming the settings that request a GPU, where there is none.
    """
    wanting = {key: value for key, value in asked.items() if value and not str(value).startswith("cpu")}
    if wanting and not find_gpus():
        settings = ", ".join(f"{key}={value}" for key, value in wanting.items())
        raise UserFault(f"{settings}: a GPU is asked for, this machine has none")


def model_folder(model: str, key: str = "policy.model", *, download: bool = True) -> Path:
    """Return the folder of a policy.

    Args:
        model: a path, `package:FOLDER` for one that ships inside an installed package, or a hub id (`models.hub`).
        key: the setting, for messages.
        download: whether a model of the hub may be downloaded.

    Raises:
        FileNotFoundError: when the package is not installed.
        UserFault: when a model of the hub is not here and cannot be downloaded.
    """
    package, colon, name = model.partition(":")
    if not (colon and package.replace(".", "_").isidentifier()):
        return local_model(model, key, download=download)
    try:
        return Path(str(resources.files(package) / name))
    except (ModuleNotFoundError, TypeError) as error:
        raise FileNotFoundError(f"{model}: no such package: {package}") from error
