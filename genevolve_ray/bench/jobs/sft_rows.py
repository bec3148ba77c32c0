"""Valid trajectories as SFT rows, `{messages, images}`, to train on successful rollouts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.files import encode, write_bytes
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.results import AgentRow
from genevolve_ray.records.published.trajectories import SftReadConfig, read_sft
from genevolve_ray.records.texts import IMAGE_MARK
from genevolve_ray.records.trajectory import Termination


def write_sft_rows(path: Path, rows: Iterable[ResultRow], root: Path) -> RejectionReport:
    """Write the agent rows that hold a program as SFT rows, in order, and return the report of `read_sft`.

    Each `<image>` of an observation has the file that the policy saw there; rows of a policy that read only text have
    no images. A conversation in which the policy or the request wrote an image placeholder is left out. So is a row
    that the reader would reject (a turn that broke the protocol before the answer, a file that is missing). The report
    names the reasons.

    Args:
        path: the file to write. Pictures outside its folder are copied into a folder beside it.
        rows: rows of the agent.
        root: the folder that paths of the rows are relative to.

    Raises:
        OSError: when a file cannot be written.
    """
    lines = []
    for row in rows:
        agent = AgentRow.read(row.values)
        messages: Any = row.values.get("messages")
        if agent.termination is not Termination.ANSWER or not row.has_program or not isinstance(messages, list):
            continue
        if not _marks_fit(messages, row.shown):
            continue
        images = [_placed(path, root / shown) for shown in row.shown]
        lines.append(encode({"id": row.id, "messages": messages, "images": images}) + b"\n")
    write_bytes(path, b"".join(lines))
    report = RejectionReport()
    kept = {row.number for row in read_sft([path], report, SftReadConfig(check_images=True))}
    if len(kept) < len(lines):
        write_bytes(path, b"".join(line for number, line in enumerate(lines, 1) if number in kept))
    return report


def _marks_fit(messages: Sequence[Any], shown: Sequence[str]) -> bool:
    """Return whether the placeholders of a conversation are those of the pictures that the policy saw, and no others."""
    marks = [(message.get("role"), str(message.get("content")).count(IMAGE_MARK)) for message in messages]
    return all(role == "user" or not count for role, count in marks) and sum(n for _, n in marks) == len(shown)


def _placed(path: Path, file: Path) -> str:
    """Return a picture's path relative to the folder of `path`; a file outside that folder is copied beside `path`."""
    folder, there = Path(os.path.abspath(path.parent)), Path(os.path.abspath(file))
    if there.is_relative_to(folder):
        return there.relative_to(folder).as_posix()
    copy = folder / f"{path.stem}_images" / there.name
    if there.is_file() and not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there, copy)
    return copy.relative_to(folder).as_posix()
