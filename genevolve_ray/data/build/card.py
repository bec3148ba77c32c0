"""The card of a data set: `README.md` with the head that hubs read, counts, yields, costs, licenses and known limits.

Every text may come from outside: it is escaped, so that it is neither markup nor a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~>$-])")
_TEXT_CHARS = 300
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Bounds of the size classes that hubs know."""
_READER = """\
```python
from datasets import load_dataset

rows = load_dataset("FOLDER_OR_ORG/NAME", "{config}", split="{split}")
```"""


@dataclass(frozen=True)
class SourceNotice:
    """Name a source of rows or pictures, its license, and its address."""

    name: str
    licence: str
    address: str = ""


@dataclass(frozen=True)
class DatasetFacts:
    """Hold what a data set says about itself beside what is counted when it is written.

    Attributes:
        name: title of the card.
        about: a paragraph about the data.
        licence: identifier of the license of the data set as hubs use it, "" for none.
        yields: rows that went into each stage and came out, `{stage: {"in": n, "out": m}}`.
        marginals: rows by the values of a field, `{field: {value: n}}`.
        splits: what `SplitResult.summary` returns.
        leaks: what `LeakReport.as_dict` returns; empty where nothing was checked.
        costs: US dollars of each stage.
        sources: origins and licenses.
        limits: known limits, a sentence each.
        provenance: seeds, models and versions by name.
    """

    name: str
    about: str = ""
    licence: str = ""
    yields: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    marginals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    splits: Mapping[str, Any] = field(default_factory=dict)
    leaks: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[SourceNotice, ...] = ()
    limits: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the facts as plain values, as `summary.json` holds them."""
        return {
            "name": self.name,
            "yields": {stage: dict(counts) for stage, counts in self.yields.items()},
            "marginals": {name: dict(sorted(counts.items())) for name, counts in self.marginals.items()},
            "splits": dict(self.splits),
            "leaks": dict(self.leaks),
            "costs": dict(self.costs),
            "provenance": dict(self.provenance),
        }


def escaped(text: object, limit: int = _TEXT_CHARS) -> str:
    """Return a text as one line of Markdown in which nothing is markup, cut at `limit` characters."""
    plain = " ".join(str(text).encode(errors="replace").decode().split())
    plain = plain if len(plain) <= limit else f"{plain[:limit]}…"
    plain = plain.replace("&", "&amp;").replace("<", "&lt;")
    # Bare addresses become links even without brackets.
    return _SPECIAL.sub(r"\\\1", plain).replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def card_text(facts: DatasetFacts, summary: Mapping[str, Any]) -> str:
    """Return the text of README.md.

    Args:
        facts: what the data set says about itself.
        summary: what `publishing.publish` counted: `parts` with rows and pictures, `left_out`, `output_hash`.
    """
    parts: Mapping[str, Mapping[str, int]] = summary["parts"]
    blocks = [
        f"---\n{yaml.safe_dump(_head(facts, parts), sort_keys=False, allow_unicode=True)}---",
        f"# {escaped(facts.name)}",
        escaped(facts.about, 4000) if facts.about else "",
        "## Parts",
        _table(("part", "rows", "pictures"), ((name, part["rows"], part["pictures"]) for name, part in parts.items())),
        *_reading(parts),
        *_left_out(summary.get("left_out", {})),
        *_yields(facts),
        *_marginals(facts),
        *_splits(facts.splits),
        *_leaks(facts.leaks),
        *_costs(facts.costs),
        *_sources(facts),
        *_limits(facts.limits),
        "## Provenance",
        _table(
            ("what", "value"),
            [*facts.provenance.items(), ("package", summary["package"]), ("SHA-256", summary["output_hash"])],
        ),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _head(facts: DatasetFacts, parts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return what hubs and the library `datasets` read: the license, the size, and the file of each split."""
    head: dict[str, Any] = {"pretty_name": facts.name, **({"license": facts.licence} if facts.licence else {})}
    rows = sum(part["rows"] for part in parts.values())
    bounds = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M"]
    head["size_categories"] = [bounds[sum(rows >= size for size in _SIZES)]]
    head["tags"] = ["genevolve", "image-generation-agent"]
    configs: dict[str, list[dict[str, str]]] = {}
    for name in parts:
        config, _, split = name.partition("/")
        configs.setdefault(config, []).append({"split": split, "path": f"{name}.parquet"})
    head["configs"] = [{"config_name": name, "data_files": files} for name, files in configs.items()]
    return head


def _reading(parts: Mapping[str, Any]) -> Iterator[str]:
    for name in list(parts)[:1]:
        config, _, split = name.partition("/")
        yield "Each part is there as JSON lines and as Parquet. Paths of pictures are relative to the file."
        yield _READER.format(config=config, split=split)


def _left_out(report: Mapping[str, Any]) -> Iterator[str]:
    if report.get("rejected"):
        yield "Rows that were left out because a picture could not be opened, or a value could not be written:"
        yield _table(("reason", "rows"), report["rejected"].items())


def _yields(facts: DatasetFacts) -> Iterator[str]:
    if facts.yields:
        yield "## Yields"
        yield _table(
            ("stage", "in", "out", "share"),
            (
                (stage, c["in"], c["out"], f"{c['out'] / c['in']:.1%}" if c["in"] else "")
                for stage, c in facts.yields.items()
            ),
        )


def _marginals(facts: DatasetFacts) -> Iterator[str]:
    if facts.marginals:
        yield "## Composition"
    for name, counts in facts.marginals.items():
        yield _table((name, "rows"), sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _splits(splits: Mapping[str, Any]) -> Iterator[str]:
    if not splits:
        return
    yield "## Splits"
    clusters = splits.get("clusters", {})
    yield (
        "Rows that share an entity, a near request or a picture are in one part: "
        f"{clusters.get('count', 0)} clusters of {clusters.get('rows', 0)} rows, the largest of {clusters.get('largest', 1)}."
    )
    for title in ("moved", "dropped", "connected_by"):
        if splits.get(title):
            yield _table((title.replace("_", " "), "rows"), splits[title].items())


def _leaks(leaks: Mapping[str, Any]) -> Iterator[str]:
    yield "## Leaks between parts"
    if not leaks:
        yield "The parts were not compared."
        return
    compared = f"Requests by {escaped(leaks.get('embedder', ''))} (cosine from {escaped(leaks.get('text_cosine', ''))})"
    pictures = leaks.get("picture_embedder")
    yield f"{compared}; pictures by their hashes{f' and by {escaped(pictures)}' if pictures else ' alone'}."
    if leaks.get("clean"):
        yield "None were found. `genevolve data leaks FOLDER` repeats the check."
    else:
        yield _table(("kind", "pairs"), leaks.get("counts", {}).items())


def _costs(costs: Mapping[str, float]) -> Iterator[str]:
    if costs:
        yield "## Costs"
        rows = [(stage, f"{value:.2f}") for stage, value in costs.items()]
        yield _table(("stage", "US dollars"), [*rows, ("all", f"{sum(costs.values()):.2f}")])


def _sources(facts: DatasetFacts) -> Iterator[str]:
    yield "## Licenses"
    yield f"Of this data set: {escaped(facts.licence) if facts.licence else 'none is stated'}."
    if facts.sources:
        rows = [(one.name, one.licence, one.address) for one in facts.sources]
        yield _table(("source", "license", "address"), rows)


def _limits(limits: Sequence[str]) -> Iterator[str]:
    if limits:
        yield "## Known limits"
        yield "\n".join(f"- {escaped(limit, 1000)}" for limit in limits)


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [[escaped(cell) for cell in head], ["---"] * len(head)]
    lines += [[f"{cell:,}" if isinstance(cell, int) else escaped(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
