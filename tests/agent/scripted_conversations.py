"""Conversations by name: what the policy says, turn for turn."""

from __future__ import annotations

import json
from typing import Any

from agent_fakes import answer, call
from fastapi import Response
from web_world import World, picture, text_entry
from web_world import answer as reply

IMAGES = call("image_search", query="heron")
PICTURES = {
    "heron": ["good-1", "jpeg-2.png"],
    "twice": ["jpeg-2.png", "good-3", "good-1"],
    "three": ["good-3"],
    "again": ["good-1", "good-1"],
}
NOTED = {
    "gen_prompt": " the second reference image ",
    "title": "x",
    "reference_images": [
        {"img_id": "IMG_002", "note": " two ", "why": 1},
        {"img_id": "IMG_009", "note": "never found"},
        {"img_id": "IMG_001", "note": "one"},
        "IMG_001",
        {"img_id": "IMG_003", "note": "three"},
    ],
}


def said(payload: Any, tag: str = "answer", before: str = "", after: str = "") -> str:
    """Return a turn with a payload in tags, and text around it."""
    body = payload if isinstance(payload, str) else json.dumps(payload)
    return f"{before}<{tag}>{body}</{tag}>{after}"


def tool(payload: Any, **around: str) -> str:
    return said(payload, "tool_call", **around)


SCRIPTS: dict[str, list[str | tuple[str, str]]] = {
    "several searches": [call("search", queries=["heron", "nothing here", "dawn"]), IMAGES, answer()],
    "image search": [IMAGES, answer()],
    "a repeated image": [IMAGES, call("image_search", query="twice"), answer()],
    "an image twice in a result": [call("image_search", query="again"), answer()],
    "skills": [
        call("query_knowledge", skill_name="quantity_counting"),
        call("query_knowledge", skill_name="magic"),
        call("query_knowledge"),
        call("query_knowledge", skill_name=None),
        IMAGES,
        answer(),
    ],
    "a failed query": [call("search", queries=["heron", "down"]), IMAGES, answer()],
    "a failed image search": [call("image_search", query="down"), IMAGES, answer()],
    "no images": [call("image_search", query="nothing here"), IMAGES, answer()],
    "an unknown tool": [call("paint", colour="red"), IMAGES, answer()],
    "malformed calls": [
        tool('{"name": "search", "arguments": {'),
        tool({"name": "search", "arguments": []}),
        "no action at all",
        "",
        tool('["search"]'),
        IMAGES,
        answer(),
    ],
    "coerced arguments": [
        call("search", queries="heron", lang="en"),
        call("search", queries=[" heron ", ""], top_k="2"),
        call("search", queries=[]),
        call("search", queries=[" "]),
        call("search"),
        call("search", queries=["heron"], top_k="many"),
        call("image_search", query=""),
        call("IMAGE_SEARCH", query="heron"),
        tool({"name": " image_search ", "arguments": {"query": " heron ", "n": 1}, "id": 7}),
        answer(),
    ],
    "many queries": [call("search", queries=[f"fact {i}" for i in range(7)]), answer()],
    "two calls in a turn": [f"{call('search', queries=['heron'])}\n{IMAGES}", IMAGES, answer()],
    "text around an action": [f"Let me see.\n{IMAGES}\nWaiting.", f"Done: {answer()} bye"],
    "an answer before a call": [IMAGES, f"{IMAGES}{answer()}"],
    "an over-long turn": [("<think>" + "on and on " * 40, "length"), IMAGES, answer()],
    "an over-long turn with a call": [(f"{IMAGES} and on", "length"), answer()],
    "a broken answer retried": [
        IMAGES,
        said('{"gen_prompt": "x", '),
        said('{"gen_prompt": "a\nb", "reference_images": []}'),
        said("none"),
        answer(),
    ],
    "an answer with more than is asked": [IMAGES, call("image_search", query="three"), said(NOTED)],
    "an answer without references": [said({"gen_prompt": "a heron"})],
    "the final step": [IMAGES, *[call("search", queries=[f"fact {i}"]) for i in range(9)], answer()],
    "no answer": ["nothing"] * 11,
    "a call in the last turn": [call("search", queries=["heron"])] * 11,
    "white space around": [f"\n\n {IMAGES}  \n", f" {answer()}\n"],
}


def play_world(world: World) -> None:
    """Let a world answer the searches of the conversations."""

    def search(query: str) -> Response:
        if query == "down":
            return Response(b"", 503)
        found = [text_entry(f"{query} 0"), text_entry(f"{query} 1", snippet="")]
        return reply({"searchParameters": {}, "organic": [] if query == "nothing here" else found})

    def images(query: str) -> Response:
        if query == "down":
            return Response(b"", 503)
        found = [world.entry(name) for name in PICTURES.get(query, [])]
        for entry in found:
            if query == "twice" and entry["title"].endswith("good-3"):
                entry["link"] = ""
        return reply({"searchParameters": {}, "images": found})

    world.search, world.images = search, images
    world.bodies["jpeg-2.png"] = (picture("blue", "JPEG"), {})
