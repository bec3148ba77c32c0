"""The command line of rollout, render, judge, rescore and the benchmarks. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from genevolve_ray.commands.inference import Common

Rows = Annotated[Path, typer.Option("--input", help="Rows: .jsonl, .json (an array) or .parquet.")]
Out = Annotated[Path, typer.Option("--output", help="Folder of the results; one with the same job is gone on with.")]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="A run folder (its best checkpoint), a model folder, openai:MODEL@URL, a YAML file of an endpoint, or "
        "direct (no agent). Default: policy.model.",
    ),
]
ConfigFile = Annotated[str, typer.Option("--config", help="A preset (atlas) or a YAML file of your own.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set inference.temperature=0.")]
InProcess = Annotated[bool, typer.Option("--in-process", help="Without Ray, in this process.")]
InFlight = Annotated[int | None, typer.Option("--in-flight", min=1, help="Rows at once (inference.in_flight).")]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="Stop before this much money is spent, earlier runs of the job included."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Folder that pictures of the rows lie in, beside the input's own. Repeatable."),
]
Formula = Annotated[
    str | None, typer.Option("--formula", help="release-summary, release-eval or paper (reward.formula).")
]
Date = Annotated[str | None, typer.Option("--date", help="Date shown to the policy, where its profile shows one.")]
Method = Annotated[str, typer.Option("--method", help="Your name in the table.")]
DataArgument = Annotated[Path, typer.Option("--data", help="The benchmark: its file of rows, or the folder of it.")]


def _common(
    config: str,
    settings: list[str] | None,
    in_process: bool,
    in_flight: int | None,
    max_cost: float | None,
    limit: int | None,
) -> Common:
    from genevolve_ray.commands.inference import Common

    return Common(config, tuple(settings or ()), in_process, in_flight, max_cost, limit)


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
) -> None:
    """Let a policy answer requests: search, look, and leave a program for a generator.

    Writes `results.json`, and every picture that the policy was shown below `store`. Stopped or killed, the same command
    goes on. Ends with 0, with 1 when rows failed, with 3 at --max-cost.

    Example: `genevolve rollout --input test.jsonl --output out/agent --policy runs/demo --config atlas`
    """
    from genevolve_ray.commands.inference import rollout_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit)
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
) -> None:
    """Draw what the agent left: `images/{id}.png` for each row with a program, and `results.json`.

    A row without a program is failed, never drawn from its raw request; rows that no agent had to do with are drawn from
    it. Needs no policy and no engine.

    Example: `genevolve render --input out/agent/results.json --output out/render --config my.yaml`
    """
    from genevolve_ray.commands.inference import render_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit)
    raise typer.Exit(render_run(rows, out, common, roots=data or []))


def judge(
    rows: Rows,
    out: Annotated[Path | None, typer.Option("--output", help="Folder; by default the input's own.")] = None,
    config: ConfigFile = "atlas",
    data: Roots = None,
    formula: Formula = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, help="Judge so often, to see how far the judge agrees.")
    ] = 1,
    method: Method = "ours",
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
) -> None:
    """Score pictures beside their ground truth: `results_eval.json`, `summary.json`, `summary.csv`, and a table.

    What cannot be judged is missing, never 0. Tables carry 95% intervals, with the published rows beside.

    Example: `genevolve judge --input out/render/results.json --data GenEvolve-Bench --config my.yaml`
    """
    from genevolve_ray.commands.inference import judge_run
    from genevolve_ray.commands.repeating import judge_again_run

    common = _common(config, settings, in_process, in_flight, max_cost, limit)
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
        bool, typer.Option("--stored", help="Keep the stored verdicts and ask no judge: another formula alone.")
    ] = False,
    config: Annotated[str | None, typer.Option("--config", help="By default the run's own configuration.")] = None,
    settings: Sets = None,
    in_process: InProcess = False,
    in_flight: InFlight = None,
    max_cost: MaxCost = None,
    limit: Limit = None,
) -> None:
    """Judge a run's stored rollouts again, with another judge or formula, into a folder of its own.

    Example: `genevolve rescore runs/demo --output out/again --set judge='{type: "my_judge:Judge"}'`
    """
    from genevolve_ray.commands.rescoring import rescore_run

    common = _common(config or "", settings, in_process, in_flight, max_cost, limit)
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
    ) -> None:
        from genevolve_ray.commands.benchmarks import bench_kscore_run

        common = _common(config, settings, in_process, in_flight, max_cost, limit)
        raise typer.Exit(bench_kscore_run(suite, data, out, policy, common, formula=formula, date=date, method=method))

    command.__doc__ = f"""{about}: agent, generator and judge over its rows, as one job with one state.

    Leaves `agent`, `render` and `judge` below the output folder, each with its result file.

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
    edition: Annotated[str, typer.Option("--edition", help="legacy or verified; their scores cannot be compared.")] = (
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
) -> None:
    """WISE from your own copy of its JSON arrays: agent, generator and WISE's judge, as one job with one state.

    Example: `genevolve bench wise --edition legacy --data WISE/data --output out --policy direct --config my.yaml`
    """
    from genevolve_ray.bench.wise import Edition
    from genevolve_ray.commands.benchmarks import bench_wise_run
    from genevolve_ray.errors import UserFault

    common = _common(config, settings, in_process, in_flight, max_cost, limit)
    if edition not in list(Edition):
        raise UserFault(f"--edition {edition!r} is unknown; there are {', '.join(Edition)}")
    code = bench_wise_run(data, out, policy, common, edition=Edition(edition), date=date, method=method)
    raise typer.Exit(code)


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Put the commands on the command line."""
    for command in (rollout, render, judge, rescore):
        app.command()(command)
    for suite, suite_command in _SUITES.items():
        bench.command(suite)(suite_command)
    bench.command("wise")(bench_wise)
