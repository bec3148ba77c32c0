"""Outputs of jobs and data builds: what each stage has done, and its rows with their pictures."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.files import published_rows
from genevolve_ray.records.published.names import locate_first
from genevolve_ray.records.published.rejections import DataError, RejectionReport, RowFault
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import WEIGHTS
from genevolve_ray.viewer.site.entries import PAGE_SIZE
from genevolve_ray.viewer.site.pages import PageMissing, PageRequest, SitePage
from genevolve_ray.viewer.site.pictures import MAX_BYTES
from genevolve_ray.viewer.site.sources import SourceKind, ViewSource
from genevolve_ray.viewer.site.watching import FolderListing, LineCounts

JOB_ENDING = ".job.json"
_RESULTS = ("results_eval.json", "results.json")
"""Files of rows, the later stage first."""
_SUMMARY, _STAGES, _DATASET = "summary.json", "stages", "dataset"
_DEPTH = 2
"""Folders deep at which jobs may lie, as benchmarks have them."""
_PICTURES = 4096
"""Pictures of rows that keep their addresses: those of the rows that were listed last."""
_LONGEST_JSON = 8 << 20
_EXCERPT = 600


@dataclass(frozen=True)
class OutputPart:
    """Hold a file of rows: the name that pages show, the file, and the folders in which its pictures may be."""

    name: str
    file: Path
    roots: tuple[Path, ...]


@dataclass(frozen=True)
class OutputRow:
    """Hold a row as a list shows it; `picture` and `truth` are keys of `OutputSource.picture`, "" where there is none."""

    id: str
    prompt: str
    program: str
    status: str
    failed: bool
    scores: tuple[tuple[str, float], ...]
    rationale: str
    picture: str
    truth: str


class OutputSource(ViewSource):
    """Represent a folder of result files on a local disk."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        super().__init__(folder.resolve().name, str(folder))
        self.folder = folder.resolve()
        self.lines = LineCounts()
        self._seen: object = None
        self._revision = 0
        self._pictures: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def revision(self) -> int:
        """Grows when a file has changed."""
        return self._revision

    def refresh(self) -> bool:
        """Look at sizes and times of the files."""
        seen = {str(path): _size_and_time(path) for path in self.watched()}
        if seen != self._seen:
            self._seen = seen
            self._revision += 1
        return False

    @abstractmethod
    def watched(self) -> list[Path]:
        """Return the files that pages are made from."""

    @abstractmethod
    def parts(self) -> list[OutputPart]:
        """Return the files of rows."""

    def register(self, path: Path) -> str:
        """Return the key under which a picture of the folder can be asked for."""
        told = f"{path}?{_size_and_time(path)}"
        key = hashlib.sha256(told.encode(errors="replace")).hexdigest()
        with self._lock:
            self._pictures[key] = path
            self._pictures.move_to_end(key)
            while len(self._pictures) > _PICTURES:
                self._pictures.popitem(last=False)
        return key

    def picture(self, sha256: str) -> bytes:
        """Return a picture of a row that was listed."""
        with self._lock:
            path = self._pictures.get(sha256)
        if path is None or not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise FileNotFoundError(f"{self.name} has no such picture")
        return path.read_bytes()


class JobSource(OutputSource):
    """Represent the output of a job, or of several beside one another, as `genevolve bench` writes them."""

    kind = SourceKind.JOB

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Return whether a folder, or one inside it, holds the settings of a job."""
        return any(_job_files(FolderListing(folder, _DEPTH)))

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        super().__init__(folder)
        self._listing = FolderListing(self.folder, _DEPTH)

    def watched(self) -> list[Path]:
        """Return settings, results, journals and summaries."""
        return sorted(
            folder / name
            for folder, names in self._listing.folders()
            if folder == self.folder or any(name.endswith(JOB_ENDING) for name in names)
            for name in names
        )

    def settings(self) -> list[Path]:
        """Return the settings of the stages."""
        return list(_job_files(self._listing))

    def parts(self) -> list[OutputPart]:
        """Return the results of each stage."""
        found = []
        for folder in sorted({path.parent for path in self.settings()}):
            file = next((folder / name for name in _RESULTS if (folder / name).is_file()), None)
            if file is not None:
                name = "results" if folder == self.folder else folder.relative_to(self.folder).as_posix()
                found.append(OutputPart(name, file, (folder, self.folder)))
        return found


class BuildSource(OutputSource):
    """Represent the folder of a data build."""

    kind = SourceKind.BUILD

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Return whether a folder is one of a data build, going or done."""
        return (folder / _STAGES).is_dir() or "yields" in read_object(folder / _SUMMARY)

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        super().__init__(folder)
        self._listing = FolderListing(self.folder / _STAGES, 1)

    def watched(self) -> list[Path]:
        """Return the summary, and the journals of the stages."""
        return [self.folder / _SUMMARY, *self.journals()]

    def journals(self) -> list[Path]:
        """Return the journals of the stages."""
        return [
            folder / name
            for folder, names in self._listing.folders()
            if folder != self.folder / _STAGES
            for name in names
            if name.endswith(".jsonl")
        ]

    def parts(self) -> list[OutputPart]:
        """Return the parts of the data set."""
        files = sorted((self.folder / _DATASET).glob("*/*.jsonl"))
        return [OutputPart(f"{f.parent.name}/{f.stem}", f, (f.parent, self.folder / _DATASET)) for f in files]


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none that can be read within bounds."""
    try:
        if path.stat().st_size > _LONGEST_JSON:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def build_job(request: PageRequest) -> dict[str, Any]:
    """Return what the overview of a job's output shows."""
    source = request.source
    assert isinstance(source, JobSource)
    stages = []
    for path in source.settings():
        where = "" if path.parent == source.folder else path.parent.relative_to(source.folder).as_posix()
        journal = path.parent / "results.jsonl"
        stages.append(
            {
                "name": path.name.removesuffix(JOB_ENDING),
                "folder": where,
                "settings": _leaves(read_object(path)),
                "journal": source.lines.count(journal) if journal.is_file() else None,
                "summary": _leaves(read_object(path.parent / _SUMMARY)),
            }
        )
    return {"title": source.name, "stages": stages, "parts": source.parts()}


def build_build(request: PageRequest) -> dict[str, Any]:
    """Return what the overview of a data build shows."""
    source = request.source
    assert isinstance(source, BuildSource)
    summary = read_object(source.folder / _SUMMARY)
    journals: dict[str, int] = {}
    for path in source.journals():
        stage = path.parent.name.rpartition("-")[0] or path.parent.name
        journals[stage] = journals.get(stage, 0) + source.lines.count(path)
    return {
        "title": source.name,
        "finished": bool(summary),
        "yields": [(str(k), _whole(v, "in"), _whole(v, "out")) for k, v in _items(summary, "yields")],
        "marginals": [(str(k), _counts(v)) for k, v in _items(summary, "marginals")],
        "parts": [(str(k), _whole(v, "rows"), _whole(v, "pictures")) for k, v in _items(summary, "parts")],
        "facts": _leaves(
            {k: summary.get(k) for k in ("name", "costs", "provenance", "output_hash", "package") if k in summary}
        ),
        "clean": summary["leaks"].get("clean") if isinstance(summary.get("leaks"), Mapping) else None,
        "journals": sorted(journals.items()),
        "readable": source.parts(),
    }


def build_rows(request: PageRequest) -> dict[str, Any]:
    """Return what a page of rows shows: those of the part that the query names, by default the first."""
    source = request.source
    assert isinstance(source, OutputSource)
    parts = source.parts()
    asked = request.query.get("part", "")
    part = next((p for p in parts if p.name == asked), None) if asked else next(iter(parts), None)
    if part is None:
        raise PageMissing("there are no rows of this name" if asked else "no stage has written its rows yet")
    first = (request.number - 1) * PAGE_SIZE
    report = RejectionReport()
    try:
        found = list(islice(published_rows(part.file, report), first, first + PAGE_SIZE + 1))
    except DataError as error:
        raise PageMissing(str(error)) from error
    return {
        "title": f"Rows: {part.name}",
        "part": part.name,
        "parts": parts,
        "rows": [read_row(source, part, raw.values) for raw in found[:PAGE_SIZE]],
        "number": request.number,
        "first": first + 1,
        "more": len(found) > PAGE_SIZE,
    }


_OUTPUTS = frozenset({SourceKind.JOB, SourceKind.BUILD})
JOB = SitePage("overview", "job.html.j2", build_job, label="Overview", kinds=frozenset({SourceKind.JOB}))
BUILD = SitePage("overview", "build.html.j2", build_build, label="Overview", kinds=frozenset({SourceKind.BUILD}))
ROWS = SitePage("rows", "rows.html.j2", build_rows, label="Rows", kinds=_OUTPUTS)


def read_row(source: OutputSource, part: OutputPart, values: Mapping[str, Any]) -> OutputRow:
    """Return a row of any stage, as far as it can be read."""
    try:
        row = EvaluatedRow.read(values)
    except RowFault as fault:
        said = _spoken(values)
        return OutputRow(str(values.get("id", "")), said, "", "" if said else str(fault), not said, (), "", "", "")
    found = row.scores
    scores = () if found is None else tuple((n, v) for n in WEIGHTS if (v := getattr(found, n)) is not None)
    judged, rendered = "eval_success" in values, "image_status" in values or "success" in values
    status = row.failure if judged else row.status if rendered else str(values.get("termination") or "")
    failed = bool(row.failure) if judged else rendered and not row.success
    program = values.get("gen_prompt")
    return OutputRow(
        id=row.id,
        prompt=row.prompt,
        program=program[:_EXCERPT] if isinstance(program, str) else "",
        status="" if status == "ok" else status[:_EXCERPT],
        failed=failed,
        scores=scores,
        rationale=row.rationale[:_EXCERPT],
        picture=_picture(source, row.images, part.roots) if row.success or not rendered else "",
        truth=_picture(source, row.truths, part.roots),
    )


def _picture(source: OutputSource, paths: tuple[str, ...], roots: tuple[Path, ...]) -> str:
    if not paths:
        return ""
    try:
        found = locate_first(paths, roots, "picture").resolve()
    except (RowFault, OSError):
        return ""
    return source.register(found) if found.is_relative_to(source.folder) else ""


def _spoken(values: Mapping[str, Any]) -> str:
    """Return the request of a row that holds a conversation, "" for another row."""
    messages = values.get("messages")
    said = (
        [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
        if isinstance(messages, list)
        else []
    )
    return str(said[0].get("content", ""))[:_EXCERPT] if said else ""


def _job_files(listing: FolderListing) -> Iterator[Path]:
    """Yield the settings of jobs, the outer folders first."""
    return (folder / name for folder, names in listing.folders() for name in names if name.endswith(JOB_ENDING))


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _leaves(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, value), at most 200 of them."""
    if isinstance(values, Mapping):
        return [leaf for k, v in values.items() for leaf in _leaves(v, f"{name}.{k}".lstrip("."))][:200]
    text = f"{values:.4g}" if isinstance(values, float) else str(values)
    return [] if values is None or values == "" else [(name, text[:_EXCERPT])]


def _items(summary: Mapping[str, Any], key: str) -> list[tuple[Any, Any]]:
    found = summary.get(key)
    return list(found.items()) if isinstance(found, Mapping) else []


def _whole(values: Any, key: str) -> int:
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, int) else 0


def _counts(values: Any) -> list[tuple[str, int]]:
    pairs = [(str(k), v) for k, v in values.items() if isinstance(v, int)] if isinstance(values, Mapping) else []
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
