"""Arguments of rollout, render, judge, rescore, the benchmarks and sample rows. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from genevolve_ray.commands.inference import Common

Rows = Annotated[Path, typer.Option("--input", help="Rows: JSON lines, a JSON array or Parquet.")]
Out = Annotated[
    Path, typer.Option("--output", help="Folder of the results; an existing folder with the same job is resumed.")
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="A run folder (its best checkpoint), a model folder, a hub id (owner/name), openai:MODEL@URL, a YAML file of "
        "an endpoint, or direct (no agent). Default: policy.model.",
    ),
]
ConfigFile = Annotated[str, typer.Option("--config", help="A preset (atlas) or your own YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set inference.temperature=0.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="Run without Ray, in this process.")]
InFlight = Annotated[
    int | None, typer.Option("--in-flight", min=1, help="Number of concurrent rows (inference.in_flight).")
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="Stop before this cost is exceeded, including earlier runs of the job."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Process only the first N rows.")]
Paths = Annotated[
    str,
    typer.Option(
        "--paths",
        help="How result files state pictures: absolute (published tools find them from anywhere), or relative to the file.",
    ),
]
Examine = Annotated[
    bool,
    typer.Option("--sufficiency", help="Let the judge also examine the programs, which no benchmark counts."),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Additional folder with images of the rows, besides the input's own. Repeatable."),
]
Formula = Annotated[
    str | None, typer.Option("--formula", help="release-summary, release-eval or paper (reward.formula).")
]
Date = Annotated[str | None, typer.Option("--date", help="Date shown to the policy, if its profile shows one.")]
Method = Annotated[str, typer.Option("--method", help="Name of your method in the table.")]
DataArgument = Annotated[
    Path, typer.Option("--data", help="The benchmark: its file of rows, or the folder of that file.")
]


def _common(
    config: str,
    settings: list[str] | None,
    in_process: bool,
    in_flight: int | None,
    max_cost: float | None,
    limit: int | None,
    paths: str = "absolute",
    sufficiency: bool = False,
) -> Common:
    from genevolve_ray.commands.inference import Common
    from genevolve_ray.errors import UserFault

    if paths not in ("absolute", "relative"):
        raise UserFault(f"--paths {paths!r} is unknown; valid: absolute, relative")
    style: Literal["absolute", "relative"] = "relative" if paths == "relative" else "absolute"
    return Common(config, tuple(settings or ()), in_process, in_flight, max_cost, limit, style, sufficiency)


def rollout(
    rows: Rows,
    out: Out,
    policy: Policy = None,
    config: ConfigFile = "atlas",
    sft: Annotated[Path | None, typer.Option("--sft", help="Also write valid trajectories as SFT rows.")] = None,
    date: Date = None,
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
    paths: Paths = "absolute",
) -> None:
    """Let a policy answer requests: search, inspect images, and produce a program for a generator.

    The output is `results.json`, and below `store` every image that the policy received. If the job is stopped or killed,
    the same command resumes it. Exit code: 0, 1 if rows failed, 3 at --max-cost.

    Example: `genevolve rollout --input samples/bench.jsonl --output out/agent --policy runs/demo --config atlas`
    """
    from genevolve_ray.commands.inference import rollout_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit, paths)
    raise typer.Exit(rollout_run(rows, out, policy, common, sft=sft, date=date))


def render(
    rows: Rows,
    out: Out,
    config: ConfigFile = "atlas",
    data: Roots = None,
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
    paths: Paths = "absolute",
) -> None:
    """Render the agent's programs: `images/{id}.png` for each row with a program, and `results.json`.

    A row without a program fails and is never rendered from its raw request. Rows that no agent processed are rendered
    from their request. The command needs no policy and no engine.

    Example: `genevolve render --input out/agent/results.json --output out/render --config my.yaml`
    """
    from genevolve_ray.commands.inference import render_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit, paths)
    raise typer.Exit(render_run(rows, out, common, roots=data or []))


def judge(
    rows: Rows,
    out: Annotated[Path | None, typer.Option("--output", help="Output folder (default: the input's own).")] = None,
    config: ConfigFile = "atlas",
    data: Roots = None,
    formula: Formula = None,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat", min=1, help="Number of judgments per row, to measure the judge's agreement with itself."
        ),
    ] = 1,
    method: Method = "ours",
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
    paths: Paths = "absolute",
    sufficiency: Examine = False,
) -> None:
    """Score images against their ground truth: `results_eval.json`, `summary.json`, `summary.csv`, and a table.

    A row that cannot be judged is missing, never 0. Tables have 95% intervals; the published rows stand beside the rows
    of GenEvolve-Bench. What is left out is named with its reason, and the exit code is then 1.

    Example: `genevolve judge --input out/render/results.json --data samples --output out/judge`
    """
    from genevolve_ray.commands.inference import judge_run
    from genevolve_ray.commands.repeating import judge_again_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit, paths, sufficiency)
    if repeat > 1:
        raise typer.Exit(judge_again_run(rows, out, common, roots=data or [], formula=formula, repeat=repeat))
    raise typer.Exit(judge_run(rows, out, common, roots=data or [], formula=formula, method=method))


def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run; it is only read.")],
    out: Out,
    rollouts: Annotated[
        str, typer.Option("--rollouts", help="heldout-final, another stored set, or steps (all judged groups).")
    ] = "heldout-final",
    formula: Formula = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="Keep the stored verdicts, call no judge, and change only the formula.")
    ] = False,
    config: Annotated[str | None, typer.Option("--config", help="Configuration (default: the run's own).")] = None,
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
    paths: Paths = "absolute",
) -> None:
    """Judge a run's stored rollouts again, with another judge or formula, into a separate folder.

    Example: `genevolve rescore runs/demo --output out/again --set judge='{type: "my_judge:Judge"}'`
    """
    from genevolve_ray.commands.rescoring import rescore_run

    common = _common(config or "", settings, in_process, in_flight, max_cost, limit, paths)
    raise typer.Exit(rescore_run(run, out, rollouts, common, formula=formula, stored=stored))


def _kscore_suite(suite: str, about: str) -> None:
    def command(
        data: DataArgument,
        out: Out,
        policy: Policy = None,
        config: ConfigFile = "atlas",
        formula: Formula = None,
        date: Date = None,
        method: Method = "",
        settings: Sets = None,
        in_process: InProcess = False,
        in_flight: InFlight = None,
        max_cost: MaxCost = None,
        limit: Limit = None,
        paths: Paths = "absolute",
        sufficiency: Examine = False,
    ) -> None:
        from genevolve_ray.commands.benchmarks import bench_kscore_run

        common = _common(config, settings, in_process, in_flight, max_cost, limit, paths, sufficiency)
        raise typer.Exit(bench_kscore_run(suite, data, out, policy, common, formula=formula, date=date, method=method))

    command.__doc__ = f"""Run {about}: agent, generator and judge over its rows, as one resumable job.

    The output folder contains `agent`, `render` and `judge`, each with its result file.

    Example: `genevolve bench {suite} --data DIR --output out --policy runs/demo --config my.yaml`
    """
    _SUITES[suite] = command


_SUITES: dict[str, Callable[..., None]] = {}
_kscore_suite("genevolve", "GenEvolve-Bench by KScore")
_kscore_suite("knowgen", "KnowGen by KScore over its two groups")


def bench_wise(
    data: DataArgument,
    out: Out,
    policy: Policy = None,
    edition: Annotated[str, typer.Option("--edition", help="legacy or verified; their scores are not comparable.")] = (
        "verified"
    ),
    config: ConfigFile = "atlas",
    date: Date = None,
    method: Method = "",
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
    paths: Paths = "absolute",
) -> None:
    """Run WISE from your own copy of its JSON arrays: agent, generator and WISE's judge, as one resumable job.

    Example: `genevolve bench wise --edition legacy --data WISE/data --output out --policy direct --config my.yaml`
    """
    from genevolve_ray.bench.wise import Edition
    from genevolve_ray.commands.benchmarks import bench_wise_run
    from genevolve_ray.errors import UserFault

    common = _common(config, settings, in_process, in_flight, max_cost, limit, paths)
    if edition not in list(Edition):
        raise UserFault(f"--edition {edition!r} is unknown; valid editions: {', '.join(Edition)}")
    code = bench_wise_run(data, out, policy, common, edition=Edition(edition), date=date, method=method)
    raise typer.Exit(code)


def samples(folder: Annotated[Path, typer.Argument(help="Folder for the files; it is created.")]) -> None:
    """Write sample rows in the published shapes: requests, a benchmark with ground truths, training and SFT rows.

    Every command that reads rows can be tried on them. `README.md` in the folder says which command reads which file.

    Example: `genevolve samples samples`, then `genevolve bench genevolve --data samples --output out/bench`
    """
    from genevolve_ray.commands.samples import write_samples

    for path in write_samples(folder):
        typer.echo(str(path))


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Register the commands."""
    for command in (samples, rollout, render, judge, rescore):
        app.command()(command)
    for suite, suite_command in _SUITES.items():
        bench.command(suite)(suite_command)
    bench.command("wise")(bench_wise)
