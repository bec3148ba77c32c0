"""Writing of corpora: the answers of several sources as one folder, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq

from genevolve_ray import __version__
from genevolve_ray.records.images import ImageRef
from genevolve_ray.tools.corpus.questions import AnsweringTool, FrozenCorpusFault, Question
from genevolve_ray.tools.corpus.snapshot import (
    ANSWERS,
    DESCRIPTION,
    FORMAT,
    MAX_ANSWERS,
    MAX_PICTURE,
    ROW_SCHEMA,
    Corpus,
    CorpusDescription,
    CorpusRow,
    CorpusSource,
    picture_path,
    references,
)

_NAMED = 20
"""Conflicting questions that are named."""
_LEVEL = 9

ReadPicture = Callable[[ImageRef], bytes]


@dataclass
class Harvest:
    """Hold the answers of one source: of each question the answer to each request that asked it."""

    sources: Sequence[CorpusSource]
    tools: Mapping[str, AnsweringTool]
    read_picture: ReadPicture
    """Returns a picture's bytes. Raises FileNotFoundError or FrozenCorpusFault where it is missing or damaged."""
    answers: dict[Question, dict[str, CorpusRow]] = field(default_factory=dict)
    """Rows by question and request."""
    left_out: dict[str, str] = field(default_factory=dict)
    conflicts: int = 0
    conflicting: list[str] = field(default_factory=list)

    def add(self, row: CorpusRow) -> None:
        """Add an answer. Of two to one question and request the first that did not fail counts; the other is a conflict."""
        found = self.answers.setdefault(row.question, {})
        known = found.setdefault(row.request, row)
        if known.answer != row.answer:
            self._conflict(row.question)
            # An error may have passed by the next call, as that of a server which was busy.
            if known.answer.failed and not row.answer.failed:
                found[row.request] = row

    def merge(self, row: CorpusRow) -> None:
        """Add an answer of another source, with its calls."""
        known = self.answers.get(row.question, {}).get(row.request)
        self.add(row)
        if known is not None:
            kept = self.answers[row.question][row.request]
            self.answers[row.question][row.request] = replace(kept, asked=known.asked + row.asked)

    def _conflict(self, question: Question) -> None:
        self.conflicts += 1
        if len(self.conflicting) < _NAMED:
            self.conflicting.append(f"{question.tool} {question.arguments}")


def gathered(rows: Iterable[CorpusRow], into: Harvest) -> Harvest:
    """Add the rows of a run to a harvest, in their order."""
    for row in rows:
        into.add(row)
    return into


def harvest_of(corpus: Corpus) -> Harvest:
    """Return the answers of a corpus, to merge it with others."""
    about = corpus.description
    made = Harvest(about.sources, corpus.tools, corpus.picture, left_out=dict(about.left_out))
    made.conflicts, made.conflicting = about.conflicts, list(about.conflicting)
    return gathered(corpus.rows(), made)


def merged(harvests: Sequence[Harvest]) -> Harvest:
    """Return several harvests as one: the first that knows a question of a request answers it, and calls are added up.

    Raises:
        FrozenCorpusFault: for a tool whose calls become questions in two ways, and for a run that comes twice.
    """
    runs = [source.run for harvest in harvests for source in harvest.sources]
    if twice := sorted({run for run in runs if runs.count(run) > 1}):
        raise FrozenCorpusFault(f"run {twice[0]} comes twice among the sources: its calls would be counted twice")
    tools: dict[str, AnsweringTool] = {}
    for tool in (tool for harvest in harvests for tool in harvest.tools.values()):
        known = tools.setdefault(tool.name, tool)
        if known.form is not tool.form:
            raise FrozenCorpusFault(f"tool {tool.name}: one source answers by {known.form}, another by {tool.form}")
    whole = Harvest([source for harvest in harvests for source in harvest.sources], tools, _first_of(harvests))
    for harvest in harvests:
        whole.left_out |= {name: why for name, why in harvest.left_out.items() if name not in whole.left_out}
        whole.conflicts += harvest.conflicts
        whole.conflicting = [*whole.conflicting, *harvest.conflicting][:_NAMED]
        for rows in harvest.answers.values():
            for row in rows.values():
                whole.merge(row)
    return whole


def _first_of(harvests: Sequence[Harvest]) -> ReadPicture:
    def read(ref: ImageRef) -> bytes:
        faults = []
        for harvest in harvests:
            try:
                return harvest.read_picture(ref)
            except (OSError, FrozenCorpusFault) as error:
                faults.append(str(error))
        raise FrozenCorpusFault("; ".join(faults) or f"no picture {ref.sha256}")

    return read


def write_corpus(harvest: Harvest, out: Path) -> CorpusDescription:
    """Write a corpus to a folder that does not exist or is empty. The same harvest gives the same bytes.

    Raises:
        FrozenCorpusFault: for a folder that holds something, a harvest without answers, and a picture that is missing or
            damaged.
    """
    check_target(out)
    rows = sorted(
        (row for found in harvest.answers.values() for row in found.values()),
        key=lambda row: (row.question.tool, row.question.arguments, row.request),
    )
    if not rows:
        raise FrozenCorpusFault("no answers were recorded, so there is nothing to freeze")
    place = out.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        pictures: dict[ImageRef, int] = {}
        columns = [_columns(row, harvest.read_picture, scratch, pictures) for row in rows]
        data = _parquet(columns)
        (scratch / ANSWERS).write_bytes(data)
        described = _described(harvest, rows, data, pictures)
        (scratch / DESCRIPTION).write_bytes(described.encode())
        scratch.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        os.replace(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return described


def check_target(out: Path) -> None:
    """Check that a corpus may be written to a folder. Raises FrozenCorpusFault for one that exists and is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FrozenCorpusFault(f"--out {out}: exists, so it is not overwritten: name another folder")


def _columns(row: CorpusRow, read: ReadPicture, folder: Path, pictures: dict[ImageRef, int]) -> dict[str, object]:
    found = references(row.answer, f"{row.question.tool} {row.question.arguments[:80]}")
    for ref in found:
        if ref not in pictures:
            pictures[ref] = _copy(ref, read, folder / picture_path(ref))
    return {
        "tool": row.question.tool,
        "arguments": row.question.arguments,
        "question": row.question.sha256,
        "request": row.request,
        "kind": row.answer.kind,
        "observation": row.answer.body,
        "pictures": [ref.model_dump() for ref in found],
        "asked": row.asked,
        "run": row.run,
        "step": row.step,
        "at": row.at,
    }


def _copy(ref: ImageRef, read: ReadPicture, target: Path) -> int:
    try:
        data = read(ref)
    except (OSError, FrozenCorpusFault) as error:
        raise FrozenCorpusFault(f"picture {ref.file_name} of an answer cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != ref.sha256 or len(data) > MAX_PICTURE:
        raise FrozenCorpusFault(f"picture {ref.file_name} of an answer is damaged, or larger than {MAX_PICTURE} bytes")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return len(data)


def _parquet(columns: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(columns, schema=ROW_SCHEMA)
    # Readers accept no dictionaries: a small one can unpack to any size.
    pq.write_table(table, buffer, compression="zstd", compression_level=_LEVEL, use_dictionary=False)
    if buffer.tell() > MAX_ANSWERS:
        raise FrozenCorpusFault(f"the answers take {buffer.tell()} bytes, more than {MAX_ANSWERS}: freeze fewer runs")
    return buffer.getvalue()


def _described(
    harvest: Harvest, rows: Sequence[CorpusRow], data: bytes, pictures: Mapping[ImageRef, int]
) -> CorpusDescription:
    times = [row.at for row in rows]
    files = {ref.file_name: size for ref, size in pictures.items()}
    return CorpusDescription(
        format=FORMAT,
        package=__version__,
        recorded_from=_utc(min(times)),
        recorded_to=_utc(max(times)),
        sources=tuple(harvest.sources),
        tools=dict(sorted(_answered(harvest.tools, rows))),
        left_out=dict(sorted(harvest.left_out.items())),
        conflicts=harvest.conflicts,
        conflicting=tuple(harvest.conflicting),
        answers=len(rows),
        questions=len(harvest.answers),
        answers_bytes=len(data),
        answers_sha256=hashlib.sha256(data).hexdigest(),
        pictures=len(files),
        picture_bytes=sum(files.values()),
    )


def _answered(tools: Mapping[str, AnsweringTool], rows: Sequence[CorpusRow]) -> Iterator[tuple[str, AnsweringTool]]:
    """Yield every tool, also one that nobody asked: it stands in the system prompt. Raises FrozenCorpusFault for an unknown one."""
    for row in rows:
        if row.question.tool not in tools:
            raise FrozenCorpusFault(f"there are answers of {row.question.tool}, but no description of the tool")
    yield from tools.items()


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
