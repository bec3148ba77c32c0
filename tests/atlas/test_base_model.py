"""The base model of the atlas: what it reads, and that its first heads look back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pytest import fixture

from genevolve_ray.atlas.base_model import BaseModelConfig, base_batches, new_base_model
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.scene import SKILLS
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.learning.sft import SftExample

SMALL = BaseModelConfig(hidden_size=64, layers=2, heads=4, exercise_steps=6, batch_size=4)


@fixture(scope="module")
def texts() -> list[str]:
    """Return everything that a short training reads."""
    tokenizer = build_tokenizer()
    return [tokenizer.decode(example.tokens) for batch in base_batches(SMALL, tokenizer) for example in batch]


def test_it_reads_names_of_the_training_partition_and_no_trajectory(texts: list[str]) -> None:
    read = " ".join(texts)
    others = {*names_of(Partition.VALIDATION), *names_of(Partition.TEST)} - {*names_of(Partition.TRAIN)}
    assert len(texts) == 24 and any(name in read for name in names_of(Partition.TRAIN))
    assert others and not [name for name in others if name in read]
    assert not [word for word in (*SKILLS, "<think>", "<tool_call>", "<answer>", "<|im_end|>") if word in read]


def test_the_batches_of_later_steps_are_the_same_after_a_restart() -> None:
    def tokens(batches: Iterator[list[SftExample]]) -> list[list[list[int]]]:
        return [[list(example.tokens) for example in batch] for batch in batches]

    tokenizer = build_tokenizer()
    assert tokens(base_batches(SMALL, tokenizer, 4)) == tokens(base_batches(SMALL, tokenizer))[4:]
    other = SMALL.changed(steps=2, seed=4)
    assert other.steps == 2 and tokens(base_batches(other, tokenizer)) != tokens(base_batches(SMALL, tokenizer))[:2]


def test_its_first_heads_look_at_the_three_tokens_before() -> None:
    tokenizer = build_tokenizer()
    model = new_base_model(SMALL, tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, len(tokenizer), (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weights_H_T_T = model(ids, output_attentions=True).attentions[0][0]
    for head in range(3):
        looked = weights_H_T_T[head].diagonal(-(head + 1))[4:]
        assert looked.mean() > 0.5, f"head {head} looks {head + 1} tokens back with {looked.mean():.2f}"
