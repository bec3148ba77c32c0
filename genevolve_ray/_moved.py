"""Finder of modules and names by their import paths of version 0.1, with a DeprecationWarning.

Paths that a user wrote in a YAML file or a plug-in continue to work, and so do pickles. An old path leads to the same
object as the new one. `genevolve_ray` installs the finder when it is imported; an old path costs nothing until it is
used.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

ROOT = "genevolve_ray"

MODULES: Mapping[str, str] = {
    "adapters": "models.adapters",
    "agent.skillset": "tools.skillset",
    "agent.speaker": "agent.policy_session",
    "atlas.command": "commands.sft",
    "atlas.names": "atlas.lexicon",
    "bench.budget": "bench.jobs.job",
    "bench.intervals": "records.intervals",
    "bench.jobfile": "bench.jobs.settings_file",
    "bench.joblog": "bench.jobs.progress",
    "bench.lanes": "bench.jobs.pipeline",
    "bench.pictures": "bench.jobs.pictures",
    "bench.sft_rows": "bench.jobs.sft_rows",
    "bench.stages": "bench.jobs.stages",
    "cards": "commands.experience",
    "cluster.plan": "doctor.plan",
    "cluster.renderers": "cluster.swaps",
    "cluster.settings": "cluster.config",
    "cluster.transfer": "cluster.transports.device",
    "cluster.weights": "cluster.transports.host",
    "commands.carrying": "commands.jobs",
    "commands.cli": "cli.inference",
    "endpoint": "remote.endpoint",
    "engines.ipc_handles": "engines.transports.ipc",
    "engines.mail": "engines.transports.queue",
    "engines.orphan": "engines.parent_watch",
    "engines.vllm_transfer": "engines.transports.sender",
    "engines.wave": "engines.batch_decode",
    "entrypoints": "evolution.plugins",
    "evolution.checkpoints": "evolution.store.checkpoints",
    "evolution.documents": "evolution.store.documents",
    "evolution.files": "evolution.store.files",
    "evolution.groups": "evolution.store.groups",
    "evolution.lock": "evolution.store.lock",
    "evolution.manifest": "evolution.store.manifest",
    "evolution.measures": "evolution.metrics",
    "evolution.resolved": "evolution.store.config",
    "evolution.settings": "evolution.config",
    "evolution.toolbox": "tools.toolbox",
    "evolution.transport": "evolution.weights",
    "evolution.watch": "evolution.monitor",
    "evolution.webtools": "tools.web",
    "evolution.wiring": "evolution.generations",
    "experience.key": "experience.recall",
    "experience.patch": "evolution.teaching",
    "experience.snapshot": "experience.memory",
    "faults": "errors",
    "gateway.base": "gateway.worker_folder",
    "gateway.desk": "gateway.leases",
    "gateway.player": "gateway.episodes",
    "gateway.port": "gateway.rollouts",
    "gateway.scoring": "gateway.logprobs",
    "gateway.screen": "gateway.console",
    "gateway.settings": "gateway.config",
    "gateway.shelf": "gateway.versions",
    "gateway.tokens": "gateway.auth",
    "gateway_command": "cli.gateway",
    "gauge": "commands.memory_gauge",
    "judges.bundle": "judges.summariser",
    "judges.chat": "engines.chat_endpoint",
    "judges.habits": "judges.behaviour",
    "judges.salvage": "judges.reading",
    "metering": "records.usage",
    "parts": "commands.assemble",
    "plugins_check": "commands.plugins",
    "plugins_command": "cli.plugins",
    "plugins_swap": "commands.plugins",
    "preflight": "doctor.preflight",
    "records.null": "learning.null",
    "records.published.keys": "records.published.requests",
    "remote_config": "remote.config",
    "run_checks": "doctor",
    "run_checks.examine": "doctor.run",
    "run_checks.folders": "doctor.model_folder",
    "run_checks.limits": "doctor.limits",
    "run_checks.parts": "doctor.parts",
    "run_checks.probes": "doctor.probes",
    "run_checks.tree": "doctor.settings_tree",
    "servers": "remote.balancing",
    "session": "commands.evolve",
    "sft_command": "commands.sft",
    "texts": "records.texts",
    "tools.arguments": "tools.protocol",
    "tools.cache": "remote.cache",
    "viewer.formats": "viewer.page",
}
"""Old module -> new module, below the package."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "agent.speaker": {
        "ChatSpeaker": "agent.policy_session:ChatSession",
        "Speaker": "agent.policy_session:PolicySession",
        "Spoken": "agent.policy_session:SampledTurn",
        "TokenSpeaker": "agent.policy_session:TokenSession",
    },
    "bench.lanes": {"Lane": "bench.jobs.pipeline:PipelineStage", "Lanes": "bench.jobs.pipeline:Pipeline"},
    "cards": {"RunExperience": "commands.experience:StoredExperience"},
    "cluster.plan": {"Line": "doctor.plan:PlanLine", "Plan": "doctor.plan:PlacementPlan"},
    "cluster.weights": {"Shipment": "cluster.transports.host:FilesPayload"},
    "commands.carrying": {"Carried": "commands.jobs:JobResult"},
    "engines.mail": {"Mail": "engines.transports.queue:TransferQueue"},
    "engines.vllm_transfer": {
        "GlooReceiver": "engines.transports.gloo:GlooReceiver",
        "GlooSender": "engines.transports.gloo:GlooSender",
    },
    "engines.wave": {"Job": "engines.batch_decode:DecodeRequest"},
    "evolution.transport": {
        "HostTransport": "evolution.weights:WeightFolders",
        "host_transport": "evolution.weights:weight_folders",
    },
    "evolution.watch": {
        "Silence": "evolution.monitor:NullMonitor",
        "Watcher": "evolution.monitor:Monitor",
    },
    "evolution.wiring": {"Wirings": "evolution.generations:RendererGenerations"},
    "gateway.desk": {"Desk": "gateway.leases:LeaseTable", "Lease": "gateway.leases:SampleLease"},
    "gateway.player": {"Player": "gateway.episodes:EpisodeRunner"},
    "gateway.shelf": {"Shelf": "gateway.versions:VersionStore"},
    "judges.habits": {
        "Habits": "judges.behaviour:Behaviour",
        "habits_of": "judges.behaviour:behaviour_of",
    },
    "remote": {"Refusal": "remote.client:ServiceRefusal"},
    "run_checks.tree": {"Service": "doctor.settings_tree:ConfiguredService"},
    "session": {
        "ablate_run": "commands.ablation:ablate_run",
        "bench_run": "commands.benchmarks:bench_run",
        "policy_folder": "commands.policies:policy_folder",
        "sft_run": "commands.sft:sft_run",
    },
}
"""Old module -> its names that were renamed or moved to another module."""


def current_path(path: str) -> str:
    """Return the import path `module:Name` under its present name; any other text is returned unchanged."""
    module, colon, name = path.partition(":")
    old = module.removeprefix(f"{ROOT}.")
    if not colon or old == module:
        return path
    if target := NAMES.get(old, {}).get(name):
        return f"{ROOT}.{target}"
    return f"{ROOT}.{MODULES[old]}:{name}" if old in MODULES else path


def lazy_names(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package that was a module: its names, imported at first use.

    Args:
        package: the package's full name.
        names: public name -> the package's module that defines it.
    """

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if target := NAMES.get(package.removeprefix(f"{ROOT}."), {}).get(name):
            return _renamed(package, name, target)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names_of() -> list[str]:
        return sorted({*names, *vars(sys.modules[package])})

    return get, names_of


def install() -> None:
    """Let imports of old paths succeed. The package calls this once, when it is imported."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldPaths())


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds old paths before the file system is searched: a renamed package may hold a module of the same name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        old = fullname.removeprefix(f"{ROOT}.")
        if old == fullname or old not in MODULES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=old == "run_checks")

    def exec_module(self, module: ModuleType) -> None:
        """Replace the old module by the present one, or by a module that also resolves the renamed names."""
        old = module.__name__.removeprefix(f"{ROOT}.")
        present = f"{ROOT}.{MODULES[old]}"
        # Stack level 2 would be exact only for an import statement, and frames of the import machinery are in between.
        warnings.warn(f"{module.__name__} is {present} now", DeprecationWarning, stacklevel=2)
        found = importlib.import_module(present)
        renamed = NAMES.get(old, {})
        if not renamed and old != "run_checks":
            sys.modules[module.__name__] = found
            return

        def get(name: str) -> Any:
            if name in renamed:
                return _renamed(module.__name__, name, renamed[name])
            return getattr(found, name)

        module.__dict__["__getattr__"] = get


def _renamed(module: str, name: str, target: str) -> Any:
    present, _, attribute = target.partition(":")
    warnings.warn(f"{module}.{name} is {ROOT}.{present}.{attribute} now", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(f"{ROOT}.{present}"), attribute)
