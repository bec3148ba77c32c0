"""SFT rows: roles, placeholders, and turns that the protocol does not allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_helpers import ANSWER, CALL, OBSERVATION, messages, sft_row, write_lines, write_parquet

from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport
from genevolve_ray.records.published.trajectories import SftReadConfig, SftRow, read_sft

TWO_CALLS = CALL + CALL.partition("\n")[2]


def read(tmp_path: Path, *rows: dict[str, Any], **config: Any) -> tuple[list[SftRow], RejectionReport]:
    report, path = RejectionReport(), write_lines(tmp_path / "rows.jsonl", rows)
    return list(read_sft([path], report, SftReadConfig(**config))), report


def test_a_trajectory_is_read(tmp_path: Path) -> None:
    (row,), report = read(tmp_path, sft_row(3))
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.images == ("images/traj_00003/IMG_001.jpg",)
    assert row.request == "a lighthouse with 3 windows"
    assert report.kept == 1


def test_parquet_holds_the_same_trajectories(tmp_path: Path) -> None:
    made = [sft_row(number) for number in range(5)]
    lines, _ = read(tmp_path, *made)
    columns = list(read_sft([write_parquet(tmp_path / "rows.parquet", made)], RejectionReport()))
    assert [(row.id, row.messages, row.images) for row in columns] == [(r.id, r.messages, r.images) for r in lines]


def test_a_system_message_is_optional_and_no_action_is_sought_in_thinking(tmp_path: Path) -> None:
    thinking = ANSWER.replace("look it up", "a <tool_call>{}</tool_call> first?")
    rows, report = read(tmp_path, sft_row(messages=messages(thinking, system=None), images=[]))
    assert (len(rows), report.kept) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"messages": None}, RejectionReason.NO_MESSAGES),
        ({"messages": []}, RejectionReason.NO_MESSAGES),
        ({"messages": ["hi"]}, RejectionReason.BAD_FIELD),
        ({"messages": [{"role": "tool", "content": "x"}]}, RejectionReason.UNKNOWN_ROLE),
        ({"messages": [{"role": ["user"], "content": "x"}]}, RejectionReason.UNKNOWN_ROLE),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, RejectionReason.BAD_FIELD),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, RejectionReason.BAD_TEXT),
        ({"messages": messages(CALL, OBSERVATION)}, RejectionReason.ROLE_ORDER),
        ({"messages": messages()}, RejectionReason.ROLE_ORDER),
        ({"messages": [{"role": "system", "content": "x"}]}, RejectionReason.ROLE_ORDER),
        ({"messages": messages(ANSWER)[::-1]}, RejectionReason.ROLE_ORDER),
        ({"messages": messages(ANSWER, request=" ")}, RejectionReason.EMPTY_TURN),
        ({"messages": messages(" ", OBSERVATION, ANSWER)}, RejectionReason.EMPTY_TURN),
        ({"messages": messages(CALL, OBSERVATION, CALL)}, RejectionReason.NO_ANSWER),
        ({"messages": messages("<think><answer>{}</answer></think>"), "images": []}, RejectionReason.NO_ANSWER),
        ({"messages": messages(CALL, OBSERVATION, "<answer>{}")}, RejectionReason.NO_ANSWER),
        ({"messages": messages(TWO_CALLS, OBSERVATION, ANSWER)}, RejectionReason.SEVERAL_ACTIONS),
        ({"messages": messages(CALL, OBSERVATION, CALL + ANSWER)}, RejectionReason.SEVERAL_ACTIONS),
        ({"messages": messages("thinking aloud", OBSERVATION, ANSWER)}, RejectionReason.NO_ACTION),
        ({"messages": messages(ANSWER, OBSERVATION, ANSWER)}, RejectionReason.EARLY_ANSWER),
        ({"images": []}, RejectionReason.IMAGE_COUNT),
        ({"images": ["a.jpg", "b.jpg"]}, RejectionReason.IMAGE_COUNT),
        ({"images": ["../a.jpg"]}, RejectionReason.UNSAFE_PATH),
        ({"images": [{"path": "a.jpg"}]}, RejectionReason.BAD_FIELD),
    ],
)
def test_a_bad_row_has_its_reason(tmp_path: Path, changes: dict[str, Any], wanted: RejectionReason) -> None:
    rows, report = read(tmp_path, sft_row(1, **changes), sft_row(2))
    assert [row.request for row in rows] == ["a lighthouse with 2 windows"]
    assert report.rejected == {wanted: 1}
    assert report.examples(wanted)[0].number == 1


@pytest.mark.parametrize("piece", ["<tool_call>", "<answer><tool_call>", " ", "<think>", "<tool_call></answer>"])
def test_a_hostile_turn_is_read_in_linear_time(tmp_path: Path, piece: str) -> None:
    """Anything quadratic would take hours here, and the test's time limit would end it."""
    _, report = read(
        tmp_path, sft_row(1, messages=messages(piece * (4_000_000 // len(piece)) + ".", request="x"), images=[])
    )
    assert report.rejected == {RejectionReason.NO_ANSWER: 1}


def test_two_user_messages_in_a_row_are_kept_apart(tmp_path: Path) -> None:
    """The message of the last step is a user turn of its own, after the last observation."""
    said = messages(CALL, OBSERVATION, ANSWER)
    said.insert(4, {"role": "user", "content": "Answer now."})
    said.insert(1, {"role": "user", "content": "An opening."})
    (row,), report = read(tmp_path, sft_row(1, messages=said))
    assert [m.role for m in row.messages] == ["system", "user", "user", "assistant", "user", "user", "assistant"]
    assert row.request == "An opening." and report.kept == 1


@pytest.mark.parametrize("roles", ["uaa", "au", "uasa", "usa", "a"])
def test_other_orders_of_roles_are_named(roles: str, tmp_path: Path) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    said = [{"role": names[mark], "content": ANSWER} for mark in roles]
    _, report = read(tmp_path, sft_row(1, messages=said, images=[]))
    assert report.rejected == {RejectionReason.ROLE_ORDER: 1}


def test_a_content_of_parts_is_one_text_with_placeholders(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "see "}, {"type": "image"}, {"type": "text", "text": "!"}]
    said = messages(CALL, OBSERVATION, ANSWER)
    said[3]["content"] = parts  # type: ignore[assignment]
    (row,), _ = read(tmp_path, sft_row(1, messages=said))
    assert row.messages[3].content == "see <image>!"


@pytest.mark.parametrize("path", ["IMG_001.jpg", None, "/theirs/IMG_001.jpg"])
def test_images_that_a_parquet_file_holds_are_counted_and_not_looked_for(tmp_path: Path, path: str | None) -> None:
    """Data sets store images as bytes and a name; however large they are, the row is only its texts."""
    rows = [sft_row(number) | {"images": [{"bytes": b"x" * 5000, "path": path}]} for number in range(3)]
    rows[2]["images"] = []
    file = write_parquet(tmp_path / "rows.parquet", rows)
    report = RejectionReport()
    config = SftReadConfig(check_images=True, max_row_bytes=3000)
    found = list(read_sft([file], report, config))
    assert [(row.embedded, len(row.images)) for row in found] == [(True, 1)] * 2
    assert report.rejected == {RejectionReason.IMAGE_COUNT: 1}


def test_broken_turns_can_be_kept_and_are_noted(tmp_path: Path) -> None:
    row = sft_row(1, TWO_CALLS, OBSERVATION, "aloud", "format error", ANSWER)
    rows, report = read(tmp_path, row, broken_turns="keep")
    assert (len(rows), report.kept) == (1, 1)
    assert report.noted == {RejectionReason.SEVERAL_ACTIONS: 1, RejectionReason.NO_ACTION: 1}
    assert "tool_call, tool_call" in report.examples(RejectionReason.SEVERAL_ACTIONS)[0].detail


def test_a_conversation_comes_once(tmp_path: Path) -> None:
    rows, report = read(tmp_path, sft_row(1), sft_row(1), sft_row(2))
    assert (len(rows), report.rejected) == (2, {RejectionReason.DUPLICATE_ID: 1})


def test_images_are_looked_for_on_demand(tmp_path: Path) -> None:
    (tmp_path / "images/traj_00001").mkdir(parents=True)
    (tmp_path / "images/traj_00001/IMG_001.jpg").write_bytes(b"x")
    rows, report = read(tmp_path, sft_row(1), sft_row(2), check_images=True)
    assert (len(rows), report.rejected) == (1, {RejectionReason.MISSING_IMAGE: 1})


def test_images_as_objects_in_json_lines_are_paths(tmp_path: Path) -> None:
    named = {"images": [{"bytes": None, "path": "images/a.jpg"}]}
    rows, report = read(tmp_path, sft_row(1) | named, sft_row(2) | {"images": [{"bytes": "eA==", "path": None}]})
    assert [(row.images, row.embedded) for row in rows] == [(("images/a.jpg",), False)]
    assert report.rejected == {RejectionReason.BAD_FIELD: 1}
