"""The comparison with TRL: larger models that behave alike, turns in lockstep, rows with goals, exponents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.embedded import Shape, embedded
from benchmarks.growth import exponent, table
from benchmarks.sides import Step
from benchmarks.trl_baseline import IN_PROCESS, ON_RAY, TRANSFORMERS, VLLM, comparison, fastest, reward_gap
from benchmarks.trl_sides import LockstepEngine
from genevolve_ray.engines.protocol import FinishReason, Generation, SamplingParams

END = 2


def tiny_policy() -> Any:
    from genevolve_ray.learning.new_policy import new_qwen3

    return new_qwen3(vocabulary=48, hidden_size=32, layers=1, heads=1, head_dim=32, intermediate_size=48, seed=3).eval()


def test_an_embedded_policy_behaves_like_the_trained_one() -> None:
    import torch

    policy, ids = tiny_policy(), torch.arange(1, 30)[None]
    larger = embedded(policy, Shape(hidden=64, heads=2, feed_forward=80, layers=3))
    with torch.no_grad():
        difference = (larger(ids).logits - policy(ids).logits).abs().max()
    assert larger.num_parameters() > 3 * policy.num_parameters()
    assert difference < 1e-4


def test_layers_that_an_embedding_adds_can_learn() -> None:
    import torch

    larger = embedded(tiny_policy(), Shape(hidden=64, heads=2, feed_forward=80, layers=2))
    larger(torch.arange(1, 30)[None]).logits.logsumexp(-1).sum().backward()
    added = larger.get_parameter("model.layers.1.self_attn.o_proj.weight")
    assert added.grad is not None
    assert bool((added.grad[:32] != 0).all())


def test_a_policy_is_not_embedded_in_a_smaller_model() -> None:
    with pytest.raises(ValueError, match="smaller than the policy"):
        embedded(tiny_policy(), Shape(hidden=16, heads=1, feed_forward=48, layers=1))


class Samples:
    """Return a fixed number of tokens for each prompt, and keep the calls."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.calls = tokens, list[tuple[list[list[int]], int]]()

    def __call__(self, prompts: list[list[int]], limit: int) -> tuple[list[list[int]], None]:
        self.calls.append((prompts, limit))
        return [self.tokens for _ in prompts], None


def play(engine: LockstepEngine, turns: list[int], max_tokens: int = 9) -> list[Generation]:
    async def episode(number: int, count: int) -> Generation:
        for turn in range(count):
            sampling = SamplingParams(max_tokens=max_tokens - number)
            last = await engine.generate([number, turn], sampling, f"{number}/{turn}")
        engine.leave()
        return last

    async def all_episodes() -> list[Generation]:
        engine.begin(len(turns))
        return await asyncio.gather(*(episode(number, count) for number, count in enumerate(turns)))

    return asyncio.run(all_episodes())


def test_a_turn_is_sampled_for_all_running_episodes_at_once() -> None:
    samples = Samples([5, END])
    play(LockstepEngine(samples, 100, END), [1, 3, 2])
    assert [sorted(prompt[0] for prompt in prompts) for prompts, _ in samples.calls] == [[0, 1, 2], [1, 2], [1]]


def test_a_turn_is_cut_at_its_own_limit() -> None:
    samples = Samples([5, 5, END])
    whole, cut = play(LockstepEngine(samples, 100, END), [1, 1], max_tokens=3)
    assert samples.calls[0][1] == 3
    assert (whole.tokens, whole.finish) == ((5, 5, END), FinishReason.STOP)
    assert (cut.tokens, cut.finish) == ((5, 5), FinishReason.LENGTH)


def step(seconds: float, tokens: int = 1000, **rewards: float) -> Step:
    return Step(seconds, 2 * seconds, seconds / 2, tokens, tokens // 2, rewards or {"a": 0.5, "b": 0.3})


def test_time_is_compared_for_each_token_with_the_faster_baseline() -> None:
    steps = {
        TRANSFORMERS: [step(5.0), step(6.0)],
        VLLM: [step(4.0), step(4.0)],
        IN_PROCESS: [step(2.0), step(2.4)],
        ON_RAY: [step(1.5, tokens=500), step(1.5, tokens=500)],
    }
    rows = comparison("1M", steps)
    goals = {(row.name, row.over): row for row in rows if row.goal and row.ratio}
    assert fastest(steps) == VLLM
    assert goals["1M: ours, in process", "TRL + vLLM (TRL's best)"].ratio.median == pytest.approx(0.55)  # type: ignore[union-attr]
    assert goals["1M: ours, in process", TRANSFORMERS].met
    assert goals["1M: ours, on Ray", "TRL + vLLM (TRL's best)"].ratio.median == pytest.approx(0.75)  # type: ignore[union-attr]


def test_rewards_are_compared_request_by_request() -> None:
    ours = [step(1.0, a=0.5, b=0.1), step(1.0, a=0.6, b=0.2)]
    theirs = [step(1.0, a=0.4, b=0.1), step(1.0, a=0.6, b=0.1)]
    # Differences 0.1, 0, 0, 0.1: mean 0.05, standard error 0.0289.
    assert reward_gap(ours, theirs) == pytest.approx(1.732, abs=1e-3)
    assert reward_gap(ours, ours) == 0.0


def test_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([2, 4, 8], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two sizes or more"):
        exponent([2, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive"):
        exponent([2, 4], [0.0, 1.0])


def test_growth_has_a_goal_except_where_attention_is_included() -> None:
    seconds = {8: [1.0, 1.0], 16: [2.0, 4.0]}
    linear = table("learner", "requests", (8, 16), seconds)
    assert linear[-1].value.low == pytest.approx(1.0)
    assert linear[-1].value.high == pytest.approx(2.0)
    assert linear[-1].met is False
    assert table("learner in all", "tokens", (8, 16), seconds)[-1].goal is None
