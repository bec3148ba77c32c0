"""The output of a data build: published parts with card and pages, the leak check, the rejections, and the summary."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genevolve_ray.commands.build_config import BuildConfig, BuildStage
from genevolve_ray.commands.build_splits import BuildSplits
from genevolve_ray.commands.build_stages import store_of
from genevolve_ray.data.build.audit import AuditRow
from genevolve_ray.data.build.card import DatasetFacts, SourceNotice, card_text
from genevolve_ray.data.build.leaks import LeakCheckConfig, LeakReport, check_leaks
from genevolve_ray.data.build.part_rows import read_part
from genevolve_ray.data.build.publishing import (
    CARD,
    SUMMARY,
    CaseSample,
    ConversationSample,
    DataPart,
    PublishedFolder,
    publish,
)
from genevolve_ray.data.build.rows import PromptRow
from genevolve_ray.data.build.taxonomy import load_taxonomy
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.files import encode, write_bytes, write_object
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import Message
from genevolve_ray.records.usage import Usage
from genevolve_ray.viewer.dataset import write_dataset_page

DATASET = "dataset"
"""Folder of the published parts inside the folder of a build."""
REJECTED = "rejected.jsonl"
"""Every rejected row: id, stage, reason, values, request."""
AXES = ("eval_type", "family", "gap", "anchor", "requirement", "difficulty")
"""Fields of a recipe whose marginals are reported."""
_BEFORE = "before"
"""Folder in which a publication keeps what it replaces, until it is done."""


@dataclass
class BuildTable:
    """Hold the counts of a build as its stages end, and every row in its last state, by id."""

    yields: dict[str, dict[str, int]] = field(default_factory=dict)
    usage: dict[str, dict[str, Usage]] = field(default_factory=dict)
    rows: dict[str, PromptRow] = field(default_factory=dict)


def clear_leftovers(folder: Path) -> None:
    """Remove what a publication that was killed left behind; a data set that it had moved aside is put back."""
    for path in sorted(folder.glob(f".{DATASET}-*")):
        if (path / _BEFORE).is_dir() and not (folder / DATASET).exists():
            os.replace(path / _BEFORE, folder / DATASET)
        shutil.rmtree(path)


def publish_build(
    config: BuildConfig,
    folder: Path,
    table: BuildTable,
    splits: BuildSplits,
    trajectories: Mapping[str, Sequence[AuditRow]],
    requests: Mapping[str, Sequence[TruthRow]],
) -> dict[str, Any]:
    """Write the data set to `dataset`, check it for leaks, and return what `summary.json` holds.

    Args:
        config: of the build.
        folder: of the build.
        table: what the stages counted; rows that are left out are rejected in it by the stage `card`.
        splits: what placed the rows.
        trajectories: whole rows of the parts that hold trajectories.
        requests: whole rows of the parts that hold requests with a truth.

    Raises:
        PublishFault, DataError: when the rows cannot be published as they are.
    """
    parts = [DataPart(name, [_conversation(row, splits) for row in part]) for name, part in trajectories.items()]
    index, cases = 0, []
    for name, part in requests.items():
        samples = []
        for row in part:
            samples.append(_case(row, index, splits))
            index += 1
        cases.append(DataPart(name, samples))
    facts = _facts(config, table, splits.summaries)
    target = folder / DATASET
    parts = [part for part in (*parts, *cases) if part.rows]
    made = publish(target, parts, facts, store_of(folder), config.data.publish, overwrite=True)
    given = [row for part in (*trajectories.values(), *requests.values()) for row in part]
    left_out = _left_out(made, [row.id for row in given], [part.name for part in parts])
    for row_id, reason in left_out.items():
        table.rows[row_id] = table.rows[row_id].reject(BuildStage.CARD, reason)
    table.yields[BuildStage.CARD] = {"in": len(given), "out": len(given) - len(left_out)}
    leaks = _leaks(config, target, splits) if len(parts) > 1 else {}
    summary = _with_leaks(made, replace(facts, leaks=leaks, yields=table.yields))
    write_end(folder, table, summary)
    return summary


def write_end(folder: Path, table: BuildTable, summary: Mapping[str, Any]) -> None:
    """Write every rejected row, and the summary."""
    rejected = (_rejection(row) for row in table.rows.values() if row.rejected)
    write_bytes(folder / REJECTED, b"".join(encode(row) + b"\n" for row in rejected))
    write_object(folder / SUMMARY, summary)


def write_lost(config: BuildConfig, folder: Path, table: BuildTable, splits: Sequence[Mapping[str, Any]]) -> None:
    """Write rejections and summary of a build of which no row is left."""
    write_end(folder, table, {**_facts(config, table, splits).summary(), "parts": {}})


def _left_out(made: PublishedFolder, given: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
    """Return the rows that were not published, with the reason of each."""
    report = made.left_out
    if not report.rejected:
        return {}
    published = {row.id for name in parts for row in read_part(name, made.path / f"{name}.jsonl", RejectionReport())}
    reasons = {
        each.detail.partition(": ")[0]: reason.value for reason in report.rejected for each in report.examples(reason)
    }
    # A report keeps the first thousand rows of each reason.
    most = report.rejected.most_common(1)[0][0].value
    return {row_id: reasons.get(row_id, most) for row_id in given if row_id not in published}


def _conversation(row: AuditRow, splits: BuildSplits) -> ConversationSample:
    messages = tuple(Message(role=each["role"], content=each["content"]) for each in row.answer["messages"])
    pictures = tuple(ImageRef.model_validate_json(text) for text in row.looked_at)
    return ConversationSample(row.id, messages, pictures, {"entities": list(splits.names(row))})


def _case(row: TruthRow, index: int, splits: BuildSplits) -> CaseSample:
    request = row.as_request().model_copy(
        update={"truth_image": row.truth_image, "meta": {**row.meta, "entities": list(splits.names(row))}}
    )
    return CaseSample(request, index, primary_skills=(row.requirement,), secondary_skills=row.secondary)


def _facts(config: BuildConfig, table: BuildTable, splits: Sequence[Mapping[str, Any]]) -> DatasetFacts:
    data = config.data
    costs = {stage: sum(used.values(), Usage()).money for stage, used in table.usage.items()}
    return DatasetFacts(
        name=data.title,
        about=data.about,
        licence=data.license,
        yields=table.yields,
        marginals={axis: dict(Counter(str(getattr(row, axis)) for row in table.rows.values())) for axis in AXES},
        splits=_both(splits),
        costs={stage: cost for stage, cost in costs.items() if cost},
        sources=tuple(SourceNotice(file.source or file.path.name, file.license) for file in data.entities.files),
        limits=data.limits,
        provenance={"seed": str(config.seed), "taxonomy": load_taxonomy(data.taxonomy).name},
    )


def _both(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summaries of the splits of trajectories and of requests as one."""
    found: dict[str, Any] = {"parts": {}, "moved": Counter(), "dropped": Counter(), "connected_by": Counter()}
    clusters = [split["clusters"] for split in splits]
    for split in splits:
        found["parts"] |= split["parts"]
        for name in ("moved", "dropped", "connected_by"):
            found[name].update(split[name])
    sizes = {"count": sum(c["count"] for c in clusters), "rows": sum(c["rows"] for c in clusters)}
    sizes["largest"] = max((c["largest"] for c in clusters), default=1)
    return {name: dict(value) for name, value in found.items()} | {"clusters": sizes}


def _leaks(config: BuildConfig, target: Path, splits: BuildSplits) -> dict[str, Any]:
    settings = LeakCheckConfig(limits=config.data.overlap_limits, embedder=config.experience.embedder)
    report: LeakReport = asyncio.run(check_leaks(target, settings, splits.embedder))
    return report.as_dict()


def _with_leaks(made: PublishedFolder, told: DatasetFacts) -> dict[str, Any]:
    """Add what is known only of a published folder to its summary and its card."""
    summary = {**made.summary, **told.summary()}
    write_object(made.path / SUMMARY, summary)
    write_bytes(made.path / CARD, card_text(told, summary).encode())
    write_dataset_page(made.path)
    return summary


def _rejection(row: PromptRow) -> dict[str, Any]:
    assert row.rejected is not None
    return {"id": row.id, **row.rejected.model_dump(mode="json"), "prompt": row.prompt}
