"""`genevolve small setup` and `parts`: run the stages of the setup on a screen, and list what it is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from genevolve_ray.commands.small_trainings import AskedTrainings, read_trainings
from genevolve_ray.records.secrets import shown
from genevolve_ray.small.made_files import MadeStage
from genevolve_ray.small.parts import PARTS, part_states
from genevolve_ray.small.preset import own_preset
from genevolve_ray.small.setup import setup_stages
from genevolve_ray.small.stages import MANIFEST, PRESET_FOLDER, SetupStage, StagedSetup, read_manifest

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
        self.say(f"{stage.name}: {stage.title} ({why})")
        self._task = self._bar.add_task(escape(stage.name), total=None)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the stage."""
        if self._task is not None:
            self._bar.update(self._task, description=escape(f"{self._stage}: {what}"), completed=done, total=total)
        if not self._console.is_terminal and monotonic() - self._last >= _EVERY_SECONDS:
            self._last = monotonic()
            self.say(f"{self._stage}: {what} {done}/{total}")

    def end(self, stage: SetupStage, made: MadeStage) -> None:
        """Show a finished stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self.say(f"{stage.name}: done in {made.seconds:.0f} s, {_mib(made.bytes)}")

    def confirmed(self, text: str) -> bool:
        """Return whether a person at the terminal permits what a text says; without a terminal, nobody does."""
        if not (self._console.is_terminal and sys.stdin.isatty()):
            return False
        self._bar.stop()
        self.say(text)
        permitted = typer.confirm("Train again?", default=False)
        self._bar.start()
        return permitted

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def setup_run(
    out: Path,
    names: Sequence[str],
    *,
    from_nothing: bool | None,
    check: bool,
    asked: AskedTrainings | None = None,
    yes: bool = False,
) -> None:
    """Run the stages of a setup that are missing, changed or damaged, and print what there is and what to do next.

    Args:
        out: the folder of the setup.
        names: only these stages, with those that they need; none: every stage.
        from_nothing: train instead of taking the weights of the package; None: as the setup was begun.
        check: compare every file with its hash.
        asked: settings of the trainings; None: as the setup was begun.
        yes: train again where an input of a training changed, without a question.

    Raises:
        ConfigError: for a setting that is unknown or invalid, or that has no effect because nothing is trained.
        PartFault: for a part that is not installed, or whose files differ.
        SetupFault, StoreError: as `StagedSetup.run`.
    """
    staged = _staged(out, from_nothing, asked or AskedTrainings())
    wanted = staged.wanted(names)
    console = _console()
    with SetupProgress(console) as screen:
        made = staged.run(screen, names, check=check, permit=partial(_permit, screen, yes))
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


def _staged(out: Path, from_nothing: bool | None, asked: AskedTrainings) -> StagedSetup:
    """Return a setup as it is asked for, and otherwise as it was begun."""
    begun = read_manifest(out)
    chosen = begun.from_nothing if from_nothing is None else from_nothing
    given = asked.values(begun.trainings, trains=chosen)
    trainings = read_trainings(given, asked, str(out / MANIFEST)) if chosen else None
    stages = setup_stages(from_nothing=chosen, trainings=trainings)
    return StagedSetup(stages, out, from_nothing=chosen, trainings=given)


def _permit(screen: SetupProgress, yes: bool, stage: SetupStage, why: str) -> bool:
    """Return whether a training may be repeated: by --yes, or by an answer on a terminal."""
    text = f"{stage.name}: {stage.title}; it would be trained again ({why}), and what was trained before would be lost"
    if yes:
        screen.say(text)
    return yes or screen.confirmed(text)


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


def clipart_run(source: Path, out: Path, most: int) -> None:
    """Add the drawings of a folder to the corpus of a setup, and print what became of them.

    Raises:
        UserFault, PartFault, OSError: as `small.clipart.write_clipart`.
    """
    from genevolve_ray.small.clipart import FOLDER, write_clipart
    from genevolve_ray.small.subjects import every_subject

    console = _console()
    subjects = [subject.name for subject in every_subject()]
    with SetupProgress(console) as screen:
        report = write_clipart(source, out / "corpus", subjects, most=most, progress=screen.progress)
        screen.say(
            f"{report.drawn} drawings are now in {out / 'corpus' / FOLDER}; {report.others} others were left out"
        )
        for fault in report.unusable:
            screen.say(f"not used: {fault}")


def print_parts(out: Path = PRESET_FOLDER) -> None:
    """Print every part with its license and its state here, then the publishers, then what is wrong.

    The stages of the setup in `out` follow, where there is one.

    Raises:
        StoreError: for a manifest that is corrupt or of another version.
    """
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
    if (out / MANIFEST).is_file():
        _print_stages(console, _staged(out, None, AskedTrainings()))
    else:
        console.print(
            f"no setup in {out}: genevolve small setup{_option(out)} makes one", highlight=False, markup=False
        )


def _print_stages(console: Console, staged: StagedSetup) -> None:
    table = Table("stage", "what", "license", "the next setup", title=f"setup of small in {staged.root}")
    stages = list(staged.stages.values())
    settled = staged.settled(stages)
    for stage in stages:
        if stage.always:
            does = "checks it"
        elif why := staged.outdated(stage):
            does = f"{'asks, then makes it' if staged.repeated(stage) else 'makes it'}: {why}"
        else:
            does = "keeps it" if stage in settled else "keeps it, unless what it needs differs then"
        table.add_row(stage.name, escape(stage.title), stage.license, escape(does))
    console.print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
