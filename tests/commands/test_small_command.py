"""`genevolve small setup` shows what it makes, and `genevolve small parts` what it is made of."""

from __future__ import annotations

import io
import re
import types
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from genevolve_ray.cli import app
from genevolve_ray.commands import evolve, small
from genevolve_ray.config import ConfigError, load_config
from genevolve_ray.small.parts import PARTS
from genevolve_ray.small.stages import PRESET_FOLDER, SetupStage, StagedSetup, StageWork
from genevolve_ray.small.training.settings import SmallTrainings


def write(work: StageWork) -> None:
    work.out.mkdir()
    (work.out / "file").write_bytes(b"x" * (1 << 20))
    work.progress("files", 1, 1)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replace the stages by two quick ones, and return with which `from_nothing` they were asked."""
    asked: list[bool] = []

    def quick(*, from_nothing: bool, trainings: SmallTrainings | None) -> list[SetupStage]:
        asked.append(from_nothing)
        assert (trainings is not None) == from_nothing
        way = {"way": str(from_nothing)}
        first = SetupStage("first", "a first thing", write, license="MIT")
        return [first, SetupStage("second", "a second thing", write, needs=("first",), inputs=way)]

    monkeypatch.setattr(small, "setup_stages", quick)
    return asked


def setup(*words: str) -> str:
    answer = CliRunner().invoke(app, ["small", "setup", *words], catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.output


def test_a_setup_ends_with_a_table_and_the_next_command(
    stages: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = setup()
    assert "first: a first thing (not made yet)" in printed
    for text in ("a second thing", "runs/small/second", "1.0 MiB", "MIT", "2 of 2 stages made", "genevolve demo small"):
        assert text in printed
    again = setup("--check")
    assert "0 of 2 stages made" in again and "every file has its recorded hash" in again


def test_a_part_of_the_stages_says_that_others_are_left(stages: list[bool], tmp_path: Path) -> None:
    printed = setup("--out", str(tmp_path / "s"), "--stage", "first")
    assert "1 of 1 stages made" in printed and f"next: genevolve small setup --out {tmp_path / 's'}" in printed


def test_another_folder_has_a_preset_of_its_own(stages: list[bool], tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert f"genevolve demo {out / 'small.yaml'}" in setup("--out", str(out)).replace("\n", "")
    written = yaml.safe_load((out / "small.yaml").read_text())
    assert written["extends"] == "small" and written["policy"] == {"model": str(out / "policy")}
    moved, preset = load_config(str(out / "small.yaml")).model_dump_json(), load_config("small").model_dump_json()
    assert str(PRESET_FOLDER) in preset and str(PRESET_FOLDER) not in moved


def test_the_own_preset_can_be_used_from_anywhere(
    stages: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    setup("--out", "s")
    assert load_config("s/small.yaml").policy.model == str(tmp_path / "s/policy")


def test_an_edited_preset_is_kept(stages: list[bool], tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert "is kept" not in setup("--out", str(out)) + setup("--out", str(out))
    with (out / "small.yaml").open("a") as file:
        file.write("loop: {steps: 3}\n")
    assert f"{out / 'small.yaml'} differs" in setup("--out", str(out), "--check").replace("\n", "")
    assert load_config(str(out / "small.yaml")).loop.steps == 3


def test_the_demo_of_a_file_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(evolve, "demo_run", lambda config, folder, **_: folders.append(folder))
    own = tmp_path / "world" / "small.yaml"
    own.parent.mkdir()
    own.write_text("extends: small\n")
    for preset in ("small", str(own), "atlas"):
        CliRunner().invoke(app, ["demo", preset], catch_exceptions=False)
    assert folders == [Path("runs/demo-small"), Path("runs/demo-world-small"), Path("runs/demo")]


def test_a_setup_stays_as_it_was_begun(stages: list[bool], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "s"))
    setup(*out, "--from-nothing")
    assert "0 of 2 stages made" in setup(*out)
    assert "second: a second thing (changed: way)" in setup(*out, "--prebuilt")
    assert stages == [True, True, False]


TINY = "renderer: {denoiser: {steps: 3}}\ncold_start: {max_rows: 8}\n"


def test_settings_of_trainings_are_kept_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[SmallTrainings | None] = []

    def quick(*, from_nothing: bool, trainings: SmallTrainings | None) -> list[SetupStage]:
        given.append(trainings)
        steps = str(trainings.renderer.denoiser.steps) if trainings else "none"
        return [SetupStage("first", "a first thing", write, inputs={"steps": steps}, trains=True)]

    monkeypatch.setattr(small, "setup_stages", quick)
    (tmp_path / "tiny.yaml").write_text(TINY)
    out = ("--out", str(tmp_path / "s"))
    setup(*out, "--from-nothing", "--trainings", str(tmp_path / "tiny.yaml"), "--set", "renderer.prompts=2")
    assert "0 of 1 stages made" in setup(*out)
    for trainings in given:
        assert trainings is not None
        assert (trainings.renderer.denoiser.steps, trainings.renderer.denoiser.batch) == (3, 32)
        assert (trainings.renderer.prompts, trainings.cold_start.max_rows) == (2, 8)
        assert trainings.cold_start.betas == (0.9, 0.95)
    refused = CliRunner().invoke(app, ["small", "setup", *out, "--set", "renderer.denoiser.steps=4"])
    assert "first would be trained again (changed: steps)" in str(refused.exception)
    assert "1 of 1 stages made" in setup(*out, "--set", "renderer.denoiser.steps=4", "--yes")


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_at_a_terminal_is_asked(terminal: bool, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(small.sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(small.typer, "confirm", lambda text, default: asked.append(text) or answer)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with small.SetupProgress(console) as screen:
        assert screen.confirmed("weights would be trained again") is (terminal and answer)
    assert asked == (["Train again?"] if terminal else [])
    assert ("weights would be" in console.file.getvalue()) is terminal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "renderer.seed=1"], "--set is for trainings, .*: add --from-nothing"),
        (["--trainings", "none.yaml"], "--trainings is for trainings, .*: add --from-nothing"),
        (["--from-nothing", "--trainings", "none.yaml"], "--trainings none.yaml: .*No such file"),
        (["--from-nothing", "--set", "renderer.denoizer.steps=3"], "denoizer: unknown key .*did you mean"),
        (["--from-nothing", "--set", "renderer.denoiser.steps=0"], "renderer.denoiser.steps: .*got 0"),
        (["--from-nothing", "--set", "steps"], "write key=value"),
    ],
)
def test_bad_settings_are_named(
    words: list[str], message: str, stages: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["small", "setup", *words])
    assert isinstance(answer.exception, ConfigError) and re.search(message, str(answer.exception))
    assert not (tmp_path / "runs").exists()


def test_the_parts_show_what_a_setup_elsewhere_holds(stages: list[bool], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "s"))
    assert f"no setup in {tmp_path / 's'}" in CliRunner().invoke(app, ["small", "parts", *out]).output.replace("\n", "")
    setup(*out)
    (tmp_path / "s/second/file").unlink()
    printed = CliRunner().invoke(app, ["small", "parts", *out], catch_exceptions=False).output
    assert "keeps it" in printed and "makes it: damaged: file" in printed
    assert not (tmp_path / "s/second/file").exists()


def test_the_parts_are_listed_with_license_and_reason() -> None:
    printed = CliRunner().invoke(app, ["small", "parts"]).output
    for part in PARTS:
        assert part.package in printed and part.content_license in printed and part.reason in printed


def test_a_terminal_shows_a_bar_and_other_outputs_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "_EVERY_SECONDS", 0.0)
    shown = {}
    for terminal in (True, False):
        stage = SetupStage("first", "a first thing", write)
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with small.SetupProgress(console) as screen:
            StagedSetup([stage], tmp_path / str(terminal)).run(screen)
        shown[terminal] = console.file.getvalue()
    assert "first: files 1/1\n" in shown[False]
    assert "first: done in 0 s, 1.0 MiB" in shown[True] and "first: files 1/1\n" not in shown[True]
