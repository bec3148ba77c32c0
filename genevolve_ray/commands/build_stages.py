"""The stages of a data build that call services, as plans that any process can carry out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from genevolve_ray.commands.build_config import BuildConfig, StageConfig
from genevolve_ray.commands.jobs import result_settings
from genevolve_ray.commands.policies import named_policy
from genevolve_ray.data.build import audit, prompts, trajectories, truths
from genevolve_ray.data.build.audit import AuditRow, AuditStage
from genevolve_ray.data.build.endpoints import BuildContext
from genevolve_ray.data.build.grading import PROMPTS_FOLDER, ChatGraderConfig
from genevolve_ray.data.build.prompts import PromptWriter, PromptWriterConfig
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.stage import RowStage, StagePlan
from genevolve_ray.data.build.taxonomy import load_taxonomy
from genevolve_ray.data.build.trajectories import PolicyTeacher, TrajectoriesStage, TrajectoryRow, TrajectoryTeacher
from genevolve_ray.data.build.truths import TruthRow, TruthsStage
from genevolve_ray.doctor.settings_tree import plugin_settings
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import PolicySource, open_policy
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.texts import load_text
from genevolve_ray.remote.config import RemoteConfig
from genevolve_ray.tools.running import running_tools

PICTURES = "pictures"
"""Folder of the pictures of a build."""
_DIGEST = 8
_SAMPLING: Any = {
    "kind": True,
    "dtype": True,
    "max_model_len": True,
    "vllm": {"quantization", "fp32_head", "max_images"},
    "transformers": {"deterministic"},
}
"""Settings of an engine that alter what it samples; the others say where and how fast."""


class BuildPlans:
    """Plan the stages of a build whose work is in `folder`."""

    def __init__(self, config: BuildConfig, folder: Path, policy: str | None, source: PolicySource | None) -> None:
        """Plan for a configuration; `policy` is that of `--policy`, for a build without a teacher of its own.

        `source` is what it names; None where no stage needs it.
        """
        self._config, self._folder, self._policy, self._source = config, folder, policy, source

    def digest(self, stage: str) -> str:
        """Return a digest of the settings that a stage and those before it depend on.

        What rows carry in their ids is left out, and so are the addresses and limits of services: neither alters what is
        done with a row. Raises UserFault naming a rubric that cannot be found.
        """
        config, data, before = self._config, self._config.data, ""
        parts: dict[str, Callable[[], list[Any]]] = {
            prompts.STAGE: lambda: [
                config.seed,
                load_taxonomy(data.taxonomy).model_dump(mode="json"),
                result_of("data.writer", data.writer),
            ],
            trajectories.STAGE: lambda: [data.trajectories.model_dump(mode="json"), *self._answerer()],
            audit.STAGE: lambda: [
                data.audit.model_dump(mode="json"),
                result_of("data.auditor", data.auditor),
                result_of("data.second_auditor", data.second_auditor),
            ],
            truths.STAGE: lambda: [
                data.truths.model_dump(mode="json"),
                result_of("renderer", config.renderer),
                result_of("data.truth_grader", data.truth_grader),
            ],
        }
        for name, values in parts.items():
            text = json.dumps([before, values()], sort_keys=True, default=str)
            before = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
            if name == stage:
                return before
        raise KeyError(stage)

    def _answerer(self) -> list[Any]:
        """Return the settings that answers depend on: those of the teacher, or of the policy, its tools and its sampling."""
        config, source = self._config, self._source
        if config.data.teacher is not None:
            return [result_of("data.teacher", config.data.teacher)]
        found: list[Any] = [result_of("tools", config.tools), config.protocol.digest, config.date]
        found += [config.inference.temperature, config.inference.top_p]
        if source is not None and source.endpoint is not None:
            found.append(source.endpoint.model_dump(mode="json", exclude=set(RemoteConfig.model_fields)))
        elif source is not None:
            found += [source.identity, config.engine.model_dump(mode="json", include=_SAMPLING)]
        return found

    def prompts(self) -> StagePlan[PromptRow]:
        """Return the plan of the writer."""
        return self._plan(prompts.STAGE, PromptRow, partial(open_prompts, self._config, self._folder))

    def trajectories(self) -> StagePlan[TrajectoryRow]:
        """Return the plan of the teacher."""
        opens = partial(open_trajectories, self._config, self._folder, self._policy)
        return self._plan(trajectories.STAGE, TrajectoryRow, opens)

    def audit(self) -> StagePlan[AuditRow]:
        """Return the plan of the auditors."""
        return self._plan(audit.STAGE, AuditRow, partial(open_audit, self._config, self._folder))

    def truths(self) -> StagePlan[TruthRow]:
        """Return the plan of renderer and truth grader."""
        return self._plan(truths.STAGE, TruthRow, partial(open_truths, self._config, self._folder))

    def _plan(self, name: str, kind: type[Any], opens: Any) -> StagePlan[Any]:
        where: StageConfig = getattr(self._config.data.stages, name)
        return StagePlan(
            name=name,
            kind=kind,
            open=opens,
            digest=self.digest(name),
            cap=where.cap,
            in_flight=where.in_flight,
            workers=where.workers,
            cpus=where.cpus,
            gpus=where.gpus,
        )


def store_of(folder: Path) -> FilesystemImages:
    """Return the picture store of a build."""
    return FilesystemImages(str((folder / PICTURES).resolve()))


def stored_path(ref: ImageRef) -> str:
    """Return the path of a stored picture relative to the folder of the build."""
    return f"{PICTURES}/{ref.sha256[:2]}/{ref.file_name}"


def context_of(config: BuildConfig, folder: Path) -> BuildContext:
    """Return what the roles of a build are built with. Raises TaxonomyError for a taxonomy that cannot be used."""
    return BuildContext(load_taxonomy(config.data.taxonomy), store_of(folder), config.seed)


class _Prompts:
    """Write prompts as a stage."""

    def __init__(self, writer: PromptWriter) -> None:
        self._writer = writer

    async def do(self, row: PromptRow) -> PromptRow:
        return await self._writer.write(row)


@asynccontextmanager
async def open_prompts(config: BuildConfig, folder: Path) -> AsyncIterator[RowStage[PromptRow]]:
    """Lend the stage that writes prompts."""
    async with AsyncExitStack() as stack:
        yield _Prompts(_role(config.data.writer, config, folder, stack))


@asynccontextmanager
async def open_trajectories(
    config: BuildConfig, folder: Path, policy: str | None
) -> AsyncIterator[RowStage[TrajectoryRow]]:
    """Lend the stage in which the teacher answers."""
    async with AsyncExitStack() as stack:
        teacher = await _teacher(config, folder, policy, stack)
        yield TrajectoriesStage(config.data.trajectories, teacher, stored_path)


@asynccontextmanager
async def open_audit(config: BuildConfig, folder: Path) -> AsyncIterator[RowStage[AuditRow]]:
    """Lend the stage in which trajectories are graded."""
    async with AsyncExitStack() as stack:
        data = config.data
        auditor = _role(data.auditor, config, folder, stack)
        second = None if data.second_auditor is None else _role(data.second_auditor, config, folder, stack)
        yield AuditStage(data.audit, auditor, second)


@asynccontextmanager
async def open_truths(config: BuildConfig, folder: Path) -> AsyncIterator[RowStage[TruthRow]]:
    """Lend the stage in which truths are rendered and graded."""
    async with AsyncExitStack() as stack:
        renderer = _closing(config.renderer.build(), stack)
        grader = _role(config.data.truth_grader, config, folder, stack)
        yield TruthsStage(config.data.truths, renderer, grader, store_of(folder))


async def _teacher(config: BuildConfig, folder: Path, policy: str | None, stack: AsyncExitStack) -> TrajectoryTeacher:
    images = store_of(folder)
    toolbox = _closing(config.tools.build(images), stack)
    tools = running_tools(toolbox.tools, config.protocol.observations, images)
    if config.data.teacher is not None:
        context = replace(context_of(config, folder), tools=tools)
        own: TrajectoryTeacher = _closing(config.data.teacher.build(context), stack)
        return own
    source = stack.enter_context(named_policy(policy, config))
    assert source is not None, "a build is never direct"
    playing = await stack.enter_async_context(open_policy(config, source, images))
    inference = config.inference
    sampling = SamplingParams(temperature=inference.temperature, top_p=inference.top_p)
    return PolicyTeacher(source.identity, playing.open_session, tools, config.protocol, sampling, config.date)


def _role(spec: PluginSpec, config: BuildConfig, folder: Path, stack: AsyncExitStack) -> Any:
    return _closing(spec.build(context_of(config, folder)), stack)


def _closing(plugin: Any, stack: AsyncExitStack) -> Any:
    if (close := getattr(plugin, "aclose", None)) is not None:
        stack.push_async_callback(close)
    return plugin


def result_of(role: str, spec: PluginSpec | None) -> Any:
    """Return the settings of a role that its results depend on, with the text of its rubric in place of the name.

    Raises:
        UserFault: naming a rubric that cannot be found.
    """
    if spec is None:
        return None
    found = result_settings(spec)
    if (text := rubric_of(role, spec)) is not None:
        found["config"] = {**found["config"], "rubric": hashlib.sha256(text.encode()).hexdigest()}
    return found


def rubric_of(role: str, spec: PluginSpec) -> str | None:
    """Return the text of a role's rubric, None for a role without one. Raises UserFault naming one that cannot be found."""
    _, settings = plugin_settings(role, spec)
    if not isinstance(settings, ChatGraderConfig | PromptWriterConfig):
        return None
    try:
        return load_text(settings.rubric, PROMPTS_FOLDER, "rubric")
    except (ValueError, OSError) as error:
        raise UserFault(f"{role}.config.rubric: {error}") from error
