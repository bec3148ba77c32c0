"""The stages of a data build that call services, as plans that any process can carry out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from genevolve_ray.commands.build_config import BuildConfig, StageConfig
from genevolve_ray.commands.jobs import result_settings
from genevolve_ray.commands.policies import named_policy
from genevolve_ray.data.build import audit, prompts, trajectories, truths
from genevolve_ray.data.build.audit import AuditRow, AuditStage
from genevolve_ray.data.build.endpoints import BuildContext
from genevolve_ray.data.build.prompts import PromptWriter
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.stage import RowStage, StagePlan
from genevolve_ray.data.build.taxonomy import load_taxonomy
from genevolve_ray.data.build.trajectories import PolicyTeacher, TrajectoriesStage, TrajectoryRow, TrajectoryTeacher
from genevolve_ray.data.build.truths import TruthRow, TruthsStage
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.inference import open_policy
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.tools.running import running_tools

PICTURES = "pictures"
"""Folder of the pictures of a build."""
_DIGEST = 8


class BuildPlans:
    """Plan the stages of a build whose work is in `folder`."""

    def __init__(self, config: BuildConfig, folder: Path, policy: str | None) -> None:
        """Plan for a configuration; `policy` is that of `--policy`, for a build without a teacher of its own."""
        self._config, self._folder, self._policy = config, folder, policy
        data = config.data
        taxonomy = load_taxonomy(data.taxonomy).model_dump(mode="json")
        asked = [config.seed, taxonomy, data.recipes, data.entities.model_dump(mode="json"), _result(data.writer)]
        answered = [data.trajectories.model_dump(mode="json"), _result(data.teacher), _result(config.tools)]
        if data.teacher is None:
            answered += [policy or config.policy.model, config.inference.temperature, config.inference.top_p]
        answered.append(config.protocol.digest)
        graded = [data.audit.model_dump(mode="json"), _result(data.auditor), _result(data.second_auditor)]
        drawn = [data.truths.model_dump(mode="json"), _result(config.renderer), _result(data.truth_grader)]
        # A setting changes what its own stage and the later ones did.
        self._digests = _chained({"prompts": asked, "trajectories": answered, "audit": graded, "truths": drawn})

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
            digest=self._digests[name],
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
    if config.data.teacher is not None:
        own: TrajectoryTeacher = _role(config.data.teacher, config, folder, stack)
        return own
    images = store_of(folder)
    source = stack.enter_context(named_policy(policy, config))
    assert source is not None, "a build is never direct"
    playing = await stack.enter_async_context(open_policy(config, source, images))
    toolbox = _closing(config.tools.build(images), stack)
    tools = running_tools(toolbox.tools, config.protocol.observations, images)
    inference = config.inference
    sampling = SamplingParams(temperature=inference.temperature, top_p=inference.top_p)
    return PolicyTeacher(source.identity, playing.open_session, tools, config.protocol, sampling, config.date)


def _role(spec: PluginSpec, config: BuildConfig, folder: Path, stack: AsyncExitStack) -> Any:
    return _closing(spec.build(context_of(config, folder)), stack)


def _closing(plugin: Any, stack: AsyncExitStack) -> Any:
    if (close := getattr(plugin, "aclose", None)) is not None:
        stack.push_async_callback(close)
    return plugin


def _result(spec: PluginSpec | None) -> Any:
    return None if spec is None else result_settings(spec)


def _chained(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each stage's settings and those of the stages before it."""
    digests, before = {}, ""
    for stage, values in settings.items():
        text = json.dumps([before, values], sort_keys=True, default=str)
        digests[stage] = before = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return digests
