"""`genevolve bench genevolve | knowgen | wise`: agent, generator and judge over a benchmark, as one job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from genevolve_ray.bench.jobs.pipeline import Stage
from genevolve_ray.bench.jobs.stages import JudgeStage, RenderStage
from genevolve_ray.bench.tables import compare_wise
from genevolve_ray.bench.wise import Edition, WisePrompt, summarise_wise, write_scores
from genevolve_ray.bench.wise_stage import WiseStage, prompt_row, scores_of
from genevolve_ray.commands.inference import CONSOLE, Common, agent_of
from genevolve_ray.commands.jobs import EXIT_FAILED, RESULTS, Job, JobResult, carry_out, refuse_foreign, result_settings
from genevolve_ray.commands.judged import KSCORE_FILES, show_tables, write_kscore
from genevolve_ray.commands.policies import policy_folder
from genevolve_ray.commands.rows import bench_file, read_rows, rejections, wise_prompts
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder, preflight
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inference import InferencePorts, Wanted
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.files import write_object
from genevolve_ray.records.published.rejections import RejectionReport

_REASON_CHARS, _NAMED = 160, 8
AGENT, RENDER, JUDGE = "agent", "render", "judge"
"""Folders of the stages."""
WISE_JUDGE = "genevolve_ray.bench.wise_endpoint:WiseJudge"
JudgeOf = Callable[[InferencePorts, ImageStore, list[Path]], Stage]


def bench_kscore_run(
    suite: str,
    data: Path,
    out: Path,
    policy: str | None,
    common: Common,
    *,
    formula: str | None,
    date: str | None,
    method: str,
) -> int:
    """Run GenEvolve-Bench or KnowGen and return the exit code. Raises UserFault, ConfigError, DataError."""
    default = {"knowgen": "release-eval"}.get(suite)
    chosen = formula or default
    config = common.judging(common.load(*([f"reward.formula={chosen}"] if chosen else [])))
    file, report = bench_file(data, suite), rejections()
    rows = read_rows(file, CONSOLE, common.limit, report=report)

    def judge(ports: InferencePorts, images: ImageStore, roots: list[Path]) -> Stage:
        assert ports.judge is not None
        return JudgeStage(ports.judge, images, roots=roots, formula=config.reward.formula, tries=config.inference.tries)

    result = _bench(suite, config, common, rows, file.parent, out, policy, date, judge, report)
    name = method or policy or config.policy.model
    complete = write_kscore(out / JUDGE, result, config.reward.formula, method=name, suite=suite, report=report)
    return result.exit_code or (0 if complete else EXIT_FAILED)


def bench_wise_run(
    data: Path,
    out: Path,
    policy: str | None,
    common: Common,
    *,
    edition: Edition,
    date: str | None,
    method: str,
) -> int:
    """Run WISE and return the exit code. Raises UserFault, ConfigError, DataError."""
    config = common.load()
    if config.judge.type != WISE_JUDGE:
        raise UserFault(
            f"judge: WISE needs its own judge, not {config.judge.type}: --set "
            f"'judge={{type: \"{WISE_JUDGE}\", config: {{url: ..., model: ...}}}}'"
        )
    spec = config.judge.model_copy(update={"config": {**config.judge.config, "edition": edition.value}})
    config = config.model_copy(update={"judge": spec})
    report = rejections()
    prompts = wise_prompts(data, CONSOLE, report)[: common.limit]

    def judge(ports: InferencePorts, images: ImageStore, roots: list[Path]) -> Stage:
        assert ports.grader is not None
        return WiseStage(ports.grader, images, edition, roots=roots, tries=config.inference.tries)

    rows = [prompt_row(prompt) for prompt in prompts]
    folder = data if data.is_dir() else data.parent
    result = _bench("wise", config, common, rows, folder, out, policy, date, judge, report)
    _write_wise(out / JUDGE, result, prompts, edition, method or policy or config.policy.model)
    return result.exit_code


def _write_wise(folder: Path, result: JobResult, prompts: Sequence[WisePrompt], edition: Edition, method: str) -> None:
    scores = scores_of(result.rows, edition)
    lost = [row for row in result.rows if row.values.get("eval_success") is not True]
    for reason in dict.fromkeys(str(row.values.get("error") or "no grade") for row in lost):
        ids = [row.id for row in lost if str(row.values.get("error") or "no grade") == reason]
        told = f"left out of the scores: {len(ids)}: {reason[:_REASON_CHARS]} ({', '.join(ids[:_NAMED])})"
        CONSOLE.print(told, markup=False, highlight=False, soft_wrap=True)
    write_scores(folder / f"scores_{edition.value}.jsonl", scores)
    summary = summarise_wise(scores, edition, prompts)
    write_object(folder / "summary.json", summary.model_dump(mode="json"))
    ours = [(method, summary)]
    show_tables(folder, compare_wise(ours) if edition is Edition.LEGACY else compare_wise(ours, ()))


def _bench(
    suite: str,
    config: RunConfig,
    common: Common,
    rows: Sequence[ResultRow],
    data: Path,
    out: Path,
    policy: str | None,
    date: str | None,
    judge: JudgeOf,
    report: RejectionReport,
) -> JobResult:
    """Process rows through all three stages. References are in the agent's folder, images in the renderer's."""
    command = f"bench-{suite}"
    written = [
        *(f"{stage}/{file}" for stage in (AGENT, RENDER) for file in RESULTS),
        *(f"{JUDGE}/{f}" for f in KSCORE_FILES),
    ]
    refuse_foreign(out, command, written)
    with agent_of(policy, config, out, command, date) as agent:

        def build(ports: InferencePorts, images: ImageStore) -> list[tuple[Stage, Path]]:
            assert ports.renderer is not None
            inference = config.inference
            render = RenderStage(
                ports.renderer,
                images,
                out / RENDER,
                roots=[out / AGENT, data],
                seed=config.seed,
                tries=inference.tries,
            )
            looked = [out / RENDER, out / AGENT, data]
            return [
                (agent.stage(ports), out / AGENT),
                (render, out / RENDER),
                (judge(ports, images, looked), out / JUDGE),
            ]

        wise = suite == "wise"
        return carry_out(
            Job(
                name=command,
                config=agent.config,
                folder=out,
                rows=rows,
                report=report,
                folders=[data],
                wanted=Wanted(policy=agent.source, render=True, judge=not wise, grade=wise, date=agent.date),
                build=build,
                settings={
                    **agent.settings(),
                    "seed": config.seed,
                    "formula": config.reward.formula.value,
                    "judge_plugin": result_settings(config.judge),
                },
                store=out / AGENT,
                **common.carrying(),
            )
        )


SUITES = ("atlas", "atlas-sight", "atlas-long")
COLD_START = "cold-start"
"""Value of `--policy` that names the policy with which the preset of a suite starts."""


def bench_run(
    suite: str,
    policy: str,
    out: Path,
    *,
    world_seed: int,
    requests: int,
    engine: str,
    experience: str,
    pictures: str = "shown",
) -> None:
    """Score a policy on a suite of held-out requests and write the result."""
    if suite not in SUITES:
        raise UserFault(f"genevolve bench: unknown suite {suite!r}; known: {', '.join(SUITES)}")
    from genevolve_ray.atlas.altered import ALTERATIONS
    from genevolve_ray.atlas.suite import EXPERIENCES, bench_atlas

    for option, value, known in (("experience", experience, EXPERIENCES), ("images", pictures, ALTERATIONS)):
        if value not in known:
            raise UserFault(f"genevolve bench: --{option} {value!r} is unknown; known: {', '.join(known)}")
    config = load_config(suite, [f"engine.kind={engine}"])
    named = model_folder(config.policy.model) if policy == COLD_START else Path(policy)
    with policy_folder(named) as model:
        config = config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(model)})})
        preflight(config)
        result = asyncio.run(
            bench_atlas(
                config, model, world_seed=world_seed, requests=requests, experience=experience, pictures=pictures
            )
        )
    write_object(out, {"policy": policy, **result})
    print(
        f"{policy}: reward {result['reward_mean']:.3f} sampled, {result['reward_greedy']:.3f} greedy, "
        f"valid {result['valid_fraction']:.1%}, right pictures {result['right_reference_fraction'] or 0:.1%} "
        f"(chance {result['chance'] or 0:.1%}) on {requests} requests of test world {world_seed} -> {out}"
    )
