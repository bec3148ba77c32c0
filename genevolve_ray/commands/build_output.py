"""The output of a data build: published parts with card and pages, the leak check, the rejections, and the summary."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.commands.build_config import BuildConfig
from genevolve_ray.commands.build_stages import store_of
from genevolve_ray.data.build.card import DatasetFacts, SourceNotice, card_text
from genevolve_ray.data.build.leaks import LeakCheckConfig, LeakReport, check_leaks
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
from genevolve_ray.experience.factory import build_embedder
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.published.files import encode, write_bytes, write_object
from genevolve_ray.records.published.trajectories import Message
from genevolve_ray.records.usage import Usage
from genevolve_ray.viewer.dataset import write_dataset_page

if TYPE_CHECKING:
    from genevolve_ray.commands.build_run import BuildTable
    from genevolve_ray.data.build.audit import AuditRow
    from genevolve_ray.data.build.truths import TruthRow

DATASET = "dataset"
"""Folder of the published parts inside the folder of a build."""
REJECTED = "rejected.jsonl"
"""Every rejected row: id, stage, reason, values, request."""
AXES = ("eval_type", "family", "gap", "anchor", "requirement", "difficulty")
"""Fields of a recipe whose marginals are reported."""


def publish_build(
    config: BuildConfig,
    folder: Path,
    table: BuildTable,
    trajectories: Mapping[str, Sequence[AuditRow]],
    requests: Mapping[str, Sequence[TruthRow]],
    rows: Sequence[PromptRow],
    generic: set[str],
) -> dict[str, Any]:
    """Write the data set to `dataset`, check it for leaks, and return what `summary.json` holds.

    Args:
        config: of the build.
        folder: of the build.
        table: what the stages counted.
        trajectories: rows of the parts that hold trajectories.
        requests: rows of the parts that hold requests with a truth.
        rows: every row in its last state, for rejections and marginals.
        generic: names that are no entities of their own.

    Raises:
        PublishFault, DataError: when the rows cannot be published as they are.
    """
    parts = [DataPart(name, [_conversation(row, generic) for row in part]) for name, part in trajectories.items()]
    index, cases = 0, []
    for name, part in requests.items():
        samples = []
        for row in part:
            samples.append(_case(row, index, generic))
            index += 1
        cases.append(DataPart(name, samples))
    facts = _facts(config, table, rows)
    target = folder / DATASET
    parts = [part for part in (*parts, *cases) if part.rows]
    made = publish(target, parts, facts, store_of(folder), config.data.publish, overwrite=True)
    leaks = _leaks(config, target) if len(parts) > 1 else {}
    summary = _with_leaks(made, facts, leaks)
    write_bytes(folder / REJECTED, b"".join(encode(_rejection(row)) + b"\n" for row in rows if row.rejected))
    write_object(folder / SUMMARY, summary)
    return summary


def _conversation(row: AuditRow, generic: set[str]) -> ConversationSample:
    messages = tuple(Message(role=each["role"], content=each["content"]) for each in row.answer["messages"])
    pictures = tuple(ImageRef.model_validate_json(text) for text in row.looked_at)
    return ConversationSample(row.id, messages, pictures, {"entities": _entities(row, generic)})


def _case(row: TruthRow, index: int, generic: set[str]) -> CaseSample:
    request = row.as_request().model_copy(
        update={"truth_image": row.truth_image, "meta": {**row.meta, "entities": _entities(row, generic)}}
    )
    return CaseSample(request, index, primary_skills=(row.requirement,), secondary_skills=row.secondary)


def _entities(row: PromptRow, generic: set[str]) -> list[str]:
    return [name for name in row.entities if name not in generic]


def _facts(config: BuildConfig, table: BuildTable, rows: Sequence[PromptRow]) -> DatasetFacts:
    data = config.data
    costs = {stage: sum(used.values(), Usage()).money for stage, used in table.usage.items()}
    return DatasetFacts(
        name=data.title,
        about=data.about,
        licence=data.license,
        yields=table.yields,
        marginals={axis: dict(Counter(str(getattr(row, axis)) for row in rows)) for axis in AXES},
        splits=_both(table.splits),
        costs={stage: cost for stage, cost in costs.items() if cost},
        sources=tuple(SourceNotice(file.source or file.path.name, file.license) for file in data.entities.files),
        limits=data.limits,
        provenance={"seed": str(config.seed), "taxonomy": data.taxonomy},
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


def _leaks(config: BuildConfig, target: Path) -> dict[str, Any]:
    embedder = config.experience.embedder
    settings = LeakCheckConfig(limits=config.data.request_parts.limits, embedder=embedder)
    report: LeakReport = asyncio.run(check_leaks(target, settings, build_embedder(embedder)))
    return report.as_dict()


def _with_leaks(made: PublishedFolder, facts: DatasetFacts, leaks: Mapping[str, Any]) -> dict[str, Any]:
    """Add the result of the leak check to the summary and the card of a published folder."""
    told = replace(facts, leaks=leaks)
    summary = {**made.summary, **told.summary()}
    write_object(made.path / SUMMARY, summary)
    write_bytes(made.path / CARD, card_text(told, summary).encode())
    write_dataset_page(made.path)
    return summary


def _rejection(row: PromptRow) -> dict[str, Any]:
    assert row.rejected is not None
    return {"id": row.id, **row.rejected.model_dump(mode="json"), "prompt": row.prompt}
