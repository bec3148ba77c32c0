"""A vision model on the loopback that looks: its grades follow from the pictures that a request carries."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from scripted_server import Call, Reply, ScriptedServer, serving

CLOSE, FAR = 20.0, 50.0
"""Mean difference of two pictures, in gray levels, up to which they are alike, and from which they are not."""
GUIDANCE = "Search the name of each subject first, and take the picture whose title says that it is official."
CHECKED = {
    "facts": "now",
    "reference_binding": "reference image",
    "skill_knowledge": "in a row",
    "executable_constraints": "draw",
}
"""Words of a program that answer a question about it."""


def pictures_of(body: dict[str, Any]) -> list[np.ndarray]:
    """Return the pictures of a chat request, small and gray."""
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    seen = [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) for url in urls]
    return [np.asarray(picture.convert("L").resize((64, 64)), dtype=np.float32) for picture in seen]


def grade(image: np.ndarray, truth: np.ndarray) -> float:
    """Return 1, 0.5 or 0 by the difference of two pictures."""
    difference = float(np.abs(image - truth).mean())
    return 1.0 if difference <= CLOSE else 0.5 if difference <= FAR else 0.0


def fields_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the schema of a request asks for."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    return dict(schema.get("properties", {}))


def answer_to(body: dict[str, Any]) -> str:
    """Return what the model says: grades of a pair, WISE's grade of one picture, or a reading of the texts alone."""
    pictures, fields, said = pictures_of(body), fields_of(body), json.dumps(body["messages"])
    if len(pictures) == 2:
        given = grade(*pictures)
        light = grade(*(picture.mean(axis=0, keepdims=True) for picture in pictures))
        grades = {"faithfulness": given, "visual_correctness": given, "text_accuracy": 0.5, "aesthetics": light}
        return json.dumps({"rationale": "the pictures were compared", **grades, "text_accuracy_na": True})
    if pictures:
        return f"Score: {int(pictures[0].std() > 1)}"
    if "search_strategy" in fields:
        lists = {name: [] for name, kind in fields.items() if kind["type"] == "array"}
        return json.dumps({"trigger": "a named subject", "summary": "a scene", **lists, "search_strategy": [GUIDANCE]})
    checks = [name for name, kind in fields.items() if kind["type"] == "boolean"]
    return json.dumps({"rationale": "the text was read", **{name: CHECKED[name] in said for name in checks}})


def reply(number: int, call: Call) -> Reply:
    """Answer one chat request."""
    message = {"role": "assistant", "content": answer_to(call.body)}
    usage = {"prompt_tokens": len(call.data) // 4, "completion_tokens": 40}
    return Reply({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


@contextmanager
def grading() -> Iterator[ScriptedServer]:
    """Serve the model on a free port of the loopback; its `url` ends in /v1."""
    with serving(reply) as server:
        yield server
