"""Exclusion of held-out requests from training: rows with the same request as a bench row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.aliases import PROMPT_NAMES, texts, under
from genevolve_ray.records.published.rejections import Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.requests import PublishedRequest, pool_index, request_key
from genevolve_ray.records.published.rows import mapping, raw_rows


class Exclusion:
    """Exclude requests from training, by their index in the prompt pool and by their text.

    A row is excluded by its `prompt_pool_index` where both sides have one. It is excluded by the hash of its request in
    any case: a request that was copied under another index is a leak as well.
    """

    def __init__(self, keys: Iterable[str] = (), indices: Iterable[int] = ()) -> None:
        """Exclude requests by hash (see `request_key`) and by pool index."""
        self.keys, self.indices = frozenset(keys), frozenset(indices)

    def __or__(self, other: Exclusion) -> Exclusion:
        """Exclude the requests that either side excludes."""
        return Exclusion(self.keys | other.keys, self.indices | other.indices)

    def fault(self, row: PublishedRequest) -> RowFault | None:
        """Return why a row is excluded, None when it is not."""
        if row.pool_index is not None and row.pool_index in self.indices:
            # Different pools with the same numbering are visible here as different texts.
            same = "same text" if row.key in self.keys else "another text"
            return RowFault(RejectionReason.HELD_OUT_INDEX, f"{row.id}: prompt_pool_index {row.pool_index}, {same}")
        return RowFault(RejectionReason.HELD_OUT_REQUEST, row.id) if row.key in self.keys else None

    def apply(self, rows: Iterable[PublishedRequest], report: RejectionReport) -> Iterator[PublishedRequest]:
        """Yield the rows that are not excluded; the report counts the others by reason."""
        for row in rows:
            fault = self.fault(row)
            if fault is None:
                yield row
            else:
                report.reject(Rejection(str(row.source), row.number, fault.reason, fault.detail))


def read_exclusion(paths: Iterable[Path], report: RejectionReport) -> Exclusion:
    """Return the requests of bench files as an exclusion.

    Only text and pool index are read, so that a row that is unusable for evaluation still excludes its request from
    training. The report counts rows that have neither.

    Raises:
        DataError: for a file that is missing or broken.
    """
    keys: set[str] = set()
    indices: set[int] = set()
    for row in (row for path in paths for row in raw_rows(path, report)):
        found, index = _texts(row.values), _index(row.values)
        keys.update(map(request_key, found))
        if index is not None:
            indices.add(index)
        if not found and index is None:
            report.reject(
                row.rejection(RowFault(RejectionReason.MISSING_REQUEST, "neither a request nor a pool index"))
            )
    return Exclusion(keys, indices)


def _texts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts under every name of a request: which of them was the request is another tool's decision."""
    try:
        return texts(under(values, PROMPT_NAMES))
    except RowFault:
        return ()


def _index(values: Mapping[str, Any]) -> int | None:
    try:
        return pool_index(values, *(mapping(values.get(name), name) for name in ("meta", "extra_info")))
    except RowFault:
        return None
