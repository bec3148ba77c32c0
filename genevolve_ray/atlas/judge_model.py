"""A judge model of the atlas: a small Qwen3-VL that learns the verdicts of the pixel judge, for `LocalVlmJudge`.

It stands in the place of a large vision-language model. It sees what that one sees (the generated picture, the ground
truth and the request) and answers in the same JSON.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field

from genevolve_ray.atlas.judge_attempts import KINDS_OF_ATTEMPT, AttemptMaker, GradedAttempt
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.pixels import letters, load, look_at, view
from genevolve_ray.atlas.recipe_training import OnStep, train_recipe
from genevolve_ray.atlas.seeing_recipe import SeeingRecipe
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.engines.chat import conversation
from genevolve_ray.engines.protocol import ChatMessage
from genevolve_ray.judges.kscore import kscore_messages
from genevolve_ray.judges.local_judge import LocalVlmJudgeConfig
from genevolve_ray.judges.rubrics import NO_TEXT, load_rubric
from genevolve_ray.judges.seeing import SeeingConfig, shown_pictures
from genevolve_ray.learning.config import OptimizerName
from genevolve_ray.models.image_tokens import ImageTokens, load_image_tokens
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.verdict import WEIGHTS, ScoreFormula

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from genevolve_ray.learning.sft import SftExample

RUBRIC = "Grade image 1 against image 2, the ground truth."
"""The whole system message; the grades are learned, not explained."""
RUBRIC_NAME = f"{__name__}:RUBRIC"
_HEX = "0123456789abcdef"
_PIECES = (
    RUBRIC,
    "Image 1, generated:",
    "Image 2, ground truth:",
    "[begin request ",
    "[end request ",
    "]\n",
    '{"rationale":"',
    '","faithfulness":',
    *(f',"{name}":' for name in (*list(WEIGHTS)[1:], NO_TEXT)),
    "0.5",
    "true}",
    "false}",
    " things against ",
    " letters against ",
    *(one + other for one in _HEX for other in _HEX),
)
"""Fixed phrases of the question and the answer, one token each, and pairs of digits of the marks around the request."""
_BETWEEN = 3
"""Tokens between the two pictures: the end of the first, a phrase, the start of the second."""
_MOST = 9
"""Things and letters beyond this number are not counted."""


class JudgeModelConfig(SeeingRecipe):
    """Configure the whole recipe of the judge model: model, attempts, optimization."""

    hidden_size: int = Field(default=192, ge=32)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=6, ge=1)
    intermediate_size: int = Field(default=512, ge=32)
    image_side: int = Field(default=128, ge=32)
    tower_width: int = Field(default=128, ge=32)
    tower_layers: int = Field(default=2, ge=1)
    seed: int = Field(default=17, ge=0)
    training_steps: int = Field(default=480, ge=1)
    requests: int = Field(default=6, ge=1)
    """Requests of one step."""
    attempts: int = Field(default=4, ge=1, le=len(KINDS_OF_ATTEMPT))
    """Attempts at each of them, of different kinds."""
    worlds: int = Field(default=16, ge=1)

    @property
    def between(self) -> int | None:
        """Number of tokens between the two pictures."""
        return _BETWEEN

    @property
    def steps(self) -> int:
        """Number of optimization steps."""
        return self.training_steps

    def changed(self, *, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with another number of steps, or another seed."""
        given = {"training_steps": steps, "seed": seed}
        return type(self).model_validate(self.model_dump() | {k: v for k, v in given.items() if v is not None})


def judge_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of judge models: that of the world with sight, and the phrases of a judge's conversation."""
    return build_tokenizer(sight=True, more=_PIECES)


def judge_settings(folder: str | Path, **model: Any) -> LocalVlmJudgeConfig:
    """Return the settings of a `LocalVlmJudge` that runs a trained folder; `model` are further ones of its chat model.

    The program is not examined: the model has learned the grades of pictures alone.
    """
    return LocalVlmJudgeConfig(
        model={"model": str(folder), **model},
        kscore_rubric=RUBRIC_NAME,
        formula=ScoreFormula.PAPER,
        sufficiency_check="off",
        max_tokens=64,
    )


def answer_text(attempt: GradedAttempt) -> str:
    """Return the answer that a judge model should give: the counts of things and letters, then the grades.

    It is JSON as `KSCORE_SCHEMA` prescribes, without spaces between its parts: so vLLM constrains answers
    (`engines/chat_vllm.py`), and a model that has learned spaces finds none of its tokens allowed.
    """
    scores = {name: grade(value) for name, value in attempt.verdict.image.model_dump().items()}
    said = {"rationale": counts_text(attempt.picture, attempt.truth), **scores}
    said[NO_TEXT] = said["text_accuracy"] is None
    said["text_accuracy"] = said["text_accuracy"] or 0
    return json.dumps(said, separators=(",", ":"))


def grade(value: float | None) -> float | int | None:
    """Return a score as the nearest of 0, 0.5 and 1, whole numbers without a point."""
    return None if value is None else {0.0: 0, 0.5: 0.5, 1.0: 1}[round(2 * value) / 2]


def counts_text(picture: bytes, truth: bytes) -> str:
    """Return how many things and letters the pixel judge sees in two pictures."""
    seen, wanted = look_at(load(picture)), view(truth)
    pairs = [len(seen.things), len(wanted.things), len(letters(seen.pixels)), len(letters(wanted.pixels))]
    few = [min(count, _MOST) for count in pairs]
    return f"{few[0]} things against {few[1]}, {few[2]} letters against {few[3]}"


def question(attempt: GradedAttempt) -> list[ChatMessage]:
    """Return the conversation in which `LocalVlmJudge` asks about an attempt under `judge_settings`."""
    seeing, pictures = SeeingConfig(), {"generated": attempt.picture, "ground-truth": attempt.truth}
    shown = shown_pictures(pictures, seeing.picture_limits, "judge", attempt.request.id)
    return kscore_messages(load_rubric(RUBRIC_NAME), attempt.request.prompt, *shown, max_chars=seeing.text_chars)


def judge_example(attempt: GradedAttempt, tokenizer: PreTrainedTokenizerFast, images: ImageTokens) -> SftExample:
    """Return an attempt as a judge model reads it, and the answer that it should give."""
    from genevolve_ray.learning.sft import SftExample
    from genevolve_ray.learning.vision import image_inputs

    turns, pictures = conversation(question(attempt))
    asked = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    told = f"{answer_text(attempt)}{tokenizer.eos_token}"
    before, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (asked, told))
    tokens, _ = images.expand(before, [images.grid(picture.width, picture.height) for picture in pictures])
    mask = [False] * len(tokens) + [True] * len(answer)
    return SftExample(tokens + answer, mask, image_inputs(pictures, images.processor))


def train_judge_model(
    config: JudgeModelConfig, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False
) -> None:
    """Train a judge model from random weights and write it to `folder` in HF layout, together with its provenance.

    It resumes where the folder holds the same training unfinished. Raises as `train_recipe`.
    """
    from genevolve_ray.learning.sft import SftConfig

    tokenizer = judge_tokenizer()
    model = config.new_model(tokenizer, config.seed)
    with tempfile.TemporaryDirectory(prefix="genevolve-judge-") as beginning:
        config.write_shape(model, beginning)
        images = load_image_tokens(beginning)
        assert images is not None
        settings = SftConfig(steps=config.steps, lr=config.lr, final_lr_fraction=0.02, optimizer=OptimizerName.MUON)
        batches = partial(judge_batches, config, tokenizer, images)
        save = partial(config.save, model, tokenizer)
        train_recipe(config, model, settings, batches, save, folder, on_step, overwrite=overwrite)


def judge_batches(
    config: JudgeModelConfig, tokenizer: PreTrainedTokenizerFast, images: ImageTokens, done: int = 0
) -> Iterator[list[SftExample]]:
    """Yield the examples of every step after the first `done`."""
    maker = AttemptMaker(Partition.TRAIN, worlds=config.worlds)
    for step in range(done, config.steps):
        attempts = asyncio.run(drawn_attempts(config, maker, step))
        yield [judge_example(attempt, tokenizer, images) for attempt in attempts]


async def drawn_attempts(config: JudgeModelConfig, maker: AttemptMaker, step: int) -> list[GradedAttempt]:
    """Return the attempts of a step."""
    rng = np.random.default_rng(derive_seed(config.seed, "judged", step))
    found: list[GradedAttempt] = []
    for _ in range(config.requests):
        kinds = rng.choice(
            list(KINDS_OF_ATTEMPT), size=config.attempts, replace=False, p=list(KINDS_OF_ATTEMPT.values())
        )
        world = derive_seed(config.seed, "judged world", int(rng.integers(config.worlds)))
        found += await maker.attempts(world, int(rng.integers(1 << 30)), [str(kind) for kind in kinds])
    return found
