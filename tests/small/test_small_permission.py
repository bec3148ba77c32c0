"""What takes hours is made again only with permission, and the message names the input that changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genevolve_ray.small.made_files import MadeStage, changes
from genevolve_ray.small.stages import SetupFault, SetupStage, StagedSetup, StageWork, read_manifest


class QuietScreen:
    """Show nothing."""

    def begin(self, stage: SetupStage, why: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def end(self, stage: SetupStage, made: MadeStage) -> None: ...


class Trained:
    """Be a training that can be killed, and count how often it begins."""

    def __init__(self) -> None:
        self.begun: list[bool] = []
        self.killed = False

    def make(self, work: StageWork) -> None:
        self.begun.append(not work.kept.exists())
        work.kept.mkdir(parents=True, exist_ok=True)
        (work.kept / "checkpoint").write_text("half")
        if self.killed:
            raise KeyboardInterrupt
        work.out.mkdir()
        (work.out / "weights").write_text("w")

    def stage(self, steps: int = 5000) -> SetupStage:
        settings = json.dumps({"denoiser": {"steps": steps}, "seed": 0})
        return SetupStage("trained", "weights", self.make, inputs={"settings": settings}, trains=True)


class Asked:
    """Answer the question, and keep it."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.why = answer, ""

    def __call__(self, stage: SetupStage, why: str) -> bool:
        self.why = why
        return self.answer


def run(root: Path, *stages: SetupStage, permit: Asked | None = None) -> list[str]:
    return StagedSetup(stages, root).run(QuietScreen(), permit=permit)


WHY = "changed: settings (denoiser.steps: 5000, now 400)"


def test_a_first_training_needs_no_permission(tmp_path: Path) -> None:
    training = Trained()
    assert run(tmp_path, training.stage()) == ["trained"] and run(tmp_path, training.stage()) == []


@pytest.mark.parametrize("permit", [None, Asked(False)], ids=["without a person", "refused"])
def test_a_changed_setting_is_named_and_nothing_is_made(permit: Asked | None, tmp_path: Path) -> None:
    training, first = Trained(), SetupStage("first", "a first thing", lambda work: work.out.mkdir())
    run(tmp_path, training.stage())
    with pytest.raises(SetupFault, match=r"trained would be trained again \(.*denoiser\.steps: 5000, now 400\).*--yes"):
        run(tmp_path, first, training.stage(400), permit=permit)
    assert training.begun == [True] and list(read_manifest(tmp_path).stages) == ["trained"]
    assert permit is None or permit.why == WHY
    assert run(tmp_path, training.stage()) == []  # The edit is undone.


def test_a_permitted_training_is_made_again(tmp_path: Path) -> None:
    training = Trained()
    run(tmp_path, training.stage())
    assert run(tmp_path, training.stage(400), permit=(asked := Asked(True))) == ["trained"]
    assert asked.why == WHY and training.begun == [True, True]


def test_damaged_weights_are_trained_again_with_permission_alone(tmp_path: Path) -> None:
    training = Trained()
    run(tmp_path, training.stage())
    (tmp_path / "trained/weights").unlink()
    with pytest.raises(SetupFault, match="damaged: weights"):
        run(tmp_path, training.stage())


def test_a_killed_training_is_not_thrown_away_by_an_edit(tmp_path: Path) -> None:
    training = Trained()
    training.killed = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, training.stage())
    with pytest.raises(SetupFault, match="denoiser.steps: 5000, now 400"):
        run(tmp_path, training.stage(400))
    training.killed = False
    assert run(tmp_path, training.stage()) == ["trained"] and training.begun == [True, False]


def test_a_permitted_training_that_was_killed_continues_without_a_question(tmp_path: Path) -> None:
    training = Trained()
    run(tmp_path, training.stage())
    training.killed = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, training.stage(400), permit=Asked(True))
    training.killed = False
    assert run(tmp_path, training.stage(400)) == ["trained"] and training.begun == [True, True, False]


def test_what_changes_under_way_is_asked_before_its_training(tmp_path: Path) -> None:
    def base(text: str) -> SetupStage:
        def make(work: StageWork) -> None:
            work.out.mkdir()
            (work.out / "file").write_text(text)

        return SetupStage("base", "a base", make, inputs={"text": text})

    training = Trained()
    top = SetupStage("trained", "weights", training.make, needs=("base",), trains=True)
    run(tmp_path, base("a"), top)
    with pytest.raises(SetupFault, match=r"trained would be trained again \(changed: stage base\)"):
        run(tmp_path, base("b"), top)
    assert run(tmp_path, base("a"), top) == ["base"] and training.begun == [True]


def test_notices_of_a_stage_are_no_input_of_those_that_need_it(tmp_path: Path) -> None:
    def base(notice: str) -> SetupStage:
        def make(work: StageWork) -> None:
            (work.out / "LICENSES").mkdir(parents=True)
            (work.out / "ATTRIBUTION").write_text(notice)
            (work.out / "LICENSES/MIT").write_text(notice)
            (work.out / "file").write_text("same")

        return SetupStage("base", "a base", make, inputs={"notice": notice})

    top = SetupStage("trained", "weights", Trained().make, needs=("base",), trains=True)
    run(tmp_path, base("a"), top)
    assert run(tmp_path, base("b"), top) == ["base"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": "1"}, {"a": "1"}, ""),
        ({"a": "1", "b": "2"}, {"a": "2", "b": "2", "c": "3"}, "changed: a, c"),
        ({"s": '{"a": 1}'}, {"s": '{"a": 1, "b": {"c": null}}'}, "changed: s (b.c: unset, now null)"),
        ({"code": f'{{"a.py": "{"1" * 64}"}}'}, {"code": f'{{"a.py": "{"2" * 64}"}}'}, "changed: code (a.py)"),
        ({"s": "text"}, {"s": '{"a": 1}'}, "changed: s"),
        (
            {"s": json.dumps(dict.fromkeys("abcdefg", 1))},
            {"s": json.dumps(dict.fromkeys("abcdefg", 2))},
            "changed: s (a: 1, now 2, b: 1, now 2, c: 1, now 2, d: 1, now 2, e: 1, now 2 and 2 more)",
        ),
    ],
)
def test_the_difference_of_inputs_is_said(old: dict[str, str], new: dict[str, str], said: str) -> None:
    assert changes(old, new) == said
