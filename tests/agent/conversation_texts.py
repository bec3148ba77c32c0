"""The user messages of the scripted conversations, as the published wire has them, in our own example words."""

from __future__ import annotations

import hashlib

FINAL_STEP = 'Last chance.\n{"gen_prompt": "..."} in <answer></answer>, now.\n'
FORMAT_ERROR = "Format error, unreadable: write <tool_call>{...}</tool_call> or <answer>{...}</answer>."
SKILL = "# Counting\n\nCount aloud.\n\n## Instructions\nUse number words.\n"


def wrapped(body: str) -> str:
    return f"<tool_response>\n{body}\n</tool_response>"


def texts(*queries: str) -> str:
    """Return the blocks of text searches; the second result of each has no snippet."""
    blocks = []
    for query in queries:
        lines = [f"--- search result for [{query}] ---"]
        for place in range(0 if query == "nothing here" else 2):
            lines += [f"{place + 1}. title: {query} {place}", "  url: https://page.example/a"]
            lines += ["  snippet: a snippet"] if place == 0 else []
        blocks.append("\n".join([*lines, "--- end of search result ---"]))
    return "\n".join(blocks)


def images(query: str, world: str, *found: str) -> str:
    """Return the block of an image search; a result is written ID=NAME, or ID=NAME! without a page."""
    lines = [f"--- image search result for [{query}] ---"]
    for one in found:
        img_id, _, name = one.rstrip("!").partition("=")
        url = f"{world}/p/{name}"
        digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()[:24]
        suffix = ".png" if name.endswith(".png") else ".jpg"
        lines += [f"{img_id}: title: picture {name}", f"  url: {url}"]
        lines += [f"  local_path: /tmp/genevolve_images/{digest}{suffix}"]
        lines += [] if one.endswith("!") else [f"  page_url: https://page.example/{name}"]
    return "\n".join([*lines, "--- end of image search result ---"])


def expected(world: str) -> dict[str, list[str]]:
    """Return the user messages after the request of each conversation."""
    herons = wrapped(images("heron", world, "IMG_001=good-1", "IMG_002=jpeg-2.png"))
    error, heron = wrapped(FORMAT_ERROR), wrapped(texts("heron"))
    skill = wrapped(f"## Skill Guidance\n\n=== Skill: quantity_counting ===\n{SKILL}")
    no_skill = wrapped("Unknown skill 'magic'. Available skills: quantity_counting")
    unnamed = wrapped("Unknown skill ''. Available skills: quantity_counting")
    twice = images("twice", world, "IMG_002=jpeg-2.png", "IMG_003=good-3!", "IMG_001=good-1")
    down = wrapped(f"{texts('heron')}\n--- search error for [down]: service unavailable ---")
    not_a_number = "[tool error] search: invalid literal for int() with base 10: 'many'"
    return {
        "several searches": [wrapped(texts("heron", "nothing here", "dawn")), herons],
        "image search": [herons],
        "a repeated image": [herons, wrapped(twice)],
        "an image twice in a result": [wrapped(images("again", world, "IMG_001=good-1", "IMG_001=good-1"))],
        "skills": [skill, no_skill, unnamed, unnamed, herons],
        "a failed query": [down, herons],
        "a failed image search": [wrapped(images("down", world)), herons],
        "no images": [wrapped(images("nothing here", world)), herons],
        "an unknown tool": [wrapped("Unknown tool: paint"), herons],
        "malformed calls": [error, wrapped("[search] empty queries"), *([error] * 3), herons],
        "coerced arguments": [
            heron,
            heron,
            wrapped("[search] empty queries"),
            wrapped("[search] no results"),
            wrapped("[search] empty queries"),
            wrapped(not_a_number),
            wrapped(images("", world)),
            wrapped("Unknown tool: IMAGE_SEARCH"),
            herons,
        ],
        "many queries": [wrapped(texts(*(f"fact {i}" for i in range(7))))],
        "two calls in a turn": [heron, herons],
        "text around an action": [herons],
        "an answer before a call": [herons],
        "an over-long turn": [error, herons],
        "an over-long turn with a call": [herons],
        "a broken answer retried": [herons, error, error, error],
        "an answer with more than is asked": [herons, wrapped(images("three", world, "IMG_003=good-3"))],
        "an answer without references": [],
        "the final step": [herons, *(wrapped(texts(f"fact {i}")) for i in range(9)), FINAL_STEP],
        "no answer": [*([error] * 10), FINAL_STEP],
        "a call in the last turn": [*([heron] * 10), FINAL_STEP],
        "white space around": [herons],
    }
