"""The judge model of the atlas: its attempts, the answers it learns, and its verdicts through `LocalVlmJudge` on vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genevolve_ray.atlas.judge_attempts import (
    BLANK,
    KINDS_OF_ATTEMPT,
    TEACHER,
    AttemptMaker,
    GradedAttempt,
    with_wrong_words,
)
from genevolve_ray.atlas.judge_model import (
    JudgeModelConfig,
    answer_text,
    drawn_attempts,
    grade,
    judge_example,
    judge_settings,
    judge_tokenizer,
    question,
    train_judge_model,
)
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.scene import KINDS
from genevolve_ray.engines.chat_vllm import CONSTRAINT
from genevolve_ray.engines.protocol import ChatMessage
from genevolve_ray.engines.vllm_settings import vllm_environment
from genevolve_ray.judges.kscore import read_kscore
from genevolve_ray.judges.local_judge import LocalVlmJudge
from genevolve_ray.judges.rubrics import KSCORE_SCHEMA
from genevolve_ray.models.image_tokens import ImageTokens, load_image_tokens
from genevolve_ray.records.verdict import UNEXAMINED

SMALL = JudgeModelConfig(
    hidden_size=64, layers=1, heads=2, intermediate_size=64, tower_width=32, tower_layers=1, requests=1, worlds=1
)


@lru_cache
def attempts(partition: Partition = Partition.TEST, count: int = 4) -> list[GradedAttempt]:
    maker = AttemptMaker(partition)

    async def made() -> list[GradedAttempt]:
        return [one for number in range(count) for one in await maker.attempts(1, number)]

    return asyncio.run(made())


@pytest.fixture(scope="module")
def image_tokens(tmp_path_factory: pytest.TempPathFactory) -> ImageTokens:
    folder = tmp_path_factory.mktemp("shape")
    SMALL.write_shape(SMALL.new_model(judge_tokenizer(), 0), folder)
    tokens = load_image_tokens(folder)
    assert tokens is not None
    return tokens


def test_an_answer_is_read_back_as_the_verdict_on_the_scale_of_the_judge() -> None:
    for attempt in attempts():
        read = read_kscore(answer_text(attempt), out_of_range="refuse")
        assert read.scores.model_dump() == {
            name: grade(value) for name, value in attempt.verdict.image.model_dump().items()
        }
        assert not read.flags and "things against" in read.rationale


@pytest.mark.timeout(600)  # Importing vLLM takes long on a busy machine.
def test_vllm_allows_every_token_of_an_answer_and_none_with_spaces() -> None:
    """A model that learned another form would find none of its tokens allowed, and no answer of it could be read."""
    from vllm.config import StructuredOutputsConfig
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    tokenizer: Any = judge_tokenizer()
    settings = StructuredOutputsConfig(**CONSTRAINT)
    config: Any = SimpleNamespace(structured_outputs_config=settings, model_config=None, speculative_config=None)
    backend = XgrammarBackend(config, tokenizer=tokenizer, vocab_size=len(tokenizer))

    def allowed(text: str) -> bool:
        grammar = backend.compile_grammar(StructuredOutputOptions.JSON, json.dumps(KSCORE_SCHEMA))
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return grammar.accept_tokens("answer", tokens) and grammar.is_terminated()

    for text in map(answer_text, attempts()):
        assert allowed(text) and not allowed(json.dumps(json.loads(text)))


@pytest.mark.parametrize(("score", "expected"), [(0.0, 0), (0.2, 0), (0.3, 0.5), (0.9, 1), (1.0, 1), (None, None)])
def test_a_grade_is_the_nearest_of_the_three(score: float | None, expected: float | None) -> None:
    assert grade(score) == expected


def test_attempts_get_worse_from_the_teacher_to_a_blank_picture() -> None:
    def mean(kind: str) -> float:
        return float(np.mean([one.verdict.image.visual_correctness for one in attempts() if one.kind == kind]))

    assert [one.kind for one in attempts()[: len(KINDS_OF_ATTEMPT)]] == list(KINDS_OF_ATTEMPT)
    assert mean(TEACHER) > max(mean("random program"), mean("wrong reference"), mean(BLANK))
    assert sum(KINDS_OF_ATTEMPT.values()) == pytest.approx(1)


def test_the_same_attempt_is_made_again() -> None:
    again = asyncio.run(AttemptMaker(Partition.TEST).attempts(1, 0))
    assert again == attempts()[: len(again)]


def test_training_and_held_out_attempts_have_no_name_in_common() -> None:
    drawn = asyncio.run(drawn_attempts(SMALL, AttemptMaker(Partition.TRAIN), step=0))
    assert all(one.request.id.startswith(f"{Partition.TRAIN.value}-") for one in drawn)
    assert not set(names_of(Partition.TRAIN)) & set(names_of(Partition.TEST))
    for partition, found in ((Partition.TRAIN, drawn), (Partition.TEST, attempts())):
        parts = {part["name"] for one in found for part in one.request.meta["truth"]["scene"]["parts"]}
        known = {*names_of(partition), *KINDS, "moon", "gem", "flag", "wheel"}
        assert parts <= known


def test_wrong_words_change_every_prompt() -> None:
    rng = np.random.default_rng(0)
    for attempt in attempts():
        assert with_wrong_words(attempt.program.gen_prompt, rng) != attempt.program.gen_prompt
    assert with_wrong_words("draw Ulion", rng).startswith("draw Ulion; the text '")


class Recorder:
    """A chat model that keeps what it is asked, and answers as the first attempt's verdict."""

    identity, sees = "recorder", True

    def __init__(self) -> None:
        self.asked: list[Sequence[ChatMessage]] = []

    async def chat(
        self, messages: Sequence[ChatMessage], *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> str:
        self.asked.append(messages)
        return answer_text(attempts()[0])

    def check_health(self) -> None: ...
    async def aclose(self) -> None: ...


async def test_a_model_learns_the_question_that_the_judge_asks() -> None:
    chat, one = Recorder(), (await asyncio.to_thread(attempts))[0]
    judge = LocalVlmJudge(judge_settings("none"), chat)
    verdict = await judge.judge(one.request, one.picture, one.truth, one.program, one.references)
    assert chat.asked == [question(one)]
    assert verdict.flags == (UNEXAMINED,)


def test_an_example_teaches_the_answer_alone_in_few_tokens(image_tokens: ImageTokens) -> None:
    tokenizer = judge_tokenizer()
    for attempt in attempts():
        example = judge_example(attempt, tokenizer, image_tokens)
        taught = [token for token, wanted in zip(example.tokens, example.mask, strict=True) if wanted]
        assert tokenizer.decode(taught) == f"{answer_text(attempt)}<|im_end|>"
        assert len(taught) <= 24 and len(example.tokens) <= 128


def test_heads_of_a_new_model_look_at_the_same_place_of_the_other_picture(image_tokens: ImageTokens) -> None:
    example = judge_example(attempts()[0], judge_tokenizer(), image_tokens)
    assert example.images is not None
    model: Any = JudgeModelConfig(layers=1).new_model(judge_tokenizer(), 0)
    model.set_attn_implementation("eager")
    ids = torch.tensor([example.tokens])
    with torch.no_grad():
        seen = model(
            input_ids=ids,
            pixel_values=torch.cat([one.patches for one in example.images.pictures]),
            image_grid_thw=torch.tensor([one.grid for one in example.images.pictures]),
            mm_token_type_ids=(ids == image_tokens.id).int(),
            output_attentions=True,
        )
    places = (ids[0] == image_tokens.id).nonzero().ravel()
    first, second = places.chunk(2)
    heads_H = seen.attentions[0][0][:, second, first].mean(dim=1)
    assert heads_H[len(heads_H) // 2 :].min() > 0.7
    assert heads_H[: len(heads_H) // 2].max() < 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_model_of_some_steps_judges_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form is learned early, and vLLM holds the answers to it; that grades agree takes a whole training."""
    losses: list[float] = []
    recipe = JudgeModelConfig(requests=4, attempts=3).changed(steps=80)
    await asyncio.to_thread(train_judge_model, recipe, tmp_path / "judge", lambda _, step: losses.append(step.loss))
    assert losses[-1] < 0.5
    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)  # Ends with the test.
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_mib": 64, "max_concurrent": 8}
    judge = LocalVlmJudge(judge_settings(tmp_path / "judge", **settings))
    try:
        found = await asyncio.to_thread(attempts, Partition.TEST, 1)
        asked = [judge.judge(one.request, one.picture, one.truth, one.program, one.references) for one in found]
        verdicts = await asyncio.gather(*asked)
    finally:
        await judge.aclose()
    for verdict in verdicts:
        assert {0.0, 0.5, 1.0, None} >= set(verdict.image.model_dump().values())
        assert verdict.flags == (UNEXAMINED,) and "things against" in verdict.rationale
        assert verdict.judge == judge.identity
