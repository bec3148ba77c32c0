"""Plug-ins: a class by import path or by the name it is registered under, its settings, and its own environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from genevolve_ray import __version__
from genevolve_ray._moved import current_path
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugin_folders import import_named, not_found, shadowed
from genevolve_ray.evolution.plugin_shape import PluginFault as PluginFault
from genevolve_ray.evolution.plugin_shape import check_built, check_class
from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.secrets import masked, resolved
from genevolve_ray.records.suggestions import meant, meant_key
from genevolve_ray.tools.corpus.recording import recorded
from genevolve_ray.tools.mcp.config import McpConfig

_SECRET = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)
"""Names of settings whose values are never shown."""


class Role(StrEnum):
    """Name the roles of plug-ins."""

    REQUESTS = "requests"
    """Provides the requests; it is built by the driver, over the run's image store."""
    TOOLS = "tools"
    """Every tool of the policy, built over the run's image store."""
    RENDERER = "renderer"
    """Draws programs."""
    JUDGE = "judge"
    """Scores rendered pictures."""
    SUMMARISER = "summariser"
    """Summarizes a best-worst pair as experience."""
    EMBEDDER = "embedder"
    """Turns texts into directions (`experience.embedder.type`); a run may also use a built-in one by its `kind`."""

    @property
    def group(self) -> str:
        """The entry-point group of its plug-ins."""
        plural = self.value if self.value.endswith("s") else f"{self.value}s"
        return f"genevolve_ray.{plural}"


@dataclass(frozen=True)
class Registered:
    """Describe a plug-in that an installed distribution registers under a name; `path` is `package.module:Class`."""

    role: Role
    name: str
    path: str
    distribution: str
    version: str


def registered(role: Role) -> list[Registered]:
    """Return the built-in plug-ins of a role and those of other distributions, by name. Nothing is imported."""
    found = {_registered(role, entry) for entry in entry_points(group=role.group)}
    # The source tree has priority: the metadata of an installation of this package may be older.
    found = {plugin for plugin in found if plugin.distribution.replace("-", "_") != DISTRIBUTION}
    found |= {Registered(role, name, path, DISTRIBUTION, __version__) for name, path in OWN[role].items()}
    return sorted(found, key=lambda plugin: (plugin.name, plugin.path))


def _registered(role: Role, entry: EntryPoint) -> Registered:
    name, version = (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")
    return Registered(role, entry.name, entry.value, name, version)


class PluginSpec(Config):
    """Select the class of a role, its settings, and the environment in which it runs.

    The class has a pydantic `Config`. Renderers, judges and summarizers are built as `Class(config)`; request sources
    and toolboxes, which bring pictures into the run, as `Class(config, images)`.
    """

    role: ClassVar[Role | None] = None
    place: ClassVar[str] = ""
    """Key of its settings in a configuration, where that is not its role."""

    type: str = Field(pattern=r"^([\w.]+:\w+|[\w][\w.-]*)$")
    """`package.module:Class`, or the name under which an installed package registers one for the role."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the class, validated by its `Config`; the plug-ins' own keys are listed below."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray runtime environment of the processes that hold the plug-in: an interpreter, packages or variables of its own.
    `env_vars: {NAME: "${NAME}"}` takes the driver's variable. With an environment, the driver never imports the class;
    its settings are checked where it runs."""

    @field_validator("type")
    @classmethod
    def _present(cls, path: str) -> str:
        """Replace the old path of a built-in class by its present one, so that recorded values compare equal."""
        return current_path(path)

    @property
    def isolated(self) -> bool:
        """True when the class may be importable only where it runs."""
        return bool(self.runtime_env)

    def environment(self) -> dict[str, Any]:
        """Return `runtime_env` with every `${NAME}` replaced by this process's variable. Raises UserFault for an unset one."""
        found: dict[str, Any] = resolved(self.runtime_env, f"{self.role or self.type}.runtime_env")
        return found

    @property
    def path(self) -> str:
        """`package.module:Class`. Raises PluginFault for a name without a registration, or with more than one."""
        if ":" in self.type:
            return self.type
        if self.role is None:
            raise PluginFault(f"plug-in {self.type!r}: a name needs a role, write package.module:Class")
        there = registered(self.role)
        named = [plugin for plugin in there if plugin.name == self.type]
        paths = {plugin.path for plugin in named}
        if len(paths) > 1:
            owners = ", ".join(f"{plugin.path} of {plugin.distribution}" for plugin in named)
            raise PluginFault(
                f"{self.role} {self.type!r} is registered more than once: {owners}; write the import path"
            )
        if not paths:
            names = ", ".join(sorted({plugin.name for plugin in there})) or "none"
            raise PluginFault(
                f"no {self.role} is registered as {self.type!r} ({self.role.group})"
                f"{meant(self.type, [plugin.name for plugin in there])}; known: {names}; or write package.module:Class"
            )
        return paths.pop()

    def resolve(self) -> Any:
        """Import the class. Raises PluginFault naming it when it cannot be found or is no plug-in."""
        module, _, name = self.path.partition(":")
        try:
            kind = getattr(import_named(module), name)
        except Exception as error:
            why = not_found(module, error) or _after(shadowed(module))
            raise PluginFault(f"plug-in {self.type!r} cannot be loaded: {_line(error)}{why}") from error
        check_class(self.role, kind, self.type)
        return kind

    def settings(self, kind: Any) -> Any:
        """Validate the settings for a class. Raises PluginFault naming key and value."""
        try:
            return kind.Config.model_validate(self.config)
        except ValidationError as error:
            # A mistyped key is also missing: the typo is the cause.
            first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
            key = ".".join(["config", *(str(part) for part in first["loc"])])
            owner = f"{place}." if (place := self.place or self.role) else f"{self.type}: "
            # A token in the wrong field must not appear in logs.
            value = "" if _SECRET.search(key) else f", got {masked(first['input'])!r}"
            if first["type"] == "extra_forbidden":
                near = meant_key(key.removeprefix("config."), kind.Config).replace("mean ", f"mean {owner}config.")
                raise PluginFault(f"{owner}{key}: unknown key{value}{near}") from error
            raise PluginFault(f"{owner}{key}: {first['msg']}{value}") from error

    def build(self, *context: Any) -> Any:
        """Build the plug-in. Raises PluginFault for an unknown class, ValidationError for bad settings."""
        kind = self.resolve()
        plugin = kind(kind.Config.model_validate(self.config), *context)
        check_built(self.role, plugin)
        return self.complete(plugin, *context)

    def complete(self, plugin: Any, *context: ImageStore) -> Any:
        """Return the plug-in with what the role adds to it."""
        return plugin


class RequestsSpec(PluginSpec):
    """Select a request source."""

    role: ClassVar = Role.REQUESTS

    @model_validator(mode="after")
    def _in_the_driver(self) -> RequestsSpec:
        if self.runtime_env:
            raise ValueError(
                f"requests.runtime_env ({', '.join(self.runtime_env)}): a request source is built by the driver and cannot have its "
                "own environment"
            )
        return self


class ToolsSpec(PluginSpec):
    """Select a toolbox, and the MCP servers whose tools it offers besides."""

    role: ClassVar = Role.TOOLS

    mcp: McpConfig | None = None
    """Tool servers that speak MCP (the Model Context Protocol)."""
    record: bool = True
    """Whether each distinct answer is recorded in `observations` beside the run's images, for `genevolve corpus freeze`."""

    def complete(self, plugin: Any, *context: ImageStore) -> Any:
        """Return the toolbox with the tools of the MCP servers, and recorded where the images are files.

        Raises:
            PluginFault: for a server that cannot be used.
        """
        toolbox = plugin if self.mcp is None else self._with_servers(plugin, self.mcp, *context)
        return recorded(toolbox, plugin, *context) if self.record else toolbox

    def _with_servers(self, plugin: Any, mcp: McpConfig, *context: ImageStore) -> Any:
        try:
            from genevolve_ray.tools.mcp.toolbox import WithServers

            return WithServers(plugin, mcp, *context)
        except ImportError as error:
            raise PluginFault(f"tools.mcp needs the package mcp: pip install 'genevolve_ray[mcp]' ({error})") from error
        except UserFault as fault:
            raise PluginFault(str(fault)) from fault

    def alone(self) -> ToolsSpec:
        """Return the toolbox without the servers."""
        return self.model_copy(update={"mcp": None})


class RendererSpec(PluginSpec):
    """Select a renderer."""

    role: ClassVar = Role.RENDERER


class JudgeSpec(PluginSpec):
    """Select a judge."""

    role: ClassVar = Role.JUDGE


class SummariserSpec(PluginSpec):
    """Select a summarizer."""

    role: ClassVar = Role.SUMMARISER


class EmbedderSpec(PluginSpec):
    """Select an embedder."""

    role: ClassVar = Role.EMBEDDER
    place: ClassVar = "experience.embedder"

    @classmethod
    def of(cls, config: EmbedderConfig, summariser: SummariserSpec | None = None) -> EmbedderSpec:
        """Return the plug-in of a run's embedder; it runs in the process of its summarizer."""
        environment = summariser.runtime_env if summariser is not None else {}
        return cls(type=config.type, config=config.config, runtime_env=environment)


SPECS: dict[Role, type[PluginSpec]] = {
    kind.role: kind for kind in (RequestsSpec, ToolsSpec, RendererSpec, JudgeSpec, SummariserSpec, EmbedderSpec)
}


def held_by_workers(spec: PluginSpec) -> bool:
    """Return whether rollout workers build a toolbox themselves: its calls are look-ups in memory, or have state."""
    return not spec.isolated and bool(getattr(spec.resolve(), "local", False))


def same_plugin(role: str, one: Any, other: Any) -> bool:
    """Return whether two values of `type` select the same class of a role, by import path or by registered name."""
    return bool(_path_of(role, one) == _path_of(role, other))


def _path_of(role: str, type_: Any) -> Any:
    kind = SPECS.get(Role(role)) if role in set(Role) else None
    if kind is None or not isinstance(type_, str):
        return type_
    try:
        return current_path(kind(type=type_).path)
    except ValueError:  # Neither a path nor a registered name: validation reports it.
        return type_


def build_here(spec: PluginSpec, *context: ImageStore) -> Any:
    """Build a plug-in in a process of its own. Raises PluginFault, in one line, for every error."""
    kind = spec.resolve()
    settings = spec.settings(kind)
    try:
        plugin = kind(settings, *context)
    except Exception as error:
        raise PluginFault(f"{spec.role or 'plug-in'} {spec.type} cannot be built: {_line(error)}") from error
    check_built(spec.role, plugin)
    return spec.complete(plugin, *context)


def _after(text: str) -> str:
    return f"; {text}" if text else ""


def _line(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


DISTRIBUTION = "genevolve_ray"
OWN: Mapping[str, Mapping[str, str]] = {
    "requests": {
        "atlas": "genevolve_ray.atlas.sources:AtlasRequests",
        "published": "genevolve_ray.data.requests:PublishedRequests",
    },
    "tools": {
        "atlas": "genevolve_ray.atlas.sources:AtlasTools",
        "brave": "genevolve_ray.tools.web:BraveTools",
        "folder": "genevolve_ray.tools.folder.toolbox:FolderTools",
        "frozen": "genevolve_ray.tools.frozen:FrozenTools",
        "local": "genevolve_ray.tools.toolbox:LocalTools",
        "searxng": "genevolve_ray.tools.web:SearxngTools",
        "web": "genevolve_ray.tools.web:WebTools",
    },
    "renderer": {
        "atlas": "genevolve_ray.atlas.renderer:AtlasRenderer",
        "diffusers": "genevolve_ray.renderers.diffusers:DiffusersRenderer",
        "gemini": "genevolve_ray.renderers.gemini:GeminiRenderer",
        "images-api": "genevolve_ray.renderers.images_api:ImagesApiRenderer",
        "preset": "genevolve_ray.renderers.presets:Named",
        "qwen-service": "genevolve_ray.renderers.qwen_service:QwenServiceRenderer",
    },
    "judge": {
        "alignment": "genevolve_ray.judges.alignment_judge:AlignmentJudge",
        "atlas": "genevolve_ray.atlas.judge:AtlasJudge",
        "endpoint": "genevolve_ray.judges.endpoint_judge:EndpointJudge",
        "ensemble": "genevolve_ray.evolution.ensemble_judge:EnsembleJudge",
        "http": "genevolve_ray.judges.http_reward:HttpReward",
        "likeness": "genevolve_ray.judges.likeness_judge:LikenessJudge",
        "local": "genevolve_ray.judges.local_judge:LocalVlmJudge",
        "pairwise": "genevolve_ray.judges.pairwise_judge:PairwiseJudge",
        "ocr": "genevolve_ray.judges.ocr_judge:OcrJudge",
    },
    "summariser": {
        "atlas": "genevolve_ray.atlas.summariser:AtlasSummariser",
        "endpoint": "genevolve_ray.judges.endpoint_summariser:EndpointSummariser",
        "rules": "genevolve_ray.judges.summariser:RuleSummariser",
    },
    "embedder": {
        "endpoint": "genevolve_ray.experience.embed_endpoint:EndpointEmbedder",
        "hashing": "genevolve_ray.experience.embed:HashingEmbedder",
        "transformers": "genevolve_ray.experience.embed_transformers:TransformersEmbedder",
    },
}
