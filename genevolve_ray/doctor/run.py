"""Everything that is known of a run before it starts, as a list of findings."""

from __future__ import annotations

import asyncio
from pathlib import Path

from genevolve_ray.config import RunConfig
from genevolve_ray.doctor import limits, parts, settings_tree
from genevolve_ray.doctor.machine import Check, Status, diagnose
from genevolve_ray.doctor.method import method
from genevolve_ray.doctor.parts import note, ok
from genevolve_ray.doctor.probes import probe_services


def examine(config: RunConfig, run_dir: Path, *, deep: bool = False, spend: bool = False) -> list[Check]:
    """Return the available and the missing requirements of a run, with a remedy for each problem.

    Of the machine, only findings that stop every run are repeated; `diagnose` reports the rest.

    Args:
        config: the run.
        run_dir: its future folder; it need not exist.
        deep: load the policy, however large, for one turn, and query the services and the cluster over the network.
        spend: with `deep`, make the one call of each service that costs money.
    """
    checks = [c for c in diagnose(run_dir) if c.status is Status.PROBLEM and c.name != "disk"]  # The run has its own.
    checks += [*parts.left_to_fill_in(config), *parts.setup(config), *method(config)]
    policy, weights = parts.policy(config, deep=deep)
    checks += [
        *policy,
        *parts.date(config),
        *parts.trackers(config),
        *parts.traces(config),
        *parts.embedder(config),
        *parts.plugins(config),
        *parts.tools(config),
        *parts.data(config, run_dir),
    ]
    checks += [*parts.token_variables(config), *parts.secrets(config), *parts.addresses(config)]
    checks += [*limits.context(config), *limits.pictures(config), *limits.time_limits(config), *limits.formula(config)]
    checks += [*limits.devices(config), *limits.reservations(config), *limits.placement(config, deep=deep)]
    checks += [*limits.learner_memory(config, weights), *limits.disk(config, run_dir, weights), *limits.sockets(config)]
    checks += limits.descriptors(config)
    services = settings_tree.services(config)
    if services and deep:
        unset = {token.variable for token in settings_tree.unset_tokens(config)}
        checks += asyncio.run(probe_services(services, unset, spend=spend))
    elif services:
        checks.append(
            note("answers", f"{len(services)} services were not checked", "--deep checks them over the network")
        )
    problems = sum(check.status is Status.PROBLEM for check in checks)
    counted = f"{problems} problem{'s' * (problems > 1)}"
    closing = note("can start", f"not yet: {counted}") if problems else ok("can start", f"run {config.name}")
    return [*checks, closing]
