"""A corpus as a folder: `corpus.json`, `answers.parquet` and `pictures/`, verified when it is opened.

`corpus.json` is written last and holds the hash of `answers.parquet`. A picture is a file named by the hash of its
content, `pictures/ab/ab...png`. Nothing in a folder is trusted: sizes are bounded before a file is read, and a name that
leads elsewhere is refused.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.arrow_verdicts import IMAGE_REF, required
from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.tools.corpus.cards import check_card
from genevolve_ray.tools.corpus.questions import (
    AnswerForm,
    AnsweringTool,
    FrozenCorpusFault,
    Question,
    RecordedAnswer,
    check_reference,
    pictures_of,
)

FORMAT = "corpus/1"
DESCRIPTION, ANSWERS, PICTURES = "corpus.json", "answers.parquet", "pictures"
MAX_DESCRIPTION = 16 << 20
"""Largest `corpus.json`, bytes."""
MAX_ANSWERS = 2 << 30
"""Largest `answers.parquet`, and the largest size to which it may unpack, bytes."""
MAX_PICTURE = 64 << 20
"""Largest file of a picture, bytes."""
_ENCODINGS = frozenset({"PLAIN", "RLE"})
"""Encodings of the columns: every value takes its bytes, apart from nulls."""
_NULL_BYTES = 8
"""Bytes of memory for the place of a value."""
_BATCH = 4096
"""Rows that are unpacked at a time."""

ROW_SCHEMA = pa.schema(
    [
        required("tool", pa.string()),
        required("arguments", pa.string()),
        required("question", pa.string()),
        required("request", pa.string()),
        required("kind", pa.string()),
        required("observation", pa.large_string()),
        required("pictures", pa.list_(IMAGE_REF)),
        required("asked", pa.int64()),
        required("run", pa.string()),
        pa.field("step", pa.int64()),
        required("at", pa.float64()),
    ],
    metadata={b"genevolve_ray.schema": FORMAT.encode()},
)
"""One row per question and request, ordered by tool, arguments and request. `question` is the hash of tool and arguments.
`request` asked it; it is empty in an answer to everybody, such as the text of a skill. `asked` counts the calls in stored
trajectories; `run` and `step` (null: in no training step) tell who asked first, and `at` when, in seconds since the
epoch."""


@dataclass(frozen=True)
class CorpusRow:
    """Hold one answer of a corpus."""

    question: Question
    answer: RecordedAnswer
    request: str = ""
    asked: int = 0
    run: str = ""
    step: int | None = None
    at: float = 0.0


class CorpusSource(Record):
    """Describe a run whose answers a corpus holds."""

    run: str
    """Its id, or the name of its folder where it has none."""
    name: str = ""
    steps: int = 0
    trajectories: int = 0
    calls: int = 0
    """Questions in stored trajectories."""
    unrecorded: int = 0
    """Those of them without a recorded answer: they met an outage, or the run is older than recording."""
    toolbox: str = ""
    settings_sha256: str = ""
    """Hash of the settings of the toolbox, without secrets."""


class CorpusDescription(Record):
    """Describe a corpus: the content of `corpus.json`."""

    format: Literal["corpus/1"]
    package: str
    recorded_from: str
    """Time of the first answer, in UTC."""
    recorded_to: str
    """Time of the last answer, in UTC."""
    sources: tuple[CorpusSource, ...]
    tools: dict[str, AnsweringTool]
    left_out: dict[str, str] = {}
    """Tools that a corpus cannot hold, with the reason."""
    conflicts: int = 0
    """Answers that were left out because another one to the same question and request counts."""
    conflicting: tuple[str, ...] = ()
    """The first questions of these."""
    answers: int
    questions: int
    answers_bytes: int = Field(ge=0)
    answers_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    pictures: int
    picture_bytes: int

    def encode(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


class Corpus:
    """Answer questions from a corpus folder."""

    def __init__(self, folder: Path, description: CorpusDescription, table: pa.Table) -> None:
        """Use `Corpus.open`."""
        self.folder, self.description, self._table = folder, description, table
        self.tools = dict(description.tools)
        tools, arguments, requests = (table.column(name).to_pylist() for name in ("tool", "arguments", "request"))
        keys = zip(map(Question, tools, arguments), requests, strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._everybody: dict[Question, int] = {}
        """Rows that answer a question of any request."""

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Open a corpus: its answers are verified against their hash, and every row against its question.

        Pictures are verified when they are read, and all at once by `check`.

        Raises:
            FrozenCorpusFault: naming the file that is missing, damaged, too large, or of another version.
        """
        described = _bounded(folder / DESCRIPTION, MAX_DESCRIPTION)
        try:
            description = CorpusDescription.model_validate_json(described)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise FrozenCorpusFault(f"{folder / DESCRIPTION} is damaged: {where}: {first['msg']}") from error
        for name, tool in description.tools.items():
            try:
                check_card(name, tool)
            except FrozenCorpusFault as fault:
                raise FrozenCorpusFault(f"{folder / DESCRIPTION}: {fault}") from fault
        path = folder / ANSWERS
        data = _bounded(path, MAX_ANSWERS)
        if hashlib.sha256(data).hexdigest() != description.answers_sha256:
            raise FrozenCorpusFault(
                f"{path} is damaged: its {len(data)} bytes do not have the hash that {DESCRIPTION} names"
            )
        corpus = cls(folder, description, _table(path, data))
        corpus._check_rows(path)
        corpus._agree()
        return corpus

    def __len__(self) -> int:
        """Return the number of answers."""
        return int(self._table.num_rows)

    def _check_rows(self, path: Path) -> None:
        hashes = self._table.column("question").to_pylist()
        if len(self._rows) != len(self) or len(self) != self.description.answers:
            raise FrozenCorpusFault(
                f"{path} is damaged: {len(self)} rows with {len(self._rows)} questions, {self.description.answers} named"
            )
        for (question, _), row in self._rows.items():
            if question.tool not in self.tools:
                raise FrozenCorpusFault(
                    f"{path}: row {row} answers for {question.tool[:60]!r}, which {DESCRIPTION} does not name"
                )
            if question.sha256 != hashes[row]:
                raise FrozenCorpusFault(f"{path} is damaged: row {row} does not have the hash of its question")

    def _agree(self) -> None:
        """Find the answers to everybody: those named so, and those in which all requests that asked and got one agree.

        Where requests had different answers, as in the worlds of the atlas, one that never asked has none: the answer of
        another world would be no fact of its own.
        """
        asked: dict[Question, list[int]] = {}
        for (question, request), row in self._rows.items():
            asked.setdefault(question, []).append(row)
            if not request:
                self._everybody[question] = row
        for question, rows in asked.items():
            if question in self._everybody or len(rows) == 1 or self._alike(rows):
                self._everybody.setdefault(question, rows[0])
            elif self._alike(good := [row for row in rows if not self._failed(row)]):
                self._everybody[question] = good[0]

    def _alike(self, rows: Sequence[int]) -> bool:
        return len({self._answer(row) for row in rows}) == 1

    def _failed(self, row: int) -> bool:
        try:
            return self._answer(row).failed
        except FrozenCorpusFault as fault:
            raise FrozenCorpusFault(f"{self.folder / ANSWERS}: row {row} is damaged: {fault}") from fault

    def find(self, question: Question, request: str = "") -> RecordedAnswer | None:
        """Return the answer to a question: that to this request, or else that to everybody; None where there is none."""
        row = self._rows.get((question, request), self._everybody.get(question))
        return None if row is None else self._answer(row)

    def _answer(self, row: int) -> RecordedAnswer:
        return RecordedAnswer(self._table["kind"][row].as_py(), self._table["observation"][row].as_py())

    def questions(self, tool: str) -> list[Question]:
        """Return the questions to a tool that have an answer to everybody, in the order of their arguments."""
        return [
            question
            for question in dict.fromkeys(question for question, _ in self._rows)
            if question.tool == tool and question in self._everybody
        ]

    def rows(self) -> Iterator[CorpusRow]:
        """Yield every row."""
        plain = self._table.select(["asked", "run", "step", "at"]).to_pylist()
        for (question, request), row in self._rows.items():
            yield CorpusRow(question, self._answer(row), request, **plain[row])

    def picture(self, ref: ImageRef) -> bytes:
        """Return the bytes of a picture. Raises FrozenCorpusFault naming a file that is missing, too large or damaged."""
        check_reference(ref)
        path = self.folder / picture_path(ref)
        data = _bounded(path, MAX_PICTURE)
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise FrozenCorpusFault(f"{path} is damaged: its {len(data)} bytes do not match its name")
        return data

    def check(self) -> dict[ImageRef, int]:
        """Read every answer and every picture, and return the size of each picture in bytes.

        Raises:
            FrozenCorpusFault: naming the first row or file that is damaged.
        """
        seen: dict[ImageRef, int] = {}
        listed = self._table.column("pictures").to_pylist()
        for (question, _), row in self._rows.items():
            where, pictures = f"{self.folder / ANSWERS}: row {row}", listed[row]
            found = references(self._answer(row), where, self.tools[question.tool])
            if [ref.model_dump() for ref in found] != pictures:
                raise FrozenCorpusFault(f"{where} is damaged: its pictures are not those of its observation")
            for ref in found:
                if ref not in seen:
                    seen[ref] = len(self.picture(ref))
        self._check_skills()
        return seen

    def _check_skills(self) -> None:
        for name, tool in self.tools.items():
            if tool.form is AnswerForm.SKILLS and not self.questions(name):
                raise FrozenCorpusFault(f"{self.folder}: holds no skill for {name}")


def references(answer: RecordedAnswer, where: str, tool: AnsweringTool | None = None) -> Sequence[ImageRef]:
    """Return the pictures of an answer, of a tool where it is known.

    Raises:
        FrozenCorpusFault: beginning with `where`, for an answer that cannot be read, or of another form than the tool's.
    """
    try:
        return pictures_of(answer.observation() if tool is None else tool.observation(answer))
    except ToolArgumentError:
        return []
    except FrozenCorpusFault as fault:
        raise FrozenCorpusFault(f"{where} is damaged: {fault}") from fault


def picture_path(ref: ImageRef) -> str:
    """Return the path of a picture inside a corpus."""
    return f"{PICTURES}/{ref.sha256[:2]}/{ref.file_name}"


def is_corpus(folder: Path) -> bool:
    """Return whether a folder holds a corpus."""
    return (folder / DESCRIPTION).is_file()


def _bounded(path: Path, most: int) -> bytes:
    """Return the content of a plain file of at most `most` bytes. Raises FrozenCorpusFault."""
    try:
        if not path.is_file():
            raise FrozenCorpusFault(f"{path} is missing, or no plain file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise FrozenCorpusFault(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise FrozenCorpusFault(f"{path} is larger than {most} bytes")
    return data


def _table(path: Path, data: bytes) -> pa.Table:
    """Return the answers. Raises FrozenCorpusFault before it unpacks to more than `MAX_ANSWERS`."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        for column in (group.column(place) for group in groups for place in range(group.num_columns)):
            if column.has_dictionary_page or not _ENCODINGS.issuperset(column.encodings):
                raise FrozenCorpusFault(
                    f"{path} has columns with a dictionary or of the encodings {', '.join(column.encodings)}, which could "
                    f"unpack to any size: only {' and '.join(sorted(_ENCODINGS))} are read"
                )
        if (unpacked := sum(map(_unpacked, groups))) > MAX_ANSWERS:
            raise FrozenCorpusFault(f"{path} unpacks to {unpacked} bytes, more than {MAX_ANSWERS}")
        if not file.schema_arrow.equals(ROW_SCHEMA):
            raise FrozenCorpusFault(f"{path} is damaged: its columns are not those of {FORMAT}")
        table = pa.Table.from_batches(_within(path, file.iter_batches(_BATCH, use_threads=False)), ROW_SCHEMA)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise FrozenCorpusFault(f"{path} is damaged: {error}") from error
    return table


def _unpacked(group: pq.RowGroupMetaData) -> int:
    """Return the bytes to which a row group unpacks, as it says: nulls take no byte in the file, and some in memory."""
    columns = (group.column(place) for place in range(group.num_columns))
    return int(group.total_byte_size) + sum(_NULL_BYTES * int(column.num_values) for column in columns)


def _within(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches until they exceed `MAX_ANSWERS`: the sizes in a file's footer need not be true."""
    read = 0
    for batch in batches:
        read += batch.nbytes
        if read > MAX_ANSWERS:
            raise FrozenCorpusFault(f"{path} unpacks to more than {MAX_ANSWERS} bytes")
        yield batch
