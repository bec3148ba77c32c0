"""Valid trajectories as SFT rows, `{messages, images}`, to train on successful rollouts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.published.files import encode, write_bytes
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.results import AgentRow
from genevolve_ray.records.published.trajectories import IMAGE_MARK, read_sft
from genevolve_ray.records.trajectory import Termination


def write_sft_rows(path: Path, rows: Iterable[ResultRow]) -> RejectionReport:
    """Write the agent rows that hold a program as SFT rows, in order, and return the report of `read_sft`.

    Observations are text, so rows have no images. A conversation in which the policy wrote an image placeholder is left
    out. So is a row that the reader would reject (a turn that broke the protocol before the answer). The report names
    the reasons.

    Raises:
        OSError: when the file cannot be written.
    """
    lines = []
    for row in rows:
        agent = AgentRow.read(row.values)
        messages: Any = row.values.get("messages")
        if agent.termination is not Termination.ANSWER or not row.has_program or not isinstance(messages, list):
            continue
        if any(IMAGE_MARK in str(message.get("content")) for message in messages):
            continue
        lines.append(encode({"id": row.id, "messages": messages, "images": []}) + b"\n")
    write_bytes(path, b"".join(lines))
    report = RejectionReport()
    kept = {row.number for row in read_sft([path], report)}
    if len(kept) < len(lines):
        write_bytes(path, b"".join(line for number, line in enumerate(lines, 1) if number in kept))
    return report
