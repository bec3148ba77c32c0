"""`genevolve corpus freeze` and `stats`: what the tools of runs answered, as one folder, and what it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from genevolve_ray.agent.published_client import client_calls
from genevolve_ray.bench.jobs.pictures import STORE
from genevolve_ray.commands.build_stages import PICTURES
from genevolve_ray.commands.serve_tools import ServedTools, serve_spec
from genevolve_ray.errors import ToolArgumentError, UserFault
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Trajectory, TurnKind
from genevolve_ray.tools.corpus.questions import AnswerForm, AnsweringTool, Question, canonical
from genevolve_ray.tools.corpus.recording import OBSERVATIONS, digest
from genevolve_ray.tools.corpus.recordings import Recordings, read_recordings
from genevolve_ray.tools.corpus.snapshot import Corpus, CorpusDescription, CorpusRow, CorpusSource, is_corpus
from genevolve_ray.tools.corpus.writing import Harvest, check_target, gathered, harvest_of, merged, write_corpus
from genevolve_ray.tools.frozen import MISSES

_SHOWN = 5
_ID = 12
"""Digits of the name of a source without an id of its own."""
_WIDTH = 110


# --- freeze ---


def freeze_runs(sources: Sequence[Path], out: Path) -> list[str]:
    """Write the answers of runs and of earlier corpora to a folder, and return lines for the user.

    Raises:
        UserFault: for a source that is neither, or has no recorded answers, and for a folder that holds something.
        FrozenCorpusFault: for a damaged corpus among the sources, or a picture of an answer that is missing.
    """
    check_target(out)
    notes: list[str] = []
    harvests = [_harvest(source, notes) for source in sources]
    described = write_corpus(merged(harvests), out)
    return [_summary(described, out), *notes, *_warnings(described)]


def _summary(made: CorpusDescription, out: Path) -> str:
    size = made.answers_bytes + made.picture_bytes
    return (
        f"{made.answers} answers to {made.questions} questions, {made.pictures} pictures ({_bytes(size)}) "
        f"of {len(made.sources)} runs -> {out}"
    )


def _warnings(made: CorpusDescription) -> Iterator[str]:
    for name, why in made.left_out.items():
        yield f"tool {name} is left out: it {why}"
    if made.conflicts:
        yield (
            f"{made.conflicts} answers are left out, because an earlier one to the same question was different: "
            + "; ".join(made.conflicting[:_SHOWN])
        )
    for source in made.sources:
        if source.unrecorded:
            yield (
                f"run {source.name or source.run}: {source.unrecorded} of {source.calls} questions have no recorded answer "
                "(an outage, or a part of the run without recording)"
            )


def _harvest(source: Path, notes: list[str]) -> Harvest:
    if is_corpus(source):
        corpus = Corpus.open(source)
        corpus.check()
        return harvest_of(corpus)
    if not source.is_dir():
        raise UserFault(f"{source}: no such folder: name a run or a corpus")
    folder = Folder(str(source))
    found = _recordings(folder)
    store = RunStore.read(str(source)) if folder.size("run.json") is not None else None
    if not found.rows:
        raise UserFault(_nothing_recorded(source, store))
    if found.damaged:
        notes.append(
            f"{source}: {len(found.damaged)} recorded answers are damaged and left out: "
            + ", ".join(found.damaged[:_SHOWN])
        )
    if store is None:
        names = (STORE, PICTURES, "images")
        images = FilesystemImages(str(source / next((name for name in names if (source / name).is_dir()), "images")))
        # Two jobs may ask the same questions, so the id also has what was answered and when.
        told = [[row.question.sha256, row.request, row.answer.kind, row.answer.body, row.at] for row in found.rows]
        about = CorpusSource(run=digest(told)[:_ID], name=source.resolve().name)
        rows = [replace(row, run=about.run) for row in found.rows]
        return gathered(rows, Harvest([about], found.tools, images.get, left_out=found.left_out))
    calls = _Calls(found.tools)
    for step, trajectory in _trajectories(store):
        calls.add(trajectory, step)
    about = _source(store, calls, found.rows)
    rows = [calls.counted(row, about.run) for row in found.rows]
    return gathered(rows, Harvest([about], found.tools, store.images.get, left_out=found.left_out))


def _recordings(folder: Folder) -> Recordings:
    names = [name for name in folder.entries(OBSERVATIONS, recursive=True) if name.endswith(".json")]
    return read_recordings(
        (name.rpartition("/")[2], folder.get(f"{OBSERVATIONS}/{name}", "recorded answer")) for name in names
    )


def _nothing_recorded(source: Path, store: RunStore | None) -> str:
    tools: dict[str, Any] = {} if store is None else store.config.get("tools") or {}
    if corpus := (tools.get("config") or {}).get("corpus"):
        return f"{source}: its tools answered from the corpus {corpus}, which holds all its answers: name that folder"
    if tools.get("record") is False:
        return f"{source}: its answers were not recorded (tools.record=false)"
    why = "no tool was called, or an earlier version made it" if store is not None else "no run, and no corpus"
    return f"{source}: holds no recorded answers ({OBSERVATIONS}/): {why}"


def _trajectories(store: RunStore) -> Iterator[tuple[int | None, Trajectory]]:
    """Yield the trajectories of a run with their training step, each once: an evaluation is kept under two names."""
    for step in store.committed_steps():
        for group in store.groups(step):
            yield from ((step, trajectory) for trajectory in group.trajectories)
    seen = set[str]()
    for name in store.trajectory_names():
        for trajectory in store.get_trajectories(name):
            said = [trajectory.provenance.split, str(trajectory.key), *(turn.text for turn in trajectory.turns)]
            said += map(str, sorted(set(trajectory.ledger.versions)))
            if (mark := canonical(said)) not in seen:
                seen.add(mark)
                yield None, trajectory


@dataclass
class _Calls:
    """Count the questions of trajectories, by question and request."""

    tools: dict[str, AnsweringTool]
    asked: Counter[tuple[Question, str]] = field(default_factory=Counter)
    first: dict[tuple[Question, str], int] = field(default_factory=dict)
    trajectories: int = 0

    def add(self, trajectory: Trajectory, step: int | None) -> None:
        """Add the calls of a trajectory that were carried out without an outage."""
        self.trajectories += 1
        for turn in trajectory.turns:
            tool = self.tools.get(turn.tool)
            if tool is None or turn.kind is not TurnKind.TOOL_CALL:
                continue
            for question in _asked(tool, turn.arguments, published=trajectory.provenance.answers == "published"):
                key = (question, "" if tool.form is AnswerForm.SKILLS else trajectory.key.request_id)
                self.asked[key] += 1
                if step is not None:
                    self.first.setdefault(key, step)

    def counted(self, row: CorpusRow, run: str) -> CorpusRow:
        """Return a row of a run with the number of its calls and the step of the first."""
        key = row.question, row.request
        return replace(row, asked=self.asked[key], step=self.first.get(key), run=run)


def _asked(tool: AnsweringTool, arguments: dict[str, Any], *, published: bool) -> list[Question]:
    try:
        calls = client_calls(tool.name, arguments) if published else [arguments]
        return [question for call in calls for question in tool.questions(call)]
    except ToolArgumentError:
        return []


def _source(store: RunStore, calls: _Calls, rows: Iterable[CorpusRow]) -> CorpusSource:
    tools = store.config.get("tools") or {}
    recorded = {(row.question, row.request) for row in rows}
    name = Path(store.root).name
    return CorpusSource(
        run=store.info.run_id or name,
        name=name,
        steps=store.last_step,
        trajectories=calls.trajectories,
        calls=calls.asked.total(),
        unrecorded=sum(count for key, count in calls.asked.items() if key not in recorded),
        toolbox=str(tools.get("type", "")),
        settings_sha256=digest(tools),
    )


# --- stats ---


@dataclass
class _ToolCounts:
    """Count the answers of one tool."""

    answers: int = 0
    questions: int = 0
    asked: int = 0
    most: int = 0
    repeated: int = 0
    hits: int = 0
    errors: int = 0
    pictures: int = 0

    def row(self) -> list[str]:
        """Return the cells of a table."""
        return [f"{value:,}" for value in vars(self).values()]


def print_stats(folder: Path, run: Path | None, *, as_json: bool) -> None:
    """Print what a corpus holds, and what it could not answer in a run. Every file is verified.

    Raises:
        FrozenCorpusFault: for a folder that is no corpus, or a damaged one.
    """
    corpus = Corpus.open(folder)
    pictures = corpus.check()
    counts = _counted(corpus)
    missed = [] if run is None else missed_questions(run, corpus)
    if as_json:
        about = corpus.description.model_dump(mode="json", exclude={"tools"})
        about["tools"] = {name: vars(count) for name, count in counts.items()}
        print(json.dumps(about | ({} if run is None else {"misses": missed}), indent=2))
        return
    console = Console(width=None if Console().is_terminal else _WIDTH, highlight=False)
    made = corpus.description
    console.print(f"corpus {folder} ({made.format}), recorded {made.recorded_from} to {made.recorded_to}", markup=False)
    table = Table("tool", *vars(_ToolCounts()))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in counts.items():
        table.add_row(name, *count.row())
    console.print(table)
    console.print(
        f"answers {_bytes(made.answers_bytes)}; {len(pictures)} pictures, {_bytes(made.picture_bytes)}; "
        f"{made.conflicts} conflicting answers left out",
        markup=False,
    )
    for source in made.sources:
        console.print(
            f"from {source.name or source.run} ({source.run}): {source.steps} steps, {source.trajectories} trajectories, "
            f"{source.calls} questions, {source.unrecorded} without a recorded answer; tools {source.toolbox}",
            markup=False,
        )
    for name, why in made.left_out.items():
        console.print(f"left out: {name} {why}", markup=False)
    if run is not None:
        _print_misses(console, run, missed)


def _counted(corpus: Corpus) -> dict[str, _ToolCounts]:
    counts = {name: _ToolCounts() for name in sorted(corpus.tools)}
    files: dict[str, set[str]] = {name: set() for name in counts}
    questions: dict[str, Counter[Question]] = {name: Counter() for name in counts}
    for row in corpus.rows():
        count = counts[row.question.tool]
        count.answers += 1
        count.errors += row.answer.failed
        count.hits += len(row.answer.hits)
        questions[row.question.tool][row.question] += row.asked
        files[row.question.tool] |= {ref.sha256 for ref in row.answer.pictures}
    for name, count in counts.items():
        asked = questions[name]
        count.questions, count.asked, count.pictures = len(asked), asked.total(), len(files[name])
        count.most, count.repeated = max(asked.values(), default=0), sum(times > 1 for times in asked.values())
    return counts


def missed_questions(run: Path, corpus: Corpus) -> list[dict[str, Any]]:
    """Return the questions that a run with frozen tools asked in vain, the most frequent first.

    `asked` counts them in stored trajectories; 0 means that only samples asked that were drawn again, or a validation.

    Raises:
        StoreError: for a run that cannot be read.
    """
    store, calls = RunStore.read(str(run)), _Calls(corpus.tools)
    for step, trajectory in _trajectories(store):
        calls.add(trajectory, step)
    asked: Counter[Question] = Counter()
    for (question, _), count in calls.asked.items():
        asked[question] += count
    folder, found = Folder(str(run)), []
    for name in folder.entries(MISSES, recursive=True):
        if not name.endswith(".json"):
            continue
        try:
            entry = json.loads(folder.get(f"{MISSES}/{name}", "missed question"))
            question = Question(entry["question"]["tool"], entry["question"]["arguments"])
            nearest = entry["answer"]["nearest"]
        except (KeyError, TypeError, ValueError, RecursionError):
            continue  # Cut off by a full disk; the counts of the metrics do not depend on it.
        found.append(
            {"tool": question.tool, "arguments": question.arguments, "asked": asked[question], "nearest": nearest}
        )
    return sorted(found, key=lambda one: (-one["asked"], one["tool"], one["arguments"]))


def _print_misses(console: Console, run: Path, missed: list[dict[str, Any]]) -> None:
    console.print(f"{len(missed)} questions of {run} have no recorded answer", markup=False)
    if not missed:
        return
    table = Table("asked", "tool", "arguments", "answered like")
    for one in missed:
        table.add_row(*(shown(one[key]) for key in ("asked", "tool", "arguments", "nearest")))
    console.print(table, markup=False)


def serve_corpus(folder: Path, on_miss: str, served: ServedTools) -> None:
    """Serve the tools of a corpus until the client leaves, or until SIGTERM or Ctrl-C. Raises UserFault."""
    config = {"corpus": str(folder), "on_miss": on_miss}
    serve_spec(ToolsSpec(type="frozen", config=config, record=False), served)


def _bytes(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1 << 20 else f"{count / 1024:,.1f} KiB"
