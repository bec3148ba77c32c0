"""Arguments and answers as the published client reads them: coerced, sorted and cut instead of refused.

It applies to profiles with `answers: published`. What the client leaves unchecked stays unchecked: ordinals, ids and
links in a prompt, and the number of image searches. Two of its faults are not repeated. A reference that it drops
silently is named in the turn, and an answer without a prompt, from which nothing can be drawn, is invalid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.program import Program, ProgramError, ProgramFault, ReferenceImage
from genevolve_ray.tools.search import MAX_QUERIES, MAX_TOP_K

_SHOWN = 160


def client_calls(name: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of the calls that a policy's call stands for; none where nothing would be asked.

    A search beyond the most queries of one call becomes several calls. Unknown keys are dropped.

    Raises:
        ToolArgumentError: with the message that the published client shows for a value that it cannot coerce.
    """
    try:
        if name == "search":
            return list(_searches(arguments))
        if name == "image_search":
            query = (arguments.get("query") or "").strip()
            return [{"query": query} | _top_k(arguments)] if query else []
        if name == "query_knowledge":
            return [{"skill_name": (arguments.get("skill_name") or "").strip()}]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ToolArgumentError(str(error)) from error
    return [dict(arguments)]


def _searches(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    wanted = arguments.get("queries") or []
    top_k = _top_k(arguments)
    queries = [query for one in ([wanted] if isinstance(wanted, str) else wanted) if (query := (one or "").strip())]
    for start in range(0, len(queries), MAX_QUERIES):
        yield {"queries": queries[start : start + MAX_QUERIES]} | top_k


def _top_k(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of results, where one is named, within the limits of the tools."""
    named = arguments.get("top_k")
    return {"top_k": max(1, min(MAX_TOP_K, int(named)))} if named else {}


def client_program(raw: Mapping[str, Any], known_ids: Set[str], max_references: int) -> tuple[Program, str]:
    """Return the program of an answer, and a note on the references that were left out ("" for none).

    Raises:
        ProgramError: for a prompt that is missing, empty or no text.
    """
    prompt, listed = raw.get("gen_prompt") or "", raw.get("reference_images")
    if not isinstance(prompt, str):
        raise ProgramError(ProgramFault.FIELDS, f"got {type(prompt).__name__} for gen_prompt")
    if not prompt.strip():
        raise ProgramError(ProgramFault.EMPTY_PROMPT)
    given = [_reference(item) for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    unknown = [img_id for img_id, _ in given if img_id not in known_ids]
    kept = sorted(((img_id, note) for img_id, note in given if img_id in known_ids), key=lambda pair: pair[0])
    references = tuple(ReferenceImage(img_id=img_id, note=note) for img_id, note in kept[:max_references])
    said = [f"never returned: {', '.join(unknown)}"] if unknown else []
    said += (
        [f"beyond {max_references}: {', '.join(i for i, _ in kept[max_references:])}"]
        if len(kept) > max_references
        else []
    )
    note = f"references left out ({'; '.join(said)})"[:_SHOWN] if said else ""
    return Program(gen_prompt=prompt.strip(), reference_images=references), note


def _reference(item: Mapping[str, Any]) -> tuple[str, str]:
    img_id, note = item.get("img_id"), item.get("note")
    return img_id.strip() if isinstance(img_id, str) else "", note.strip() if isinstance(note, str) else ""
