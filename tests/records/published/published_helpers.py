"""Rows made up for the tests, in the published layouts; none of them is a published row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def bench_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a bench row; a change to None leaves the field out."""
    row = {
        "id": str(number),
        "question": f"a lighthouse with {number} windows",
        "gt_image": f"images/case_{number:05d}.jpg",
        "eval_type": "Knowledge-Anchored",
        "category": "architecture_landmark",
        "difficulty": "hard",
        "prompt_pool_index": 1000 + number,
        "meta": {"case_id": f"case-{number}"},
        "extra_info": {"origin": "made up"},
        "primary_skills": ["quantity_counting"],
        "secondary_skills": ["spatial_layout", "text_rendering"],
    } | changes
    return {name: value for name, value in row.items() if value is not None}


def turn(action: str, body: Any, think: str = "look it up") -> str:
    """Return an assistant turn."""
    return f"<think>{think}</think>\n<{action}>{json.dumps(body)}</{action}>"


CALL = turn("tool_call", {"name": "image_search", "arguments": {"query": "lighthouse"}})
ANSWER = turn("answer", {"gen_prompt": "as in the first reference image", "reference_images": []})
OBSERVATION = "<tool_response>\nIMG_001: <image>\n</tool_response>"


def messages(*contents: str, system: str | None = "be brief", request: str = "a lighthouse") -> list[dict[str, str]]:
    """Return a conversation: system, request, then assistant and user in turns."""
    head = [{"role": "system", "content": system}] if system is not None else []
    roles = ("assistant", "user")
    said = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return [*head, {"role": "user", "content": request}, *said]


def sft_row(number: int = 0, *contents: str, **changes: Any) -> dict[str, Any]:
    """Return an SFT row: one image search, then the answer, unless given otherwise."""
    said = contents or (CALL, OBSERVATION, ANSWER)
    marks = sum(text.count("<image>") for text in said)
    row = {
        "messages": messages(*said, request=f"a lighthouse with {number} windows"),
        "images": [f"images/traj_{number:05d}/IMG_{i + 1:03d}.jpg" for i in range(marks)],
    }
    return row | changes


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | bytes]) -> Path:
    """Write JSON lines; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """Write Parquet with a schema as pyarrow infers it."""
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path
