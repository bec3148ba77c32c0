"""Checks of a run's parts: values to fill in, model folders, plug-ins, data, tokens, services by their settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genevolve_ray.agent.trained_prompt import prompt_warning
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor import settings_tree
from genevolve_ray.doctor.machine import Check, Status
from genevolve_ray.doctor.model_folder import (
    Weights,
    check_architecture,
    check_streamed,
    check_texts,
    missing_texts,
    read_weights,
)
from genevolve_ray.doctor.preflight import (
    check_date,
    check_embedder,
    check_examination,
    check_final_step,
    check_plugin,
    check_reward,
    check_setup,
    model_folder,
    placed,
    setup_option,
    unexamined_requests,
)
from genevolve_ray.doctor.sight import check_sight
from genevolve_ray.doctor.toolbox import check_tools, offered_tools, unoffered_tools
from genevolve_ray.engines.checks import check_samplable
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.sources import build_source, check_request, first_requests, prime_source, recorded_rows
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.telemetry.traces import check_traces
from genevolve_ray.evolution.trackers.opening import check_trackers
from genevolve_ray.models.hub import is_hub_id, local_model, offline
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import MASK, REMEDY, hide_secrets, shown
from genevolve_ray.remote.proxies import is_loopback, mounted, proxy_for

GIB = 1024**3


def ok(name: str, detail: str) -> Check:
    """Return a finding of a passed check."""
    return Check(name, Status.OK, detail)


def note(name: str, detail: str, remedy: str = "") -> Check:
    """Return a finding that does not stop the run."""
    return Check(name, Status.NOTE, detail, remedy)


def problem(name: str, detail: object, remedy: str = "") -> Check:
    """Return a finding that stops the run, or would make its results wrong."""
    return Check(name, Status.PROBLEM, " ".join(clean(detail).split()), remedy)


def clean(text: object) -> str:
    """Return external text in a form that is safe for a terminal: without control characters and secrets."""
    return shown(text).replace("\n", " ")


def left_to_fill_in(config: RunConfig) -> list[Check]:
    """Return a finding for every blank of a preset."""
    left = settings_tree.fill_ins(config)
    if not left:
        return [ok("fill in", "nothing is left to fill in")]
    return [
        problem("fill in", f"{key} is {value!r}", f"--set {_settable(key)}=..., or a copy of the preset")
        for key, value in left
    ]


def setup(config: RunConfig) -> list[Check]:
    """Return a finding where folders of the preset `small` were not made; nothing for other runs."""
    try:
        check_setup(config)
    except UserFault as fault:
        return [problem("setup", fault, f"genevolve small setup{setup_option(config)}")]
    return []


def _settable(key: str) -> str:
    """Return the key that --set takes: a list is set as a whole."""
    parts = key.split(".")
    while parts and parts[-1].isdigit():
        parts.pop()
    return ".".join(parts)


def policy(config: RunConfig, *, deep: bool) -> tuple[list[Check], Weights | None]:
    """Return the findings about the policy's folder, and the size of its weights where they can be read."""
    if settings_tree.waits(config.policy.model):
        return [note("policy", "not checked until policy.model is filled in")], None
    remedy = "--set policy.model=FOLDER, in Hugging Face layout"
    weights = None
    if waiting := _to_download("policy", config.policy.model):
        return [waiting], None
    try:
        folder = model_folder(config.policy.model, download=False)
        if config.protocol.observations.images:
            remedy = f"{remedy} of a model that sees, or profile.observations.images=false"
        check_sight(folder, config.protocol, config.engine)
        check_samplable(folder, config.engine)
        weights = read_weights(folder)
        remedy = "copy the files from the original model"
        said = [ok("policy", f"{folder}: {weights.count} parameters, {weights.bytes / GIB:.2f} GiB")]
        said.append(ok("tokenizer", check_texts(folder)))
        remedy = "--set profile.final_step_as=note, or another policy.model"
        check_final_step(folder, config.protocol)
        if warning := prompt_warning(folder, config.protocol):
            said.append(note("system prompt", warning))
        if warning := unexamined_requests(config):
            said.append(note("judge", warning))
        remedy = "another policy.model"
        check_architecture(folder, decoded=config.engine.kind == "transformers")
        if config.cluster.weights != "host":
            remedy = "--set cluster.weights=host"
            check_streamed(folder, config.cluster.weights)
    except (UserFault, OSError, ValueError) as error:
        return [problem("policy", error, remedy)], weights
    from genevolve_ray.doctor.first_turn import first_turn

    return [*said, first_turn(config, folder, weights, deep=deep)], weights


def _to_download(name: str, model: str) -> Check | None:
    """Return a finding for a model of the hub that the start of the run downloads."""
    if not is_hub_id(model) or offline():
        return None
    try:
        local_model(model, name, download=False)
    except UserFault:
        return note(name, f"{model} is not in the cache: the start of the run downloads it", f"hf download {model}")
    return None


def date(config: RunConfig) -> list[Check]:
    """Return whether there is a date where the profile shows the policy one."""
    try:
        check_date(config)
    except UserFault as fault:
        return [problem("date", fault, "--set date=YYYY-MM-DD")]
    return [ok("date", f"{config.date} is the day that the policy is shown")] if config.date else []


def trackers(config: RunConfig) -> list[Check]:
    """Return whether the configured trackers can be opened, nothing where there are none."""
    chosen = config.logging.chosen
    try:
        check_trackers(config.logging)
    except UserFault as fault:
        return [problem("trackers", fault)]
    return [ok("trackers", ", ".join(chosen))] if chosen else []


def traces(config: RunConfig) -> list[Check]:
    """Return whether traces can be exported, nothing where the run exports none."""
    try:
        check_traces(config.logging.traces)
    except UserFault as fault:
        return [problem("traces", fault)]
    return [ok("traces", "OpenTelemetry is installed")] if config.logging.traces is not None else []


def embedder(config: RunConfig) -> list[Check]:
    """Return the findings about the embedding model."""
    settings = config.experience.embedder
    if (
        not config.experience.enabled
        or settings.kind != "transformers"
        or settings_tree.waits(settings.transformers.model)
    ):
        return []
    remedy = "--set experience.embedder.transformers.model=FOLDER, in Hugging Face layout"
    if waiting := _to_download("embedder", settings.transformers.model):
        return [waiting]
    try:
        folder = local_model(settings.transformers.model, "experience.embedder.transformers.model", download=False)
        check_embedder(config)
        weights = read_weights(folder)
        if lacking := [text for text in missing_texts(folder) if "tokenizer (" in text]:
            return [problem("embedder", f"{folder} lacks {lacking[0]}", "copy it from the original model")]
    except (UserFault, OSError, ValueError) as error:
        return [problem("embedder", error, remedy)]
    return [ok("embedder", f"{folder}: {weights.count} parameters on {settings.transformers.device}")]


def plugins(config: RunConfig) -> list[Check]:
    """Return, for each role, whether its class can be imported and takes its settings."""
    without = {token.role for token in settings_tree.unset_tokens(config)}
    found = [_plugin(config, role, role in without) for role in settings_tree.plugin_roles(config)]
    try:
        check_examination(config)
    except UserFault as fault:
        found.append(problem("judge", fault, "--set judge.config.sufficiency_check=required"))
    if not any(settings_tree.waits(spec.model_dump()) for spec in config.judge_specs.values()):
        try:
            check_reward(config)
        except UserFault as fault:
            if all(one.status is not Status.PROBLEM for one in found):  # A broken judge has a line of its own.
                found.append(problem("reward", fault, "correct reward.components, or the judges"))
    return found


def _plugin(config: RunConfig, role: str, without_token: bool) -> Check:
    spec = config.plugin(role)
    remedy = f"--set {role}.type=package.module:Class, --set {role}.config.KEY=VALUE"
    if settings_tree.waits(spec.type):
        return note(role, f"not checked until {role}.type is filled in")
    if spec.isolated:
        return note(role, f"{spec.type} has its own environment (runtime_env) and is checked there")
    try:
        with placed(config):
            kind, _ = settings_tree.plugin_settings(role, spec)
        if settings_tree.waits(spec.config):
            return note(role, f"{spec.type} accepts its settings, which are not complete yet")
        if not hasattr(kind, "check") or role == "requests" or without_token:  # The latter two have lines of their own.
            return ok(role, f"{spec.type} accepts its settings")
        check_plugin(role, spec)
    except UserFault as fault:
        if settings_tree.waits(str(fault)):
            return note(role, f"{spec.type}: settings are not complete yet")
        return problem(role, fault, remedy)
    except Exception as error:  # noqa: BLE001  a plug-in is foreign code: any error is a finding of its own
        return problem(role, f"{spec.type}: {type(error).__name__}: {error}", remedy)
    return ok(role, f"{spec.type} accepts its settings and passes its check")


def tools(config: RunConfig) -> list[Check]:
    """Return a finding for a tool that the profile needs, and for each that only the text of its prompt names."""
    if settings_tree.waits(config.tools.model_dump()) or config.tools.isolated:
        return []
    try:
        offered = offered_tools(config)
    except UserFault:
        return []  # Reported with the plug-ins.
    try:
        check_tools(config)
        lacking = unoffered_tools(config, offered or {}) if offered is not None else []
    except (UserFault, ValueError) as fault:
        return [problem("tools", fault, "--set profile=..., or tools that offer it")]
    said = f"the system prompt of profile {config.protocol.name} names a tool that {config.tools.type} does not offer: "
    return [note("tools", said + name, "another profile or prompt, or tools that offer it") for name in lacking]


def data(config: RunConfig, run_dir: Path) -> list[Check]:
    """Return whether the request source can be read, with its first requests and their truth images.

    Of a run that is resumed, the rows must still be those that it began with.
    """
    spec = config.requests
    if settings_tree.waits(spec.type) or settings_tree.waits(spec.config):
        return [note("data", "not read until requests.config is filled in")]
    try:
        settings_tree.plugin_settings("requests", spec)
    except UserFault:
        return []  # Reported with the plug-ins.
    images, folder = MemoryImages(), Folder(str(run_dir))
    try:
        prime_source(spec, folder)
        source = build_source(spec, config.judge, images)
        record = recorded_rows(folder)
        kept = source.keep(record) if record and hasattr(source, "keep") else []
        said = [
            check for part, drawn in first_requests(source, config) for check in _first(part, drawn, images, config)
        ]
        report = getattr(source, "report", None)
        if isinstance(report, RejectionReport) and report.rejected:
            said.append(note("data", " ".join(report.text().split())))
        return [*said, *(note("data", change) for change in kept), *_enough(config, source)]
    except Exception as error:  # noqa: BLE001  foreign code again; the message of the reader names file and row
        return [problem("data", f"{type(error).__name__}: {error}", "see docs/data.md for the supported files")]


def _first(part: str, drawn: list[Request], images: MemoryImages, config: RunConfig) -> list[Check]:
    if not drawn:
        return [problem("data", f"{part}: no request", "see docs/data.md")]
    request = drawn[0]
    try:
        said = [note("data", f"{part}: {lacking}") for lacking in check_request(request, config)]
    except UserFault as fault:
        return [problem("data", f"{part}: {fault}")]
    if request.truth_image is None:
        shown = f"{part}: first request {request.id}, without a ground-truth image, which no judge needs"
        return [ok("data", shown), *said]
    size = f"{request.truth_image.width} x {request.truth_image.height}"
    images.get(request.truth_image)
    return [ok("data", f"{part}: first request {request.id}, truth image {size}"), *said]


def _enough(config: RunConfig, source: Any) -> Iterator[Check]:
    """Report how often a run repeats its requests, where the source knows their number."""
    if not hasattr(source, "__len__"):
        return
    wanted, there = config.loop.steps * config.loop.requests_per_step, len(source)
    yield ok("data", f"{there} training requests; the run uses {wanted}, {wanted / max(there, 1):.1f} times each")


def token_variables(config: RunConfig) -> list[Check]:
    """Return a finding for every variable that holds a token. No value is ever shown."""
    missing = {token.variable for token in settings_tree.unset_tokens(config)}
    keys: dict[str, list[str]] = {}
    for token in settings_tree.tokens(config):
        keys.setdefault(token.variable, []).append(token.key)
    said = []
    for variable, places in sorted(keys.items()):
        used = f"{variable} ({', '.join(places)})"
        if variable not in missing:
            said.append(ok("token", f"{used} is set"))
        elif config.cluster.address:
            said.append(note("token", f"{used} is not set here", "set it where the cluster's replicas run"))
        else:
            said.append(problem("token", f"{used} is not set", f"export {variable}=..."))
    return said


def secrets(config: RunConfig) -> list[Check]:
    """Return a finding for every secret in plain, and for every `${NAME}` whose variable is not set."""
    plain = hide_secrets(config.model_dump(mode="json"))
    unset = settings_tree.unset_references(config.model_dump(mode="json"), here=not config.cluster.address)
    return [
        *(note("secret", f"{key} is a secret in plain; the files of the run hold {MASK}", REMEDY) for key in plain),
        *(problem("secret", f"{key}: {name} is not set", f"export {name}=...") for key, name in unset),
    ]


def addresses(config: RunConfig) -> list[Check]:
    """Return where each service is, and whether a token would go there unencrypted."""
    said = []
    for service in settings_tree.services(config):
        urls = [url for url in service.config.urls if not settings_tree.waits(url)]
        if not urls:
            continue
        try:
            mounted(tuple(urls))
            through = sorted({str(proxy) for url in urls if (proxy := proxy_for(url))})
        except UserFault as fault:
            said.append(
                problem("proxy", f"{service.key}: {fault}", "correct the variable, or name the host in NO_PROXY")
            )
            continue
        listed = f"{service.key}: {', '.join(urls)}{f' through {through[0]}' if through else ''}"
        open_hosts = [url for url in urls if service.config.token_env and _in_the_clear(url)]
        if open_hosts:
            said.append(note("service", f"{listed}: the token would be sent unencrypted", "use https"))
        else:
            said.append(ok("service", listed))
    return said


def _in_the_clear(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
