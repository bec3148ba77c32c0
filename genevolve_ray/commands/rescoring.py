"""`genevolve rescore`: a run's stored rollouts, judged again into a separate folder; the run is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from genevolve_ray.bench.agreement import PairedAgreement, compare_components, correlate_with
from genevolve_ray.bench.jobs.panel import PanelStage, panel_components
from genevolve_ray.bench.jobs.pipeline import Stage
from genevolve_ray.bench.jobs.stages import JudgeStage
from genevolve_ray.commands.inference import CONSOLE, Common, without_groups
from genevolve_ray.commands.jobs import EXIT_FAILED, Job, carry_out, refuse_foreign, result_settings
from genevolve_ray.commands.judged import KSCORE_FILES, write_kscore
from genevolve_ray.config import RunConfig, load_config, validate_config, with_overrides
from genevolve_ray.doctor.preflight import check_formulas
from genevolve_ray.doctor.settings_tree import plugin_settings
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.inference import InferencePorts, Wanted
from genevolve_ray.evolution.judging import MAIN
from genevolve_ray.evolution.sources import posed_requests, recorded_source
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.judges.protocol import gives_kscore
from genevolve_ray.records.components import AnyVerdict, components_of
from genevolve_ray.records.images import ImageRef, ImageStore, MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import write_array, write_bytes, write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.published.writers import agent_row, rendered_row, request_values
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import without_secrets
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.records.verdict import WEIGHTS, ScoreFormula, Verdict, kscore

Stored = tuple[str, Request, Trajectory]
"""A rollout of a run: the id of its row, its request, and itself."""
STEPS = "steps"
SCORE = f"{MAIN}.kscore"
_NUMBERS = ("before", "after", "difference", "interval", "rank_correlation")
_PICTURES = "pictures"


def rescore_run(run: Path, out: Path, rollouts: str, common: Common, *, formula: str | None, stored: bool) -> int:
    """Judge stored rollouts again and return the exit code. Raises UserFault, ConfigError, StoreError, DataError.

    One judge with a KScore writes the files of `genevolve judge`; other judges, and several, write their components.
    Judges of groups are left out.
    """
    store = RunStore.read(str(run))
    if out.resolve().is_relative_to(run.resolve()):
        raise UserFault(f"--output {out}: is inside the run, to which rescore never writes: name another folder")
    config = _config(store, common, formula)
    if stored and without_secrets(config.judge.model_dump()) != without_secrets(store.config["judge"]):
        raise UserFault("--stored keeps the verdicts of the run's own judge: omit it to use another judge")
    if not stored:
        config = without_groups(config)
        check_formulas(config)
    panel = not stored and _is_panel(config)
    refuse_foreign(out, "rescore", (PanelStage.results,) if panel else KSCORE_FILES)
    # A failed examination of a program must not take the scores of its picture away.
    config = common.judging(config, "optional")
    before = list(_rollouts(store, rollouts))[: common.limit]
    if not before:
        raise UserFault(f"{run}: no rendered rollout in {rollouts}")
    if stored and all(t.verdict is None for _, _, t in before):
        raise UserFault("--stored changes the formula of KScores, which this run's judge did not give")
    result = carry_out(_job(store, run, out, rollouts, common, config, before, stored=stored, panel=panel))
    if panel:
        after = {row.id: panel_components(row) for row in result.rows}
        complete = result.exit_code == 0
    else:
        complete = write_kscore(out, result, config.reward.formula, method=f"{config.name}, {rollouts}")
        after = {row.id: _graded(row, config.reward.formula) for row in result.rows}
    _report(run, out, rollouts, config.reward.formula, before, after)
    return result.exit_code or (0 if complete else EXIT_FAILED)


def _is_panel(config: RunConfig) -> bool:
    """Return whether judges give other components than one KScore."""
    if config.judges or config.judge.isolated:
        return bool(config.judges or config.reward.components)
    return not gives_kscore(*plugin_settings("judge", config.judge))


def _job(
    store: RunStore,
    run: Path,
    out: Path,
    rollouts: str,
    common: Common,
    config: RunConfig,
    before: Sequence[Stored],
    *,
    stored: bool,
    panel: bool,
) -> Job:
    verdicts = {row_id: t.verdict for row_id, _, t in before if t.verdict is not None}

    def build(ports: InferencePorts, images: ImageStore) -> list[tuple[Stage, Path]]:
        judge = StoredVerdicts(verdicts) if stored else ports.judge
        assert judge is not None
        options: dict[str, Any] = {"formula": config.reward.formula, "tries": config.inference.tries}
        if panel:
            return [(PanelStage({MAIN: judge, **ports.judges}, images, roots=[out], **options), out)]
        return [(JudgeStage(judge, images, roots=[out], **options), out)]

    further = {name: result_settings(spec) for name, spec in config.judges.items()} if panel else {}
    return Job(
        name="rescore",
        config=config,
        folder=out,
        rows=[_row(store, out, row_id, request, t) for row_id, request, t in before],
        wanted=Wanted(judge=not stored, panel=panel),
        build=build,
        settings={
            "run": str(run.resolve()),
            "rollouts": rollouts,
            "formula": config.reward.formula.value,
            "plugin": "stored verdicts" if stored else result_settings(config.judge),
            **({"judges": further} if further else {}),
        },
        store=out,
        **common.carrying(),
    )


class StoredVerdicts:
    """Replay the verdicts that a run has kept, as a judge."""

    def __init__(self, verdicts: dict[str, Verdict]) -> None:
        """Keep the verdicts by row id."""
        self._verdicts = verdicts
        self.identity = "stored: " + ", ".join(sorted({v.judge for v in verdicts.values()}))

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return the stored verdict. Raises InfraFailure for a rollout that has none."""
        if request.id not in self._verdicts:
            raise InfraFailure(f"the run has no verdict for {request.id}")
        return self._verdicts[request.id]


def _report(
    run: Path,
    out: Path,
    rollouts: str,
    formula: ScoreFormula,
    before: Sequence[Stored],
    after: Mapping[str, Mapping[str, float]],
) -> None:
    """Write both judgments of every row, and their agreement, and print the agreement."""
    old = {row_id: _stored_components(t, formula) for row_id, _, t in before}
    shared = compare_components(old, after)
    rewards = {row_id: t.score for row_id, _, t in before if t.reward is not None}
    other = correlate_with(rewards, after, without=shared)
    found: dict[str, Any] = {"run": str(run), "rollouts": rollouts, "formula": formula.value}
    if SCORE in {name for row in (*old.values(), *after.values()) for name in row}:
        found |= (
            _as_numbers(shared[SCORE]) if SCORE in shared else {"rows": 0, "identical": 0} | dict.fromkeys(_NUMBERS)
        )
    found["components"] = {name: _as_numbers(one) for name, one in shared.items()}
    found["with_reward"] = {
        name: {"rows": rows, "rank_correlation": _round(rho)} for name, (rows, rho) in other.items()
    }
    write_object(out / "rescore.json", found)
    rows = [{"id": i, "reward": rewards.get(i), "before": old[i], "after": after.get(i, {})} for i in old]
    write_array(out / "rescore_rows.json", rows)
    table = Table("component", "rows", "before", "after", "difference", "95% interval", "rank correlation")
    for name, one in found["components"].items():
        table.add_row(name, *(str(one[key]) for key in ("rows", *_NUMBERS)))
    for name, one in found["with_reward"].items():
        table.add_row(name, str(one["rows"]), "", "", "", "with the reward:", str(one["rank_correlation"]))
    CONSOLE.print(table)
    if "rows" in found:
        CONSOLE.print(
            f"{found['rows']} rows have both scores: KScore {found['before']} before, {found['after']} now, "
            f"difference {found['difference']} {found['interval']}, rank correlation {found['rank_correlation']}",
            highlight=False,
            soft_wrap=True,
        )
    CONSOLE.print(str(out / "rescore.json"), highlight=False, soft_wrap=True)


def _stored_components(trajectory: Trajectory, formula: ScoreFormula) -> dict[str, float]:
    """Return what the judges of the run measured, by `JUDGE.COMPONENT`."""
    verdicts: dict[str, AnyVerdict] = dict(trajectory.verdicts)
    if trajectory.verdict is not None:
        verdicts[MAIN] = trajectory.verdict
    return {
        f"{judge}.{name}": part.value
        for judge, verdict in verdicts.items()
        for name, part in components_of(verdict, formula).items()
    }


def _graded(row: ResultRow, formula: ScoreFormula) -> dict[str, float]:
    scores = EvaluatedRow.read(row.values).scores
    if scores is None:
        return {}
    grades = {name: value for name in WEIGHTS if (value := getattr(scores, name)) is not None}
    return {f"{MAIN}.{name}": value for name, value in (*grades.items(), ("kscore", kscore(scores, formula)))}


def _as_numbers(one: PairedAgreement) -> dict[str, Any]:
    return {
        "rows": one.rows,
        "before": _round(one.before),
        "after": _round(one.after),
        "difference": _round(one.difference.mean),
        "interval": [_round(one.difference.low), _round(one.difference.high)],
        "rank_correlation": _round(one.rank_correlation),
        "identical": one.identical,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _config(store: RunStore, common: Common, formula: str | None) -> RunConfig:
    options = [*common.settings, *([f"reward.formula={formula}"] if formula else [])]
    if common.in_flight is not None:
        options.append(f"inference.in_flight={common.in_flight}")
    if common.config:
        return load_config(common.config, options)
    return validate_config(with_overrides(store.config, options))


def _rollouts(store: RunStore, name: str) -> Iterator[Stored]:
    """Yield (row id, request, trajectory) of the rendered rollouts of a stored set, or of all judged groups."""
    if name == STEPS:
        found = [t for step in store.committed_steps() for g in store.groups(step) for t in g.trajectories]
        config = validate_config(store.config)
        source = recorded_source(config, store, MemoryImages())
        requests = posed_requests(source, config.loop, [t.key.request_id for t in found], store.last_step)
    elif name in (names := store.trajectory_names()):
        found = store.get_trajectories(name)
        requests = {r.id: r for r in store.get_requests("heldout" if name.startswith("heldout") else "ablation")}
    else:
        raise UserFault(f"--rollouts {name!r}: the run has {', '.join((*names, STEPS))}")
    for t in found:
        if t.rendered is not None and t.program is not None and t.key.request_id in requests:
            key = t.key
            row_id = f"{key.step:06d}-{key.request_id}-{key.sample}-{key.attempt}" if name == STEPS else key.request_id
            yield row_id, requests[key.request_id], t


def _row(store: RunStore, out: Path, row_id: str, request: Request, trajectory: Trajectory) -> ResultRow:
    """Return a rollout as a rendered row, with its images as files of the output folder."""
    truth = _picture(store, out, request.truth_image) if request.truth_image is not None else ""
    asked = request_values(request.model_copy(update={"id": row_id}), truth)
    agent = agent_row(
        asked,
        trajectory,
        local_path=lambda img_id, hit: _picture(store, out, hit.image),
        shown_path=lambda ref: _picture(store, out, ref),
        provenance={"outcome": Outcome.SCORED.value, "key": str(trajectory.key)},
    )
    assert trajectory.rendered is not None
    row = rendered_row(agent, renderer=trajectory.provenance.renderer, render_seed=trajectory.provenance.render_seed)
    picture = out / str(row["output_path"])
    if not picture.is_file():
        write_bytes(picture, store.images.get(trajectory.rendered))
    return ResultRow.read({**row, PROVENANCE: row[PROVENANCE]})


def _picture(store: RunStore, out: Path, ref: ImageRef) -> str:
    path = f"{_PICTURES}/{ref.file_name}"
    if not (out / path).is_file():
        write_bytes(out / path, store.images.get(ref))
    return path
