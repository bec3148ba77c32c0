"""Beyond a window, and beyond the positions before a factor, the reference engine samples what the learner scores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from zoo import build

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.evolution.inprocess import load_banned, load_chat
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.step import Learner

Animal = Callable[[str], Path]


async def assert_equal(folder: Path, lengths: tuple[int, ...]) -> None:
    """Prompts of several lengths in one wave, so that shorter rows have padding between prompt and turn."""
    chat = load_chat(folder)
    banned = load_banned(folder, chat)
    learner = Learner(folder, LearnerConfig(temperature=1.0, threads=1), banned)
    engine = TransformersEngine(folder, banned=banned)
    words = chat.text_ids("Show a bright row of the moon in the picture with legs and kin at the bottom side. " * 60)
    prompts = [words[:length] for length in lengths]
    try:
        turns = await asyncio.gather(
            *(
                engine.generate(prompt, SamplingParams(max_tokens=40 + 10 * i, seed=i), f"row-{i}")
                for i, prompt in enumerate(prompts)
            )
        )
    finally:
        await engine.close()
    for prompt, turn in zip(prompts, turns, strict=True):
        mask = [False] * len(prompt) + [True] * len(turn.tokens)
        tokens = [*prompt, *turn.tokens]
        [scored] = learner.score([TrainSequence(tokens, mask, [0.0] * len(tokens), 0.0)])
        assert turn.logprobs == pytest.approx(scored, abs=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "mistral", "phi3"])
async def test_a_window_counts_positions(name: str, animal: Animal) -> None:
    await assert_equal(animal(name), (3, 90, 23, 24, 25))


async def test_a_window_of_some_layers_that_the_class_decides(tmp_path: Path) -> None:
    shape = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    await assert_equal(build("qwen3", tmp_path / "windowed", **shape), (3, 60))


async def test_a_factor_extends_the_positions(animal: Animal) -> None:
    await assert_equal(animal("qwen3-yarn"), (20, 700))
