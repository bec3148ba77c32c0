"""A reader that goes away: one line on standard error, the exit code of SIGPIPE, and nothing after it."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from genevolve_ray.cli.output import GuardedOutput, OutputClosed
from genevolve_ray.errors import as_ending
from genevolve_ray.viewer.progress import PlainProgress

COMMAND = """
import sys
from genevolve_ray.cli import entry

def command():
    from genevolve_ray.viewer.progress import PlainProgress
    progress = PlainProgress()
    try:
        for step in range(100_000):
            HOW
    finally:
        print("closed its parts", file=sys.stderr)

entry.app = command
entry.main()
"""


@pytest.mark.parametrize("how", ["progress.note('a line')", "print('a line', flush=True)", "print('a line')"])
def test_a_closed_pipe_ends_a_command_with_one_line(how: str) -> None:
    script = COMMAND.replace("HOW", how)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    said = process.stderr.read().splitlines()
    assert process.wait(60) == 141
    assert said == [
        "closed its parts",
        "error: standard output was closed; a run is kept, and the same command resumes it",
    ]


def test_a_short_output_that_nobody_reads_has_the_same_code() -> None:
    script = COMMAND.replace("HOW", "print('a line'); sys.stdin.read(); sys.exit(0)")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read().count("\n") == 2
    assert process.wait(60) == 141


def test_output_that_is_closed_as_well_as_errors_still_gives_the_code() -> None:
    script = COMMAND.replace("HOW", "print('a line', flush=True)")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) in (141, 1)


class Closed(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_the_error_passes_rich_and_groups_of_tasks() -> None:
    progress = PlainProgress(Console(file=GuardedOutput(Closed())))  # type: ignore[arg-type]
    with pytest.raises(OutputClosed) as caught:
        progress.note("x")
    assert as_ending(ExceptionGroup("tasks", [caught.value])) == (str(caught.value), 141)


def test_other_streams_work_as_before() -> None:
    stream = io.StringIO()
    guarded = GuardedOutput(stream)
    assert guarded.write("text") == 4 and guarded.getvalue() == "text" and not guarded.isatty()
    guarded.flush()
