"""`genevolve rescore`: a run's stored rollouts, judged again into a separate folder; the run is only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.bench.jobs.pipeline import Stage
from genevolve_ray.bench.jobs.stages import JudgeStage
from genevolve_ray.commands.inference import CONSOLE, Common
from genevolve_ray.commands.jobs import EXIT_FAILED, Job, carry_out, refuse_foreign, result_settings
from genevolve_ray.commands.judged import KSCORE_FILES, write_kscore
from genevolve_ray.config import RunConfig, load_config, validate_config, with_overrides
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.inference import InferencePorts, Wanted
from genevolve_ray.evolution.sources import build_source
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import write_bytes, write_object
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.published.writers import agent_row, rendered_row, request_values
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import without_secrets
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.records.verdict import ScoreFormula, Verdict, kscore

STEPS = "steps"
_PICTURES = "pictures"


def rescore_run(run: Path, out: Path, rollouts: str, common: Common, *, formula: str | None, stored: bool) -> int:
    """Judge stored rollouts again and return the exit code. Raises UserFault, ConfigError, StoreError, DataError."""
    store = RunStore.read(str(run))
    if out.resolve().is_relative_to(run.resolve()):
        raise UserFault(f"--output {out}: is inside the run, to which rescore never writes: name another folder")
    config = _config(store, common, formula)
    if stored and without_secrets(config.judge.model_dump()) != without_secrets(store.config["judge"]):
        raise UserFault("--stored keeps the verdicts of the run's own judge: omit it to use another judge")
    refuse_foreign(out, "rescore", KSCORE_FILES)
    # A failed examination of a program must not take the scores of its picture away.
    config = common.judging(config, "optional")
    before = list(_rollouts(store, rollouts))[: common.limit]
    if not before:
        raise UserFault(f"{run}: no rendered rollout in {rollouts}")
    rows = [_row(store, out, row_id, request, t) for row_id, request, t in before]
    verdicts = {row_id: t.verdict for row_id, _, t in before if t.verdict is not None}

    def build(ports: InferencePorts, images: ImageStore) -> list[tuple[Stage, Path]]:
        judge = StoredVerdicts(verdicts) if stored else ports.judge
        assert judge is not None
        tries = config.inference.tries
        return [(JudgeStage(judge, images, roots=[out], formula=config.reward.formula, tries=tries), out)]

    result = carry_out(
        Job(
            name="rescore",
            config=config,
            folder=out,
            rows=rows,
            wanted=Wanted(judge=not stored),
            build=build,
            settings={
                "run": str(run.resolve()),
                "rollouts": rollouts,
                "formula": config.reward.formula.value,
                "plugin": "stored verdicts" if stored else result_settings(config.judge),
            },
            store=out,
            **common.carrying(),
        )
    )
    complete = write_kscore(out, result, config.reward.formula, method=f"{config.name}, {rollouts}")
    compared = compare(verdicts, [EvaluatedRow.read(row.values) for row in result.rows], config.reward.formula)
    write_object(out / "rescore.json", {"run": str(run), "rollouts": rollouts, **compared})
    CONSOLE.print(
        f"{compared['rows']} rows have both scores: KScore {compared['before']} before, {compared['after']} now, "
        f"difference {compared['difference']} {compared['interval']}; {out / 'rescore.json'}",
        highlight=False,
        soft_wrap=True,
    )
    return result.exit_code or (0 if complete else EXIT_FAILED)


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


def compare(before: dict[str, Verdict], after: Sequence[EvaluatedRow], formula: ScoreFormula) -> dict[str, Any]:
    """Return KScores before and after over the rows that have both, under one formula, with the paired interval."""
    both = [(before[row.id].image, row.scores) for row in after if row.scores is not None and row.id in before]
    old, new = ([kscore(pair[side], formula) for pair in both] for side in (0, 1))
    if not both:
        return {"rows": 0, "formula": formula.value} | dict.fromkeys(("before", "after", "difference", "interval"))
    found = paired_interval(old, new, seed=0)
    return {
        "rows": len(both),
        "formula": formula.value,
        "before": round(sum(old) / len(old), 4),
        "after": round(sum(new) / len(new), 4),
        "difference": round(found.mean, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "identical": sum(a == b for a, b in both),
    }


def _config(store: RunStore, common: Common, formula: str | None) -> RunConfig:
    options = [*common.settings, *([f"reward.formula={formula}"] if formula else [])]
    if common.in_flight is not None:
        options.append(f"inference.in_flight={common.in_flight}")
    if common.config:
        return load_config(common.config, options)
    return validate_config(with_overrides(store.config, options))


def _rollouts(store: RunStore, name: str) -> Iterator[tuple[str, Request, Trajectory]]:
    """Yield (row id, request, trajectory) of the rendered rollouts of a stored set, or of all judged groups."""
    if name == STEPS:
        found = [t for step in store.committed_steps() for g in store.groups(step) for t in g.trajectories]
        requests = _training_requests(store, {t.key.request_id for t in found})
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


def _training_requests(store: RunStore, wanted: set[str]) -> dict[str, Request]:
    """Return training requests by id, from the run's own source: an index always gives the same request."""
    from genevolve_ray.records.images import MemoryImages

    config = validate_config(store.config)
    source = build_source(config.requests, config.judge, MemoryImages())
    if (recorded := store.rows()) and hasattr(source, "keep"):
        source.keep(recorded)
    found: dict[str, Request] = {}
    for index in range(4 * max(1, len(wanted)) + 4 * config.loop.requests_per_step):
        if len(found) == len(wanted):
            break
        request = source.train(index)
        if request.id in wanted:
            found[request.id] = request
    return found


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
