"""The authors' page data of one trajectory, `trajectory_structured.json`: read, written, and made from a trajectory.

    {case_id, user_prompt, gen_prompt, steps: [think {content, action} | search_result {query, results: [{id, title}]}
     | skill_result {skill_name, key_points, guidance_preview}], num_messages}

No program of theirs reads the file, so only these names are known. A step is written with its kind as `type`; a step
without one is recognized by its fields. Fields that are not listed here are kept and written back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.files import encode, json_value, write_object
from genevolve_ray.records.published.rejections import DataError, RowFault
from genevolve_ray.records.readable import found_results, turn_parts, without_response_tags
from genevolve_ray.records.strict_text import unique_keys
from genevolve_ray.records.trajectory import Trajectory, Turn, TurnKind

STRUCTURED_NAME = "trajectory_structured.json"
MAX_STRUCTURED_BYTES = 32 << 20
"""Largest file that is read, in bytes."""
KEY_POINTS = 12
"""Most key points that are written of one skill."""
PREVIEW_CHARS = 300
"""Characters of a skill's text that are written as its preview."""
SKILL_TOOL = "query_knowledge"
_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(\S.*)")
_KINDS = {"content": "think", "query": "search_result", "results": "search_result", "skill_name": "skill_result"}
"""Kind of a step without `type`, by a field that only this kind has."""


def _text(value: Any) -> Any:
    """Return a number as text: ids are numbers in some published files."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]


class StructuredRecord(Record):
    """Provide the base of the file's objects: fields that are not known are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ThinkStep(StructuredRecord):
    """Hold what the policy thought, and the action that followed."""

    type: Literal["think"] = "think"
    content: str
    action: str = ""


class FoundItem(StructuredRecord):
    """Hold one search result."""

    id: Text = ""
    title: str = ""


class SearchStep(StructuredRecord):
    """Hold the results of one query, of texts or of pictures."""

    type: Literal["search_result"] = "search_result"
    query: str = ""
    results: tuple[FoundItem, ...] = ()


class SkillStep(StructuredRecord):
    """Hold what the policy read of one skill."""

    type: Literal["skill_result"] = "skill_result"
    skill_name: str
    key_points: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    guidance_preview: str = ""


def _kind(step: Any) -> str | None:
    named = step.get("type") if isinstance(step, Mapping) else getattr(step, "type", None)
    if isinstance(named, str):
        return named
    return next((kind for field, kind in _KINDS.items() if isinstance(step, Mapping) and field in step), None)


StructuredStep = Annotated[
    Annotated[ThinkStep, Tag("think")]
    | Annotated[SearchStep, Tag("search_result")]
    | Annotated[SkillStep, Tag("skill_result")],
    Discriminator(
        _kind,
        custom_error_type="step_kind",
        custom_error_message="is none of think, search_result and skill_result",
    ),
]


class StructuredTrajectory(StructuredRecord):
    """Hold one trajectory as the authors' page shows it."""

    case_id: Text
    user_prompt: str
    gen_prompt: str = ""
    steps: tuple[StructuredStep, ...]
    num_messages: int = Field(default=0, ge=0)


def read_structured(path: Path) -> StructuredTrajectory:
    """Return the trajectory of a file.

    Raises:
        DataError: naming the file, and the field that is wrong, for a file that is missing, too large, or none of this
            kind.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STRUCTURED_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_structured(data, str(path))


def parse_structured(data: bytes, source: str) -> StructuredTrajectory:
    """Return the trajectory of a file's content. Raises DataError as `read_structured`; `source` names the file."""
    if len(data) > MAX_STRUCTURED_BYTES:
        raise DataError(f"{source}: has more than {MAX_STRUCTURED_BYTES >> 20} MiB")
    try:
        values = json_value(json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys), "file")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8: {error}") from error
    except (ValueError, RecursionError, RowFault) as error:
        raise DataError(f"{source}: is not JSON that can be read: {error}") from error
    if not isinstance(values, Mapping):
        raise DataError(f"{source}: holds a {type(values).__name__}, not the object of one trajectory")
    try:
        return StructuredTrajectory.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("think", "search_result", "skill_result"))
        raise DataError(f"{source}: {where or 'file'}: {first['msg']}") from error


def structured_bytes(structured: StructuredTrajectory) -> bytes:
    """Return the content of the file."""
    return encode(structured.model_dump(mode="json"), indent=2) + b"\n"


def write_structured(structured: StructuredTrajectory, path: Path) -> Path:
    """Write the file and return its path; the write is atomic. Raises OSError when it cannot be written."""
    return write_object(path, structured.model_dump(mode="json"))


def structured_of(trajectory: Trajectory) -> StructuredTrajectory:
    """Return a trajectory as the authors' page shows it.

    `action` is the tool that a turn called, `answer` for the program, and the kind of the fault for a turn that cannot
    be carried out. Results of tools other than searches and skills have no step. Text that no file can hold is replaced.
    `num_messages` counts the system prompt, the request, every turn and every message after a turn.
    """
    steps = [step for turn in trajectory.turns for step in _steps(turn)]
    values = {
        "case_id": trajectory.key.request_id,
        "user_prompt": trajectory.prompt,
        "gen_prompt": trajectory.program.gen_prompt if trajectory.program else "",
        "steps": steps,
        "num_messages": 2 + sum(1 + len(turn.messages) for turn in trajectory.turns),
    }
    return StructuredTrajectory.model_validate(_whole(values))


def _steps(turn: Turn) -> list[dict[str, Any]]:
    thoughts = [text for kind, text in turn_parts(turn.text) if kind == "think"]
    action = turn.tool if turn.kind is TurnKind.TOOL_CALL else turn.kind.value
    steps: list[dict[str, Any]] = [{"type": "think", "content": "\n".join(thoughts), "action": action}]
    for found in found_results(turn.observation):
        results = [{"id": hit.id, "title": hit.title} for hit in found.hits]
        query = found.query or _query(turn)
        failure = {"error": found.error} if found.error else {}
        steps.append({"type": "search_result", "query": query, "results": results, **failure})
    if turn.kind is TurnKind.TOOL_CALL and turn.tool == SKILL_TOOL and len(steps) == 1:
        text = without_response_tags(turn.observation)
        steps.append(
            {
                "type": "skill_result",
                "skill_name": str(turn.arguments.get("skill_name", "")),
                "key_points": _key_points(text),
                "guidance_preview": text[:PREVIEW_CHARS],
            }
        )
    return steps


def _query(turn: Turn) -> str:
    value = turn.arguments.get("query", "")
    return value if isinstance(value, str) else ""


def _key_points(text: str) -> list[str]:
    """Return the bullets of a skill, or its lines where it has none."""
    lines = text.splitlines()
    bullets = [found[1].strip() for line in lines if (found := _BULLET.match(line))]
    return (bullets or [line.strip() for line in lines if line.strip()])[:KEY_POINTS]


def _whole(value: Any) -> Any:
    """Return a value without half surrogate pairs."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value
