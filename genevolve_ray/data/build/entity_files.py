"""Files of entities: a name a line, CSV, JSON lines, a JSON array, Parquet, or the JSON result of a SPARQL query.

The result of a query is a file that the user saved: nothing is asked over the network here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genevolve_ray.data.build.entities import make_entity
from genevolve_ray.data.build.rows import NamedEntity
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.rows import raw_rows, text_of
from genevolve_ray.records.strict_text import unique_keys

MAX_RESULT_BYTES = 256 << 20
"""Largest result of a query, which is read as a whole."""
_NAMES: dict[str, tuple[str, ...]] = {
    "name": ("name", "itemLabel", "label", "title"),
    "kind": ("kind", "kindLabel", "type", "typeLabel"),
    "popularity": ("popularity", "sitelinks", "views", "links"),
    "license": ("license", "licence"),
    "source": ("source", "url", "item"),
}
"""Columns of each field of an entity, in order of preference. Those of Wikidata's query service are among them."""
Found = tuple[int, Mapping[str, Any]]
"""The number of a row or line, from 1, and its values."""


def read_entities(
    path: Path, report: RejectionReport, *, kind: str = "", license: str = "", source: str = ""
) -> list[NamedEntity]:
    """Return the entities of a file, in order. A row that is none is added to the report and left out.

    Args:
        path: the suffix tells the form: `.txt` one name a line, `.csv` and `.tsv` with a header; all others are JSON
            or Parquet.
        report: receives rows without a usable name or popularity.
        kind: of entities whose row states none.
        license: of entities whose row states none.
        source: of entities whose row states none.

    Raises:
        DataError: for a missing or broken file.
    """
    given = {"kind": kind, "license": license, "source": source}
    suffix, entities = path.suffix.lower(), []
    if suffix == ".txt":
        rows = _counted(_lines(path), report)
    elif suffix in (".csv", ".tsv"):
        rows = _counted(_csv_rows(path), report)
    elif (bindings := _bindings(path)) is not None:
        rows = _counted(bindings, report)
    else:
        rows = ((row.number, row.values) for row in raw_rows(path, report))  # The reader counts its rows itself.
    for number, values in rows:
        try:
            entities.append(_entity(values, given))
        except RowFault as fault:
            report.reject(Rejection(str(path), number, fault.reason, fault.detail))
        except ValueError as error:
            report.reject(Rejection(str(path), number, RejectionReason.BAD_FIELD, str(error)))
    return entities


def _counted(rows: Iterator[Found], report: RejectionReport) -> Iterator[Found]:
    for row in rows:
        report.see()
        yield row


def _lines(path: Path) -> Iterator[Found]:
    for number, line in enumerate(_whole(path).splitlines(), start=1):
        if line.strip():
            yield number, {"name": line}


def _csv_rows(path: Path) -> Iterator[Found]:
    # A field in quotation marks may hold line breaks.
    reader = csv.DictReader(
        io.StringIO(_whole(path), newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    try:
        for values in reader:
            yield reader.line_num, {name: value for name, value in values.items() if name is not None}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error


def _bindings(path: Path) -> Iterator[Found] | None:
    """Return the rows of the result of a query (SPARQL 1.1 Query Results JSON Format), None for another file."""
    if path.suffix.lower() not in (".json", ".srj"):
        return None
    try:
        found = json.loads(_whole(path), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() == ".srj":
            raise DataError(f"{path}: is not JSON: {error}") from error
        return None  # JSON lines, or broken: the reader of rows says which.
    results = found.get("results") if isinstance(found, dict) else None
    listed = results.get("bindings") if isinstance(results, dict) else None
    if not isinstance(listed, list):
        if path.suffix.lower() == ".srj":
            raise DataError(f"{path}: has no results.bindings")
        return None
    return ((number, _plain(binding)) for number, binding in enumerate(listed, start=1))


def _plain(binding: object) -> dict[str, Any]:
    """Return the values of one binding, by variable."""
    if not isinstance(binding, dict):
        return {}
    return {name: term.get("value") for name, term in binding.items() if isinstance(term, dict)}


def _whole(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_RESULT_BYTES:
            raise DataError(f"{path}: has {size} bytes, at most {MAX_RESULT_BYTES} are read")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _entity(values: Mapping[str, Any], given: Mapping[str, str]) -> NamedEntity:
    def under(field: str) -> Any:
        return next((values[name] for name in _NAMES[field] if values.get(name) not in (None, "")), None)

    texts = {field: text_of(under(field), field).strip() or given[field] for field in ("kind", "license", "source")}
    name = text_of(under("name"), "name")
    if not name.strip():
        raise RowFault(RejectionReason.BAD_FIELD, f"no name under {', '.join(_NAMES['name'])}")
    return make_entity(name, popularity=_number(under("popularity")), **texts)


def _number(value: object) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"a {type(value).__name__}")
        return float(value)
    except ValueError as error:
        raise RowFault(RejectionReason.BAD_FIELD, f"popularity is {str(value)[:40]!r}, not a number") from error
