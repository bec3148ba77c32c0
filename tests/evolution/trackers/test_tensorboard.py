"""TensorBoard's files, read back by TensorBoard itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tracker_fakes import RUN, Fed, RememberingTracker

from genevolve_ray.evolution.trackers.port import PictureRow
from genevolve_ray.evolution.trackers.tensorboard import TensorBoardTracker, plain_markdown

pytest.importorskip("tensorboard")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def points(events: Any, tag: str) -> list[tuple[int, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    return [(e.step, pytest.approx(float(make_ndarray(e.tensor_proto)))) for e in events.Tensors(tag)]


def texts(events: Any, tag: str) -> list[str]:
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)]


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), color).save(buffer, format="PNG")
    return buffer.getvalue()


def feed(folder: Path, tracker: TensorBoardTracker) -> Fed:
    return Fed(folder, tracker)  # type: ignore[arg-type]


def test_steps_of_a_resumed_run_follow_each_other_once(tmp_path: Path) -> None:
    feed(tmp_path, TensorBoardTracker(str(tmp_path / "logs"))).play(0, [1, 2])
    feed(tmp_path, TensorBoardTracker(str(tmp_path / "logs"))).play(1, [2, 3], {"steps": 3})
    events = read(tmp_path / "logs" / "demo-1a")
    assert points(events, "reward_mean") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(events.Tensors("configuration")) == 1


def test_the_files_tell_the_last_step_without_the_record_of_the_run(tmp_path: Path) -> None:
    feed(tmp_path / "one", TensorBoardTracker(str(tmp_path / "logs"))).play(0, [1, 2])
    feed(tmp_path / "two", TensorBoardTracker(str(tmp_path / "logs"))).play(2, [3])
    assert [step for step, _ in points(read(tmp_path / "logs" / "demo-1a"), "reward_mean")] == [1, 2, 3]


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    feed(tmp_path / "one", TensorBoardTracker(str(tmp_path / "logs"))).play(0, [1, 2])
    [path] = (tmp_path / "logs" / "demo-1a").iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    fed = feed(tmp_path / "two", TensorBoardTracker(str(tmp_path / "logs")))
    fed.play(2, [3])
    assert fed.notes == []
    assert points(read(tmp_path / "logs" / "demo-1a"), "reward_mean")[-1] == (3, 0.3)


def test_pictures_texts_alerts_and_summary(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(str(tmp_path))
    tracker.begin(RUN)
    row = PictureRow("a | b", png("red"), 0.75, None, 0.25, png("blue"), "![x](http://evil/x.png)")
    tracker.write(4, {"reward_mean": 0.5})
    tracker.pictures(4, [row, row])
    tracker.alert(4, "entropy", "it <b>falls</b>")
    tracker.finish({"steps": 4, "gain": 0.1})
    events = read(tmp_path / "demo-1a")
    [best] = events.Tensors("pictures/best")
    assert (best.step, list(best.tensor_proto.string_val)) == (4, [b"8", b"4", png("red"), png("red")])
    assert len(events.Tensors("pictures/truth")) == 1
    assert "pictures/worst" not in events.Tags()["tensors"]
    assert texts(events, "pictures/table")[0].splitlines()[2] == (r"|a \| b|0.750|0.250|\!\[x\]\(http://evil/x.png\)|")
    assert texts(events, "alerts/entropy") == [r"it \<b\>falls\</b\>"]
    assert '"gain": 0.1' in texts(events, "summary")[0]
    assert '"seed": 1' in texts(events, "configuration")[0]


def test_two_runs_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    from dataclasses import replace

    for own in ("demo-1a", "demo-2b"):
        tracker = TensorBoardTracker(str(tmp_path))
        tracker.begin(replace(RUN, id=own))
        tracker.write(1, {"reward_mean": 0.5})
        tracker.finish(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-1a", "demo-2b"]


@pytest.mark.parametrize("text", ["a\nb", "[a](b)", "<img src=x>", "`x`", "# a", "a | b"])
def test_no_text_is_markup(text: str) -> None:
    found = plain_markdown(text)
    assert "\n" not in found
    assert not any(mark in found.replace(f"\\{mark}", "") for mark in "[]()<>`#|!")


def test_a_remembering_tracker_takes_what_a_real_one_takes(tmp_path: Path) -> None:
    """The fake of the other tests has the same methods."""
    wanted = {name for name in vars(TensorBoardTracker) if not name.startswith("_")}
    assert wanted <= {*dir(RememberingTracker())}
