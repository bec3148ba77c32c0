"""The stages of a setup run once; what is changed, killed or damaged is made again, and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.small import stages
from genevolve_ray.small.made_files import MadeStage
from genevolve_ray.small.stages import (
    MANIFEST,
    SetupFault,
    SetupStage,
    StagedSetup,
    StageWork,
    read_manifest,
)


class KeptScreen:
    """Keep what a setup shows."""

    def __init__(self) -> None:
        self.begun: dict[str, str] = {}
        self.reported: list[tuple[str, int, int]] = []

    def begin(self, stage: SetupStage, why: str) -> None:
        self.begun[stage.name] = why

    def progress(self, what: str, done: int, total: int) -> None:
        self.reported.append((what, done, total))

    def end(self, stage: SetupStage, made: MadeStage) -> None:
        assert made.seconds >= 0


def writes(text: str, *needs: str) -> Callable[[StageWork], None]:
    """Return a stage's work: one file that holds a text and what the needed stages wrote."""

    def make(work: StageWork) -> None:
        work.out.mkdir()
        read = [(work.root / need / "file.txt").read_text() for need in needs]
        (work.out / "file.txt").write_text("".join([text, *read]))
        work.progress("files", 1, 1)

    return make


def base(text: str = "a", version: str = "1") -> SetupStage:
    return SetupStage("base", "a base", writes(text), inputs={"version": version})


def top(text: str = "t") -> SetupStage:
    return SetupStage("top", "a top", writes(text, "base"), needs=("base",))


def run(root: Path, *chosen: SetupStage, check: bool = False, names: tuple[str, ...] = ()) -> dict[str, str]:
    """Run a setup, and return why stages were made."""
    screen = KeptScreen()
    made = StagedSetup(chosen, root).run(screen, names, check=check)
    assert made == [stage.name for stage in chosen if stage.name in screen.begun and not stage.always]
    return screen.begun


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, base(), top()) == {"base": "not made yet", "top": "not made yet"}
    assert (tmp_path / "top/file.txt").read_text() == "ta"
    assert run(tmp_path, base(), top()) == {}


def test_a_changed_input_makes_the_stage_again_and_what_depends_on_its_files(tmp_path: Path) -> None:
    other = SetupStage("other", "independent", writes("o"))
    run(tmp_path, base(), other, top())
    assert run(tmp_path, base("b", "2"), other, top()) == {"base": "changed: version", "top": "changed: stage base"}


def test_a_changed_input_with_the_same_result_ends_there(tmp_path: Path) -> None:
    run(tmp_path, base(), top())
    assert run(tmp_path, base(version="2"), top()) == {"base": "changed: version"}


def test_a_damaged_file_is_found_by_its_hash(tmp_path: Path) -> None:
    run(tmp_path, base(), top())
    (tmp_path / "base/file.txt").write_text("b")
    assert run(tmp_path, base(), top()) == {}
    assert run(tmp_path, base(), top(), check=True) == {"base": "damaged: file.txt"}
    assert (tmp_path / "base/file.txt").read_text() == "a"


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("longer")], ids=["missing", "size"])
def test_a_missing_or_longer_file_is_found_without_hashes(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    run(tmp_path, base())
    damage(tmp_path / "base/file.txt")
    assert run(tmp_path, base()) == {"base": "damaged: file.txt"}


def test_a_killed_stage_resumes_and_the_finished_ones_are_kept(tmp_path: Path) -> None:
    seen: list[bool] = []

    def train(work: StageWork) -> None:
        work.kept.mkdir(exist_ok=True)
        checkpoint = work.kept / "checkpoint"
        seen.append(checkpoint.exists())
        work.out.mkdir()
        (work.out / "partial").touch()
        if not checkpoint.exists():
            checkpoint.touch()
            raise KeyboardInterrupt
        (work.out / "weights").write_text("w")
        (work.out / "partial").unlink()

    trained = SetupStage("trained", "weights", train, needs=("base",))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, base(), trained)
    assert not (tmp_path / "trained").exists()
    assert run(tmp_path, base(), trained) == {"trained": "not made yet"}
    assert seen == [False, True]
    assert [path.name for path in (tmp_path / "trained").iterdir()] == ["weights"]


def test_a_killed_stage_with_other_inputs_begins_anew(tmp_path: Path) -> None:
    def stage(version: str) -> SetupStage:
        def train(work: StageWork) -> None:
            work.kept.mkdir()  # As nothing was kept.
            raise KeyboardInterrupt

        return SetupStage("trained", "weights", train, inputs={"version": version})

    for version in ("1", "2"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stage(version))


def test_a_stage_that_only_checks_runs_at_every_call(tmp_path: Path) -> None:
    calls: list[StageWork] = []
    checks = SetupStage("parts", "a check", calls.append, always=True)
    after = SetupStage("after", "what needs it", writes("a"), needs=("parts",))
    run(tmp_path, checks, after)
    before = read_manifest(tmp_path)
    assert run(tmp_path, checks, after) == {"parts": "at every call"} and len(calls) == 2
    assert read_manifest(tmp_path) == before


@pytest.mark.parametrize("name", ["base", "top"])
def test_a_folder_that_no_setup_made_is_named_and_left_alone(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SetupFault, match=f"holds {name}, which no setup has recorded: move it away"):
        run(tmp_path, base(), top())
    assert mine.read_text() == "mine" and not (tmp_path / MANIFEST).exists()


def test_an_empty_folder_is_no_ones(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert run(tmp_path, base()) == {"base": "not made yet"}


def test_a_setup_is_not_made_in_the_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SetupFault, match="holds a run"):
        run(tmp_path, base())
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_files_that_were_added_to_a_stage_are_kept(tmp_path: Path) -> None:
    run(tmp_path, base())
    own = tmp_path / "base/texts/own.md"
    own.parent.mkdir()
    own.write_text("own")
    assert run(tmp_path, base("b", "2")) == {"base": "changed: version"}
    assert own.read_text() == "own" and (tmp_path / "base/file.txt").read_text() == "b"
    assert list(read_manifest(tmp_path).stages["base"].files) == ["file.txt"]


def test_a_file_that_was_added_is_not_overwritten(tmp_path: Path) -> None:
    def more(work: StageWork) -> None:
        work.out.mkdir()
        (work.out / "own.md").write_text("made")

    run(tmp_path, base())
    (tmp_path / "base/own.md").write_text("own")
    with pytest.raises(SetupFault, match=r"own\.md was not made by the setup"):
        run(tmp_path, SetupStage("base", "a base", more))
    assert (tmp_path / "base/own.md").read_text() == "own"


@pytest.mark.parametrize("moved", [False, True], ids=["before it is moved", "after it is moved"])
def test_what_is_finished_is_not_made_again_when_it_could_not_be_recorded(
    tmp_path: Path, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[StageWork] = []

    def train(work: StageWork) -> None:
        calls.append(work)
        writes("w")(work)

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    trained = SetupStage("trained", "weights", train)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(StagedSetup, "_record", fails) if moved else patch.setattr(stages, "_replace", fails)
        run(tmp_path, trained)
    assert (tmp_path / "trained").exists() == moved
    assert run(tmp_path, trained) == {"trained": "not made yet"} and len(calls) == 1
    assert run(tmp_path, trained, check=True) == {} and (tmp_path / "trained/file.txt").read_text() == "w"


def test_a_full_disk_is_an_error_of_the_disk_whoever_says_so(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    def saves(work: StageWork) -> None:
        raise SafetensorError(said)

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match="No space left on device") as raised:
        run(tmp_path, SetupStage("base", "a model", saves))
    assert raised.value.errno == errno.ENOSPC
    said = "Error while deserializing header"
    with pytest.raises(SafetensorError):
        run(tmp_path, SetupStage("base", "a model", saves))


def test_a_killed_call_has_recorded_the_way_that_was_chosen(tmp_path: Path) -> None:
    def killed(work: StageWork) -> None:
        raise KeyboardInterrupt

    run(tmp_path, base())
    with pytest.raises(KeyboardInterrupt):
        StagedSetup([base(), SetupStage("top", "a top", killed)], tmp_path, from_nothing=True).run(KeptScreen())
    assert read_manifest(tmp_path).from_nothing and "base" in read_manifest(tmp_path).stages


def test_a_setup_sees_what_another_one_made_before_it_got_the_lock(tmp_path: Path) -> None:
    second = StagedSetup([base(), top()], tmp_path)
    run(tmp_path, base())
    assert second.run(KeptScreen()) == ["top"]


def test_named_stages_bring_those_that_they_need(tmp_path: Path) -> None:
    other = SetupStage("other", "independent", writes("o"))
    assert list(run(tmp_path, base(), other, top(), names=("top",))) == ["base", "top"]
    assert not (tmp_path / "other").exists()


def test_an_unknown_stage_is_compared_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SetupFault, match="--stage bse: no such stage, did you mean base"):
        run(tmp_path, base(), names=("bse",))


def test_a_stage_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SetupFault, match="top needs base"):
        StagedSetup([top(), base()], tmp_path)


def test_two_setups_do_not_share_a_folder(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(SetupFault, match="another setup works in"):
        run(tmp_path, base())


def test_a_corrupt_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match=f"{MANIFEST} is corrupt.*remove this file"):
        run(tmp_path, base())


def test_the_manifest_has_inputs_files_and_the_way(tmp_path: Path) -> None:
    StagedSetup([base(), top()], tmp_path, from_nothing=True).run(KeptScreen())
    manifest = read_manifest(tmp_path)
    assert manifest.from_nothing
    made = manifest.stages["top"]
    assert made.inputs == {"stage base": manifest.stages["base"].sha256}
    assert made.bytes == 2 and list(made.files) == ["file.txt"]


def test_progress_reaches_the_screen(tmp_path: Path) -> None:
    screen = KeptScreen()
    StagedSetup([base()], tmp_path).run(screen)
    assert screen.reported == [("files", 1, 1)]
