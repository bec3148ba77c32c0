"""Checks of numbers against each other: contexts, time limits, formulas, devices, placement, memory and disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from genevolve_ray.cluster.config import on_one_gpu
from genevolve_ray.cluster.errors import PlacementError
from genevolve_ray.cluster.session import cluster_address
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor import settings_tree
from genevolve_ray.doctor.machine import Check, find_gpus, write_fault
from genevolve_ray.doctor.model_folder import Weights, context_of
from genevolve_ray.doctor.parts import GIB, note, ok, problem
from genevolve_ray.doctor.plan import make_plan
from genevolve_ray.doctor.preflight import check_address, check_devices, check_sockets, model_folder
from genevolve_ray.doctor.sight import FRAME, most_tokens
from genevolve_ray.errors import UserFault
from genevolve_ray.models.image_tokens import load_image_tokens

_MASTER_BYTES, _ADAM_BYTES, _GRADIENT_BYTES = 4, 8, 4
"""Bytes a parameter takes in float32: itself, AdamW's two moments, its gradient."""


def context(config: RunConfig) -> list[Check]:
    """Compare the longest sequence of the profile with what engine and model hold."""
    profile, asked = config.protocol, config.engine.max_model_len
    longest = profile.max_prompt_tokens + profile.max_response_tokens
    own = None if settings_tree.waits(config.policy.model) else context_of(_folder(config))
    if asked and own and asked > own:
        detail = f"engine.max_model_len={asked}, but the model supports only {own}"
        return [problem("context", detail, f"--set engine.max_model_len={own}")]
    limit = config.engine_for(own).max_model_len
    if limit is None or (asked is None and own is None):
        return []
    said = f"profile {profile.name}: {profile.max_prompt_tokens} prompt + {profile.max_response_tokens} response tokens"
    remedy = f"--set engine.max_model_len={min(longest, own or longest)}"
    if limit == own:
        remedy = "the policy supports no more: another policy, or a profile with shorter prompts and responses"
    if limit <= profile.max_prompt_tokens:
        return [problem("context", f"{said}; the engine holds {limit}, which a prompt alone can fill", remedy)]
    if limit < longest:
        return [note("context", f"{said}; the engine holds {limit} and truncates longer episodes", remedy)]
    return [ok("context", f"{said} fit the engine's {limit}")]


def pictures(config: RunConfig) -> list[Check]:
    """Compare the tokens of the pictures that the profile shows with the tokens of a response.

    A model that is missing or does not see is a finding of the policy, not of this function.
    """
    profile, shown = config.protocol, config.protocol.observations
    if settings_tree.waits(config.policy.model):
        return [note("pictures", "not checked until policy.model is filled in")] if shown.images else []
    try:
        folder = _folder(config)
        images = load_image_tokens(folder)
        if images is None or not shown.images:
            text = f"{folder} can see, but profile {profile.name} shows it no pictures"
            return [note("pictures", text, "--set profile.observations.images=true")] if images else []
        each = most_tokens(images, shown) + FRAME
    except (OSError, ValueError):
        return []
    search, searches = each * shown.per_search, profile.most_images // shown.per_search
    room, size = profile.max_response_tokens, f"up to {shown.max_side} pixels a side"
    size += "" if shown.max_pixels is None else f", {shown.max_pixels} in all"
    said = f"{shown.per_search} a search, {size}: at most {each} tokens each, {search} a search"
    remedy = "--set profile.observations.max_side=... or per_search=..., or more profile.max_response_tokens"
    if search >= room:
        return [problem("pictures", f"{said}, but a response has {room} (profile.max_response_tokens)", remedy)]
    text = f"{said}, {search * searches} of {room} response tokens for {searches} searches"
    if search * searches >= room:
        return [note("pictures", f"{text}: those without room are left out", remedy)]
    return [ok("pictures", text)]


def time_limits(config: RunConfig) -> list[Check]:
    """Compare the time limit of a role's replica with the time that the service behind it may take."""
    said = []
    for service in settings_tree.services(config):
        outer = config.services.get(service.role)
        if outer is None or outer.timeout is None:  # The memory's process has no time limit.
            continue
        inner = service.config
        needed = inner.patience_s
        key = f"cluster.{service.role}.timeout"
        text = (
            f"{service.key}: {inner.attempts} tries x ({inner.timeout_s:g} + {inner.max_backoff_s:g} s) = {needed:g} s, "
            f"{key}={outer.timeout:g}"
        )
        rounds = 1 + _repairs(config, service.role)
        if outer.timeout <= needed:
            why = "a slow service would be called again while it still works"
            said.append(problem("time", f"{text}: {why}", f"--set {key}={needed + 60:g}, or fewer attempts"))
        elif outer.timeout <= needed * rounds:
            why = f"an answer with {rounds - 1} retries may take up to {needed * rounds:g} s"
            said.append(note("time", f"{text}; {why}", f"--set {key}={needed * rounds + 60:g}"))
        else:
            said.append(ok("time", text))
    return said


def descriptors(config: RunConfig) -> list[Check]:
    """Check the gateway's address and tokens, and compare its connections with the files that this process may open."""
    if config.gateway.port is None:
        return []
    from genevolve_ray.gateway.connections import connection_budget
    from genevolve_ray.gateway.launch import opening_notes

    notes = [note("gateway", text) for text in opening_notes(config.gateway, config.experience)]
    try:
        if config.gateway.port:
            check_address(config.gateway.host, config.gateway.port, "gateway.port")
    except UserFault as fault:
        return [problem("gateway", fault, "--set gateway.port=..., or end the process that listens there"), *notes]
    asked = config.gateway.limits
    try:
        budget = connection_budget(asked)
    except ValueError as error:
        return [problem("gateway", str(error)), *notes]
    said = f"{budget.holders} connections with a token and {budget.strangers} without one"
    if (budget.holders, budget.strangers) != (asked.connections, asked.strangers):
        few = note("gateway", f"the limit of open files leaves {said}", "raise the hard limit of open files")
        return [few, *notes]
    return [ok("gateway", said), *notes]


def _repairs(config: RunConfig, role: str) -> int:
    """Return how often a plug-in repeats a request whose answer it cannot read."""
    _, settings = settings_tree.plugin_settings(role, config.plugin(role))
    repairs = getattr(settings, "repairs", 0)
    return repairs if isinstance(repairs, int) else 0


def formula(config: RunConfig) -> list[Check]:
    """Compare the formula that rewards use with the one that the judge writes into verdicts."""
    if config.judge.isolated:
        return []
    try:
        _, settings = settings_tree.plugin_settings("judge", config.judge)
    except UserFault:
        return []
    named, used = getattr(settings, "formula", None), config.reward.formula
    if named is None:
        return []
    if named != used:
        detail = f"judge.config.formula={named!s}, reward.formula={used!s}: the verdicts would use another score than the reward"
        return [problem("formula", detail, f"--set judge.config.formula={used!s}")]
    return [ok("formula", str(used))]


def devices(config: RunConfig) -> list[Check]:
    """Return whether the requested GPUs are on this machine; a remote cluster is not checked here."""
    if cluster_address(config.cluster):
        return []
    try:
        check_devices(config)
    except UserFault as fault:
        return [
            problem("devices", fault, "use a machine with GPUs, cluster.address=..., or engine.device=cpu for a trial")
        ]
    return [ok("devices", f"the requested devices are available ({len(find_gpus())} GPUs)")]


def reservations(config: RunConfig) -> list[Check]:
    """Return the plug-ins that compute on a GPU that their replicas do not reserve: on Ray they would find none."""
    said = []
    for role, key, node in settings_tree.settings_nodes(config):
        service, model = config.cluster.service(role), getattr(node, "model", None)
        device = model.get("device") if isinstance(model, Mapping) else getattr(node, "device", None)
        if service is not None and str(device).startswith("cuda") and not service.gpus:
            text = f"{key}: device {device}, but cluster.{role}.gpus=0 reserves none"
            said.append(problem("devices", text, f"--set cluster.{role}.gpus=1"))
    return said


def placement(config: RunConfig, *, deep: bool) -> list[Check]:
    """Return whether the run's processes fit the machine or the cluster; a cluster is queried with `deep` only."""
    address = cluster_address(config.cluster)
    if address is not None and not deep:
        return [
            note(
                "placement",
                f"the cluster at {address} was not checked",
                "--deep, or genevolve plan --node 4x64cpu+8gpu",
            )
        ]
    try:
        plan = make_plan(config)
    except PlacementError as error:
        return [problem("placement", error, "start the cluster, or correct cluster.address and RAY_ADDRESS")]
    if not plan.fits:
        return [problem("placement", plan.obstacle, "genevolve plan shows every process and its resources")]
    return [ok("placement", f"{plan.total('CPU'):g} CPU and {plan.total('GPU'):g} GPU fit {plan.where}")]


def learner_memory(config: RunConfig, weights: Weights | None) -> list[Check]:
    """Compare the memory of master weights, gradients and AdamW on each rank with the GPUs of this machine."""
    learner = config.learner
    gpus = find_gpus()
    if (
        weights is None
        or learner.device == "cpu"
        or learner.lora
        or learner.offload
        or not gpus
        or config.cluster.address
    ):
        return []
    each = weights.parameters * (_MASTER_BYTES + _ADAM_BYTES + _GRADIENT_BYTES) / config.cluster.learner_ranks / GIB
    there = max(gpu.memory_mib for gpu in gpus) / 1024
    engine = _engine_share(config) * there
    text = f"{each:.0f} GiB a rank for weights, gradients and AdamW, before activations; the GPU has {there:.0f} GiB"
    remedy = "--set learner.lora={}, more cluster.learner_ranks, or --set learner.offload=true"
    if engine and not config.engine.vllm.sleep:
        text += f", of which the engine takes {engine:.0f} (engine.vllm.gpu_memory_utilization)"
        remedy += ", or --set engine.vllm.sleep=true"
        there -= engine
    elif engine:
        kept = each * (_MASTER_BYTES + _ADAM_BYTES) / (_MASTER_BYTES + _ADAM_BYTES + _GRADIENT_BYTES)
        text += f", of which the engine takes {engine:.0f} beside {kept:.0f} during rollouts (engine.vllm.sleep=true)"
        if kept >= there - engine:
            return [problem("memory", text, f"{remedy}, or a smaller engine.vllm.gpu_memory_utilization")]
    return [ok("memory", text) if each < there else problem("memory", text, remedy)]


def _engine_share(config: RunConfig) -> float:
    """Return the share of the learner's GPU that an engine on it takes, 0 where it has one of its own or a fixed cache."""
    engine = config.engine
    if engine.kind != "vllm" or engine.device == "cpu" or engine.vllm.kv_cache_mib is not None:
        return 0.0
    return engine.vllm.gpu_memory_utilization if on_one_gpu(config.cluster) else 0.0


def disk(config: RunConfig, run_dir: Path, weights: Weights | None) -> list[Check]:
    """Check that the run folder can be written, and compare its free space with the size of the checkpoints."""
    if fault := write_fault(run_dir):
        return [problem("disk", fault, "another folder with --run")]
    existing = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    text = f"{free:.1f} GiB free for {run_dir}"
    if weights is None or config.learner.lora:
        return [ok("disk", text)]
    kept = config.checkpoints.keep_last + config.checkpoints.keep_best + 1  # One is written before another is deleted.
    needed = kept * weights.parameters * (_MASTER_BYTES + _ADAM_BYTES) / GIB
    text = f"{text}; {kept} checkpoints with their optimizer need {needed:.1f} GiB, plus images and trajectories"
    if free < needed:
        return [problem("disk", text, "another folder with --run, or checkpoints.keep_last=1 and keep_best=0")]
    return [ok("disk", text)]


def sockets(config: RunConfig) -> list[Check]:
    """Return a finding when the sockets of Ray or vLLM do not fit into the folder for temporary files."""
    try:
        check_sockets(config)
    except UserFault as fault:
        return [problem("temporary files", fault, "set the variable to a short path of ASCII letters")]
    return []


def _folder(config: RunConfig) -> Path:
    try:
        return model_folder(config.policy.model, download=False)
    except (FileNotFoundError, UserFault):
        return Path(config.policy.model)
