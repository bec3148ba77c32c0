"""`genevolve small setup` and `parts`: run the stages of the setup on a screen, and list what it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from genevolve_ray.records.secrets import shown
from genevolve_ray.small.parts import PARTS, part_states
from genevolve_ray.small.preset import own_preset
from genevolve_ray.small.setup import setup_stages
from genevolve_ray.small.stages import PRESET_FOLDER, MadeStage, SetupStage, StagedSetup, read_manifest

_EVERY_SECONDS = 15.0
"""Seconds between two lines where the output is no terminal."""
_MIB = 1 << 20
_WIDTH = 150


class SetupProgress:
    """Show a setup: a bar for the stage that works, a line for each that has ended. A context manager."""

    def __init__(self, console: Console) -> None:
        """Show on a console; without a terminal, a line every few seconds."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._console, self._last = console, monotonic()
        self._stage = ""

    def __enter__(self) -> SetupProgress:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the display."""
        self._bar.stop()

    def begin(self, stage: SetupStage, why: str) -> None:
        """Show that a stage begins, and why it is not kept."""
        self._stage, self._last = stage.name, monotonic()
        self._say(f"{stage.name}: {stage.title} ({why})")
        self._task = self._bar.add_task(escape(stage.name), total=None)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the stage."""
        if self._task is not None:
            self._bar.update(self._task, description=escape(f"{self._stage}: {what}"), completed=done, total=total)
        if not self._console.is_terminal and monotonic() - self._last >= _EVERY_SECONDS:
            self._last = monotonic()
            self._say(f"{self._stage}: {what} {done}/{total}")

    def end(self, stage: SetupStage, made: MadeStage) -> None:
        """Show a finished stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._say(f"{stage.name}: done in {made.seconds:.0f} s, {_mib(made.bytes)}")

    def _say(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def setup_run(out: Path, names: Sequence[str], *, from_nothing: bool | None, check: bool) -> None:
    """Run the stages of a setup that are missing, changed or damaged, and print what there is and what to do next.

    Args:
        out: the folder of the setup.
        names: only these stages, with those that they need; none: every stage.
        from_nothing: train instead of taking the weights of the package; None: as the setup was begun.
        check: compare every file with its hash.

    Raises:
        PartFault: for a part that is not installed, or whose files differ.
        SetupFault, StoreError: as `StagedSetup.run`.
    """
    chosen = read_manifest(out).from_nothing if from_nothing is None else from_nothing
    staged = StagedSetup(setup_stages(from_nothing=chosen), out, from_nothing=chosen)
    wanted = staged.wanted(names)
    console = _console()
    with SetupProgress(console) as screen:
        made = staged.run(screen, names, check=check)
    console.print(_stage_table(wanted, staged, made))
    checked = "every file has its recorded hash" if check else "sizes compared; --check compares hashes"
    every = [stage for stage in wanted if not stage.always]
    console.print(f"{len(made)} of {len(every)} stages made, the others kept ({checked})", highlight=False)
    if not all(name in staged.manifest.stages for name in staged.stages):
        console.print(f"next: genevolve small setup{_option(out)}", highlight=False, markup=False)
        return
    preset = "small"
    if out != PRESET_FOLDER:
        own = own_preset(out)
        preset = str(own.path)
        if not own.current:
            note = (
                f"{own.path} differs from what this setup would write, and is kept: remove it to have it written anew"
            )
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    for command in (f"genevolve doctor {preset}", f"genevolve demo {preset}"):
        console.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


def _option(out: Path) -> str:
    return "" if out == PRESET_FOLDER else f" --out {out}"


def _stage_table(stages: Iterable[SetupStage], staged: StagedSetup, made: Sequence[str]) -> Table:
    table = Table("stage", "what", "where", "size", "seconds", "license", "", title=f"setup of small in {staged.root}")
    for column in (table.columns[3], table.columns[4]):
        column.justify = "right"
    for stage in stages:
        done = staged.manifest.stages[stage.name]
        where = escape(str(staged.root / stage.name)) if done.files else ""
        size = _mib(done.bytes) if done.files else ""
        table.add_row(
            stage.name,
            escape(stage.title),
            where,
            size,
            f"{done.seconds:.0f}",
            stage.license,
            "checked" if stage.always else "made" if stage.name in made else "kept",
        )
    return table


def print_parts() -> None:
    """Print every part with its license and its state here, then the publishers, then what is wrong."""
    console = _console()
    table = Table("part", "package", "installed", "files", "license of the content", "comes by")
    states = list(part_states())
    for state in states:
        part = state.part
        fine = "pinned hash" if part.files else f"any from {part.least}"
        table.add_row(
            part.name,
            f"{part.package} {part.version}",
            escape(state.version) or "[red]no[/]",
            "[red]fault[/]" if state.fault else fine,
            part.content_license,
            part.arrival.value,
        )
    console.print(table)
    for part in PARTS:
        text = f"{part.name}: {part.role}. Published by {part.publisher}. Comes by {part.arrival.value}: {part.reason}."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for state in states:
        if state.fault:
            console.print(shown(state.fault), markup=False, highlight=False, soft_wrap=True, style="red")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
