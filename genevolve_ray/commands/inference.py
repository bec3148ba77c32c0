"""`genevolve rollout`, `render` and `judge`: one stage over the rows of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from genevolve_ray.agent.profile import built_in
from genevolve_ray.bench.jobs.pipeline import Stage
from genevolve_ray.bench.jobs.settings_file import read_job
from genevolve_ray.bench.jobs.sft_rows import write_sft_rows
from genevolve_ray.bench.jobs.stages import AgentStage, DirectStage, JudgeStage, RenderStage
from genevolve_ray.commands.jobs import (
    EXIT_FAILED,
    RESULTS,
    Job,
    JobResult,
    carry_out,
    refuse_foreign,
    refuse_mixed,
    result_settings,
)
from genevolve_ray.commands.judged import KSCORE_FILES, write_kscore
from genevolve_ray.commands.policies import DIRECT, named_policy
from genevolve_ray.commands.rows import read_rows, rejections
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.settings_tree import plugin_settings
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import InferencePorts, PolicySource, Wanted
from genevolve_ray.evolution.plugins import PluginFault
from genevolve_ray.judges.protocol import judges_groups
from genevolve_ray.judges.vlm_judge import SufficiencyCheck
from genevolve_ray.models.companions import prints_date
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.published.places import PathStyle
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.results import AgentRow, RenderedRow


@dataclass(frozen=True)
class Common:
    """Hold the options that all these commands have."""

    config: str = "atlas"
    settings: Sequence[str] = ()
    in_process: bool = False
    in_flight: int | None = None
    max_cost: float | None = None
    limit: int | None = None
    paths: PathStyle = "absolute"
    sufficiency: bool = False
    """Whether judges also examine the programs, which no benchmark counts."""

    def load(self, *more: str) -> RunConfig:
        """Return the configuration with the options applied."""
        options = [f"inference.in_flight={self.in_flight}"] if self.in_flight is not None else []
        return load_config(self.config, [*self.settings, *options, *more])

    def carrying(self) -> dict[str, Any]:
        """Return the options that a job takes, as its keyword arguments."""
        return {"max_cost": self.max_cost, "in_process": self.in_process, "paths": self.paths}

    def judging(self, config: RunConfig, check: SufficiencyCheck | None = None) -> RunConfig:
        """Return a configuration whose judge examines programs only as requested, if it leaves the choice."""
        spec = config.judge
        try:
            kind = None if spec.isolated else spec.resolve()
        except PluginFault:
            kind = None  # The checks before the start name the fault.
        if "sufficiency_check" not in getattr(getattr(kind, "Config", None), "model_fields", ()):
            return config
        chosen = check or ("optional" if self.sufficiency else "off")
        judge = spec.model_copy(update={"config": {**spec.config, "sufficiency_check": chosen}})
        return config.model_copy(update={"judge": judge})


CONSOLE = Console(stderr=True)


def without_groups(config: RunConfig) -> RunConfig:
    """Return a configuration without judges of groups, and print which these were: each picture is judged alone."""
    groups = [
        name
        for name, spec in config.judges.items()
        if not spec.isolated and judges_groups(plugin_settings(f"judges.{name}", spec)[0])
    ]
    if not groups:
        return config
    for name in groups:
        CONSOLE.print(f"judges.{name} is left out: it judges groups, which only a run has", highlight=False)
    return config.model_copy(update={"judges": {n: spec for n, spec in config.judges.items() if n not in groups}})


@dataclass(frozen=True)
class Agent:
    """Describe a policy as a job needs it: its source, its stage, and the settings that results depend on."""

    source: PolicySource | None
    date: str
    config: RunConfig

    @property
    def sampling(self) -> SamplingParams:
        """Settings by which the policy is sampled."""
        return SamplingParams(temperature=self.config.inference.temperature, top_p=self.config.inference.top_p)

    def stage(self, ports: InferencePorts) -> Stage:
        """Return the stage in which this policy answers."""
        if self.source is None:
            return DirectStage()
        assert ports.agent is not None
        inference = self.config.inference
        return AgentStage(
            ports.agent, self.sampling, policy=self.source.identity, seed=self.config.seed, tries=inference.tries
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings that its answers depend on."""
        if self.source is None:
            return {"policy": DIRECT}
        config = self.config
        return {
            "policy": self.source.identity,
            "profile": config.protocol.label,
            "profile_digest": "" if built_in(config.protocol) else config.protocol.digest,
            "answers": config.protocol.answers,
            "date": self.date,
            "seed": config.seed,
            "temperature": config.inference.temperature,
            "top_p": config.inference.top_p,
            "tools": result_settings(config.tools),
        }


@contextmanager
def agent_of(policy: str | None, config: RunConfig, folder: Path, command: str, date: str | None) -> Iterator[Agent]:
    """Lend a policy for a job. A date, if the profile or the template shows one, stays that of the job's first day.

    Raises:
        UserFault: naming the invalid value.
    """
    with named_policy(policy, config) as source:
        shown = ""
        dated = source is not None and source.model is not None and prints_date(source.model)
        if dated or (policy != DIRECT and config.protocol.append_date):
            today = datetime.now(UTC).date().isoformat()
            shown = date or config.date or str(read_job(folder, command).get("date", today))
        elif date:
            raise UserFault(f"--date {date}: profile {config.protocol.name!r} does not show the policy a date")
        yield Agent(source, shown, config.model_copy(update={"date": shown}))


def rollout_run(
    rows: Path, out: Path, policy: str | None, common: Common, *, sft: Path | None, date: str | None
) -> int:
    """Let a policy answer every row and return the exit code. Raises UserFault, ConfigError, DataError."""
    config = common.load()
    refuse_mixed(out, "rollout", "render")
    refuse_foreign(out, "rollout", RESULTS)
    report = rejections()
    if sft is not None and (sft.suffix != ".jsonl" or policy == DIRECT):
        raise UserFault(f"--sft {sft}: " + ("direct has no trajectories" if policy == DIRECT else "must end in .jsonl"))
    with agent_of(policy, config, out, "rollout", date) as agent:
        job = Job(
            name="rollout",
            config=agent.config,
            folder=out,
            rows=read_rows(rows, CONSOLE, common.limit, report=report),
            report=report,
            folders=[rows.parent],
            wanted=Wanted(policy=agent.source, date=agent.date),
            build=lambda ports, images: [(agent.stage(ports), out)],
            settings=agent.settings(),
            store=out,
            **common.carrying(),
        )
        result = carry_out(job)
    if sft is not None:
        report = write_sft_rows(sft, result.rows, out)
        CONSOLE.print(f"{sft}: {report.text()}", highlight=False, soft_wrap=True)
    CONSOLE.print(f"{out / 'results.json'}", highlight=False, soft_wrap=True)
    return result.exit_code


def render_run(rows: Path, out: Path, common: Common, *, roots: Sequence[Path]) -> int:
    """Render every row's program and return the exit code. Raises UserFault, ConfigError, DataError."""
    config = common.load()
    refuse_mixed(out, "render", "rollout")
    report = rejections()
    if out.resolve() == rows.parent.resolve():
        raise UserFault(
            f"--output {out}: contains the input, {rows.name}, which render would overwrite: name another folder"
        )
    refuse_foreign(out, "render", RESULTS)
    looked = [rows.parent, *roots]

    def build(ports: InferencePorts, images: ImageStore) -> list[tuple[Stage, Path]]:
        assert ports.renderer is not None
        tries = config.inference.tries
        stage = RenderStage(ports.renderer, images, out, roots=looked, seed=config.seed, tries=tries)
        return [(stage, out)]

    job = Job(
        name="render",
        config=config,
        folder=out,
        rows=read_rows(rows, CONSOLE, common.limit, kind=AgentRow, report=report),
        report=report,
        folders=looked,
        wanted=Wanted(render=True),
        build=build,
        settings={"seed": config.seed},
        store=out,
        **common.carrying(),
    )
    result = carry_out(job)
    CONSOLE.print(f"{out / 'results.json'}", highlight=False, soft_wrap=True)
    return result.exit_code


def judge_run(
    rows: Path, out: Path | None, common: Common, *, roots: Sequence[Path], formula: str | None, method: str
) -> int:
    """Judge every row's picture, write the summaries, and return the exit code. Raises UserFault, ConfigError, DataError."""
    config = common.load(*([f"reward.formula={formula}"] if formula else []))
    folder, report = out or rows.parent, rejections()
    result = judge_rows(rows, folder, config, common, roots=roots, report=report)
    complete = write_kscore(folder, result, config.reward.formula, method=method, report=report)
    return result.exit_code or (0 if complete else EXIT_FAILED)


def judge_rows(
    rows: Path,
    folder: Path,
    config: RunConfig,
    common: Common,
    *,
    roots: Sequence[Path],
    report: RejectionReport | None = None,
) -> JobResult:
    """Judge the rows of a file into a folder. Raises UserFault when it holds files of another judge."""
    refuse_foreign(folder, "judge", KSCORE_FILES)
    config = common.judging(config)
    looked = [rows.parent, *roots]
    report = rejections() if report is None else report

    def build(ports: InferencePorts, images: ImageStore) -> list[tuple[Stage, Path]]:
        assert ports.judge is not None
        formula, tries = config.reward.formula, config.inference.tries
        return [(JudgeStage(ports.judge, images, roots=looked, formula=formula, tries=tries), folder)]

    return carry_out(
        Job(
            name="judge",
            config=config,
            folder=folder,
            rows=read_rows(rows, CONSOLE, common.limit, kind=RenderedRow, report=report),
            report=report,
            folders=looked,
            wanted=Wanted(judge=True),
            build=build,
            settings={"formula": config.reward.formula.value, "plugin": result_settings(config.judge)},
            store=folder,
            **common.carrying(),
        )
    )
