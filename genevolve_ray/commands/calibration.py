"""`genevolve experience calibrate`: precision and recall of recalled guidance against the threshold of the memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from genevolve_ray.commands.experience import StoredExperience, load_experience
from genevolve_ray.config import RunConfig, validate_config, with_overrides
from genevolve_ray.doctor.settings_tree import plugin_settings
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.evolution.sources import KnowsIdealGuidance, posed_requests, recorded_source
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.calibration import (
    LEAST_BUNDLES,
    LEAST_HITS,
    ThresholdCalibration,
    ThresholdRow,
    calibrate,
)
from genevolve_ray.experience.config import EmbedderConfig, MergeConfig
from genevolve_ray.experience.recall import embedded
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.published.files import write_object

OWN, IDEAL = "own", "ideal"
_EVERY = 5
"""Rows of the table: one threshold in this many, besides the run's own and the recommended one."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Hold the options of a calibration."""

    embedder: str | None = None
    """`hashing`, or a model folder or hub id; None: the run's own."""
    settings: tuple[str, ...] = ()
    requests: int | None = None
    precision: float = 0.9
    against: str = OWN
    out: Path | None = None


def calibrate_run(run: Path, options: CalibrationOptions) -> ThresholdCalibration:
    """Measure the thresholds of the memory of a run, print the curves, and write them as JSON and as a page.

    Raises:
        UserFault: for a run without experience or with too few bundles, an embedder that cannot be used here, or an
            unknown reference.
        StoreError: for a folder that is no run, or a corrupt snapshot.
    """
    from genevolve_ray.viewer.calibration import write_calibration

    out = options.out or run / "calibration.json"
    if out.suffix != ".json":
        raise UserFault(f"--json {str(out)!r} must end in .json")
    found = calibration_of(run, options)
    write_object(out, found.model_dump(mode="json"))
    page = write_calibration(found, out.with_suffix(".html"), str(run))
    print_calibration(found)
    print(f"{out}\nreport: {page}")
    return found


def calibration_of(run: Path, options: CalibrationOptions) -> ThresholdCalibration:
    """Return the calibration of a run; see `calibrate_run`."""
    stored = load_experience(run)
    entries = stored.memory.rows()
    if len(entries) < LEAST_BUNDLES:
        raise UserFault(
            f"run {run} remembers {len(entries)} bundles after step {stored.step}: a calibration needs {LEAST_BUNDLES}"
        )
    config = validate_config(with_overrides(RunStore.read(str(run)).config, options.settings))
    embedder = _embedder(config, options.embedder)
    name, vectors = _vectors(stored, embedder, [entry.key for entry in entries])
    bundles = [entry.experience for entry in entries]
    references = _references(config, RunStore.read(str(run)), bundles, options.against, stored.step)
    youngest = sorted(range(len(entries)), key=lambda place: -entries[place].number)[: options.requests]
    return calibrate(
        bundles,
        vectors,
        references,
        queries=sorted(youngest),
        merge=config.experience.merge or MergeConfig(),
        wanted=options.precision,
        numbers=[entry.number for entry in entries],
        embedder=name,
        reference=options.against,
        threshold=stored.config.memory.least_cosine,
    )


def _embedder(config: RunConfig, named: str | None) -> EmbedderConfig:
    """Return the settings of the embedder to calibrate."""
    given = config.experience.embedder
    if named is None or named == given.kind:
        return given
    if named == "hashing":
        return EmbedderConfig(hashing=given.hashing)
    model = given.transformers.model_copy(update={"model": named})
    return EmbedderConfig(kind="transformers", transformers=model)


def _vectors(
    stored: StoredExperience, embedder: EmbedderConfig, keys: Sequence[str]
) -> tuple[str, NDArray[np.float32]]:
    """Return the identity of an embedder and the vectors of keys, those of the memory where they are from it."""
    if embedder == stored.config.embedder:
        return embedder.type or embedder.kind, stored.memory.vectors
    try:
        built = build_run_embedder(embedder)
        return built.identity, asyncio.run(embedded(built, keys))
    except (ValueError, InfraFailure) as error:
        raise UserFault(f"cannot calibrate embedder {embedder.type or embedder.kind!r}: {error}") from error


def _references(
    config: RunConfig, store: RunStore, bundles: Sequence[Experience], against: str, steps: int
) -> list[Experience]:
    """Return what each request ought to hear."""
    if against == OWN:
        return list(bundles)
    if against != IDEAL:
        raise UserFault(f"--against {against!r} is unknown; known: {OWN}, {IDEAL}")
    renderer = None if config.renderer.isolated else plugin_settings("renderer", config.renderer)[1]
    with tempfile.TemporaryDirectory(prefix="genevolve-calibrate-") as folder:
        source = recorded_source(config, store, FilesystemImages(folder))
        guide: Any = source
        if not isinstance(guide, KnowsIdealGuidance):
            raise UserFault(
                f"--against {IDEAL}: requests.type={config.requests.type} does not know what guidance is right "
                f"(it has no method ideal_guidance); use --against {OWN}"
            )
        posed = posed_requests(source, config.loop, [bundle.request_id for bundle in bundles], steps)
        found = {name: guide.ideal_guidance(request, renderer) for name, request in posed.items()}
    if missing := sorted({bundle.request_id for bundle in bundles} - set(found)):
        raise UserFault(
            f"--against {IDEAL}: request {missing[0]!r} of a bundle is none that the run's source poses in {steps} steps"
        )
    return [found[bundle.request_id] for bundle in bundles]


def print_calibration(found: ThresholdCalibration) -> None:
    """Print the curves as a table, with the recommendation below."""
    table = Table(
        title=f"{found.bundles} bundles, {found.requests} requests, {found.embedder}, against {found.reference}"
    )
    for heading in ("threshold", "hit rate", "precision", "interval", "recall", "merged: precision", "recall"):
        table.add_column(heading, justify="right", no_wrap=True)
    told = {found.threshold, found.recommended}
    for place, row in enumerate(found.rows):
        if place % _EVERY == 0 or row.threshold in told:
            table.add_row(*_cells(row), style="bold" if row.threshold == found.recommended else "")
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    print(f"precision of any other bundle: {found.chance:.2f}; threshold of the run: {found.threshold:g}")
    if found.recommended is None:
        print(f"no threshold has precision {found.wanted:g} where at least {LEAST_HITS} requests recall something")
    else:
        print(f"recommended for precision {found.wanted:g}: experience.memory.threshold={found.recommended:g}")


def _cells(row: ThresholdRow) -> list[str]:
    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    nearest, merged = row.nearest, row.merged
    bounds = "–" if nearest.low is None else f"{show(nearest.low)} to {show(nearest.high)}"
    figures = (show(nearest.precision), bounds, show(nearest.recall), show(merged.precision), show(merged.recall))
    return [f"{row.threshold:.2f}", f"{row.hit_rate:.0%}", *figures]
