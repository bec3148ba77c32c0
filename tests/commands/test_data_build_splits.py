"""The parts of a data build: what its splits keep apart is what the check of the published folder compares."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genevolve_ray.commands.build_config import BuildConfig, load_build
from genevolve_ray.commands.build_output import BuildTable, publish_build
from genevolve_ray.commands.build_splits import BuildSplits, KnownEmbedder
from genevolve_ray.commands.build_stages import store_of
from genevolve_ray.data.build.audit import AuditRow
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.records.images import ImageRef

RECIPE: dict[str, Any] = {
    "eval_type": "Knowledge-Anchored",
    "family": "f",
    "gap": "g",
    "anchor": "a",
    "requirement": "r",
    "difficulty": "d",
    "recipe_id": "x",
}
Stored = Callable[[int], ImageRef]
HALVES = (
    "data.trajectory_parts.parts=[{name: sft/train, count: 2}, {name: sft/validation, count: 1}]",
    "data.request_parts.parts=[{name: rl/train, count: 2}, {name: bench/test, count: 1}]",
)


def config_of(*settings: str) -> BuildConfig:
    return load_build("atlas", ("data.recipes=100", *HALVES, *settings))


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Store pictures of noise, each by its number."""

    def put(number: int) -> ImageRef:
        noise = Image.frombytes("RGB", (16, 16), random.Random(number).randbytes(3 * 16 * 16))
        file = io.BytesIO()
        noise.resize((128, 128), Image.Resampling.BICUBIC).save(file, "PNG")
        return store_of(tmp_path).put(file.getvalue(), width=128, height=128, media_type="image/png")

    return put


def said(row_id: str, prompt: str, *looked_at: ImageRef, entities: Sequence[str] = ()) -> AuditRow:
    """Return a trajectory whose teacher saw some pictures."""
    search = (
        f"<think>so</think>\n<tool_call>{json.dumps({'name': 'search', 'arguments': {'queries': ['x']}})}</tool_call>"
    )
    program = json.dumps({"gen_prompt": "draw it", "reference_images": []})
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": search},
        {"role": "user", "content": "found\n" + "\n".join(["<image>"] * len(looked_at))},
        {"role": "assistant", "content": f"<think>done</think>\n<answer>{program}</answer>"},
    ]
    seen = tuple(ref.model_dump_json() for ref in looked_at)
    return AuditRow(
        id=row_id, prompt=prompt, looked_at=seen, answer={"messages": messages}, entities=tuple(entities), **RECIPE
    )


def asked(row_id: str, prompt: str, truth: ImageRef) -> TruthRow:
    return TruthRow(id=row_id, prompt=prompt, truth=truth.model_dump_json(), **RECIPE)


def words(number: int) -> str:
    """Return a request that shares nothing with others."""
    chance = random.Random(f"words {number}")
    return " ".join("".join(chance.choices("abcdefghijklmnoprstuvw", k=7)) for _ in range(12))


def near(text: str) -> str:
    """Return a text of nearly the same words."""
    return text + " also"


def test_a_truth_that_a_trajectory_shows_is_rejected(tmp_path: Path, stored: Stored) -> None:
    splits = BuildSplits(config_of(), store_of(tmp_path), set())
    trajectories = [said("t1", words(1), stored(1), stored(2))]
    parts, judged = splits.requests(trajectories, [asked("r1", words(2), stored(2)), asked("r2", words(3), stored(3))])

    told = {row.id: row.rejected for row in judged}
    assert told["r2"] is None
    assert told["r1"] is not None
    assert (told["r1"].stage, told["r1"].reason) == ("split", "overlaps_trajectory")
    assert told["r1"].values == ("picture t1",)
    assert [row.id for part in parts.values() for row in part] == ["r2"]


def test_trajectories_that_show_the_same_picture_are_in_one_part(tmp_path: Path, stored: Stored) -> None:
    rows = [said(f"t{n}", words(n), stored(n // 2)) for n in range(4)]
    parts, rest = BuildSplits(config_of(), store_of(tmp_path), set()).trajectories(rows)

    # No single row is left for the part of one row.
    assert len(parts["sft/train"]) == 2
    assert len({row.looked_at for row in parts["sft/train"]}) == 1
    assert not parts["sft/validation"]
    assert len({row.looked_at for row in rest}) == 1


def test_paraphrases_are_in_one_part(tmp_path: Path, stored: Stored) -> None:
    config = config_of("data.trajectory_parts.limits={text_jaccard: 1.0, text_cosine: 0.8}")
    texts = [words(1), near(words(1)), words(2), near(words(2))]
    parts, _ = BuildSplits(config, store_of(tmp_path), set()).trajectories(
        [said(f"t{n}", text) for n, text in enumerate(texts)]
    )

    assert {row.id for row in parts["sft/train"]} in ({"t0", "t1"}, {"t2", "t3"})
    assert not parts["sft/validation"]


def test_rows_of_no_part_of_requests_have_a_reason(tmp_path: Path, stored: Stored) -> None:
    splits = BuildSplits(config_of(), store_of(tmp_path), set())
    parts, judged = splits.requests([], [asked(f"r{n}", words(n), stored(n)) for n in range(5)])

    assert sum(map(len, parts.values())) == 3
    assert [row.rejected.reason for row in judged if row.rejected] == ["surplus"] * 2
    assert {row.rejected.stage for row in judged if row.rejected} == {"split"}


def test_the_check_of_what_was_split_finds_no_leaks(tmp_path: Path, stored: Stored) -> None:
    config = config_of(
        "data.trajectory_parts.parts=[{name: sft/train, share: 0.4}, {name: sft/validation, share: 0.2}]",
        "data.trajectory_parts.limits={text_jaccard: 0.9, text_cosine: 0.8}",
        "data.request_parts.parts=[{name: rl/train, share: 0.5}, {name: bench/test}]",
    )
    splits = BuildSplits(config, store_of(tmp_path), set())
    # Twins by words, neighbors by pictures, and a truth that a trajectory has shown.
    rows = [said(f"t{n:02}", words(n) if n % 5 else near(words(n + 1)), stored(n // 2)) for n in range(20)]
    placed, rest = splits.trajectories(rows)
    shown = ImageRef.model_validate_json(placed["sft/train"][0].looked_at[0])
    truths = [asked(row.id, row.prompt, stored(100 + n) if n else shown) for n, row in enumerate(rest)]
    parts, judged = splits.requests([row for part in placed.values() for row in part], truths)
    table = BuildTable(rows={row.id: row for row in [*rows, *judged]})
    told = publish_build(config, tmp_path, table, splits, placed, parts)

    assert all(told["parts"][name]["rows"] for name in ("sft/train", "sft/validation", "rl/train", "bench/test"))
    assert told["leaks"]["clean"], told["leaks"]["leaks"]
    assert told["leaks"]["limits"]["text_cosine"] == 0.8
    assert sum(row.rejected is not None for row in judged) == 1


def test_an_embedder_is_asked_once_for_each_text() -> None:
    class Counting(HashingEmbedder):
        asked: list[str] = []

        async def embed(self, texts: Sequence[str]) -> Any:
            self.asked += texts
            return await super().embed(texts)

    inner = Counting()
    embedder = KnownEmbedder(inner)
    first = asyncio.run(embedder.embed(["a", "b", "a"]))
    again = asyncio.run(embedder.embed(["b", "c"]))

    assert inner.asked == ["a", "b", "c"]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[1], again[0])
