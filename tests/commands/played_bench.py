"""A data set of any size, a configuration over the played world, and a policy that paints."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from played_world import World, answer, png, turn


def write_data(folder: Path, count: int) -> Path:
    """Write bench rows `case-000`, ... with a ground-truth picture each, and a field that nobody knows."""
    folder.mkdir(parents=True)
    (folder / "gt").mkdir()
    lines = []
    for number in range(count):
        (folder / "gt" / f"{number}.png").write_bytes(png(number))
        row = {
            "id": f"case-{number:03d}",
            "question": f"heron number {number}",
            "gt_image": f"gt/{number}.png",
            "eval_type": ["Knowledge-Anchored", "Quality-Anchored"][number % 2],
            "category": "vehicle_transport",
            "difficulty": "hard",
            "extra": {"kept": number},
        }
        lines.append(json.dumps(row))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_config(path: Path, world: World, *, attempts: int = 1, price: float = 0.0, **inference: object) -> Path:
    """Write a configuration whose services are those of a played world."""
    remote = {"url": world.url, "attempts": attempts, "backoff_s": 0.0, "cooldown_s": 0.0}
    priced = remote | ({"price": {"per_image": price}} if price else {})
    config = {
        "name": "played",
        "profile": "release",
        "learner": {"temperature": 0.7},
        "policy": {"model": "nowhere"},
        "requests": {"type": "genevolve_ray.atlas.sources:AtlasRequests"},
        "tools": {"type": "http_plugins:Tools"},
        "renderer": {"type": "http_plugins:Renderer", "config": priced},
        "judge": {"type": "http_plugins:Judge", "config": remote},
        "inference": {"in_flight": 16, **inference},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    endpoint = {"model": "played", **remote, "url": f"{world.url}/v1"}
    path.with_name("policy.yaml").write_text(yaml.safe_dump(endpoint), encoding="utf-8")
    return path


def painter(messages: list[dict[str, str]]) -> str:
    """Search pictures, then answer with a prompt that names the request."""
    if len(messages) < 4:
        return turn("image_search", query=messages[1]["content"])
    return answer(f"{messages[1]['content']} like the first reference image")
