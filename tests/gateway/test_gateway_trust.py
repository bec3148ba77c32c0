"""Log-probs and dice: honest sampling passes, and each way of cheating shows."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.gateway.logprobs import Scores
from genevolve_ray.gateway.trust import Calibration, drift_of, logprob_gap

VOCABULARY = 12


def _softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def _sampled(tokens: int, temperature: float, seed: int) -> Scores:
    """Tokens drawn at `temperature`, scored under temperature 1, each in a context of its own."""
    dice = random.Random(seed)
    columns: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    for _ in range(tokens):
        logits = [dice.gauss(0, 2) for _ in range(VOCABULARY)]
        pi, drawn = _softmax(logits, 1.0), _softmax(logits, temperature)
        token = dice.choices(range(VOCABULARY), drawn)[0]
        entropy = -sum(p * math.log(p) for p in pi)
        variance = sum(p * math.log(p) ** 2 for p in pi) - entropy**2
        for column, value in zip(columns, (math.log(pi[token]), 0.0, entropy, variance), strict=True):
            column.append(value)
    return Scores(*columns)


def _drift(temperature: float, seed: int, trajectories: int = 20, tokens: int = 50) -> tuple[float, float]:
    calibration = Calibration(window=64)
    for i in range(trajectories):
        calibration.add(_sampled(tokens, temperature, 1000 * seed + i))
    return calibration.drift().mean, calibration.drift().z


def test_honest_sampling_has_a_standard_normal_z() -> None:
    z = [_drift(1.0, seed, trajectories=4)[1] for seed in range(120)]
    mean = sum(z) / len(z)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in z) / (len(z) - 1))
    assert abs(mean) < 4 / math.sqrt(len(z))
    assert 0.75 < deviation < 1.25
    assert max(map(abs, z)) < 5  # the default bound


@pytest.mark.parametrize("seed", range(5))
def test_a_lower_temperature_drifts_up_and_a_higher_one_down(seed: int) -> None:
    low, low_z = _drift(0.7, seed)
    high, high_z = _drift(1.4, seed)
    assert low > 0.02 and low_z > 5
    assert high < -0.02 and high_z < -5


def test_the_window_forgets() -> None:
    calibration = Calibration(window=2)
    for seed in range(5):
        calibration.add(_sampled(10, 1.0, seed))
    assert calibration.drift().tokens == 20
    assert drift_of([]).z == 0.0


def _scores(logprobs: list[float]) -> Scores:
    n = len(logprobs)
    return Scores(logprobs, [0.0] * n, [0.0] * n, [0.0] * n)


def test_with_top_p_a_logprob_may_lie_above_by_the_mass_cut_off_and_no_more() -> None:
    own = [-2.0, -1.0]
    assert logprob_gap([-2.0 - math.log(0.9), -1.0], _scores(own), top_p=0.9).largest == pytest.approx(0.0)
    assert logprob_gap([-1.5, -1.0], _scores(own), top_p=0.9).largest == pytest.approx(0.5 + math.log(0.9))
    assert logprob_gap([-2.5, -1.0], _scores(own), top_p=0.9).largest == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.floats(0.0, 3.0))
def test_a_constant_offset_is_the_gap(own: list[float], offset: float) -> None:
    gap = logprob_gap([x - offset for x in own], _scores(own), top_p=1.0)
    assert gap.mean == pytest.approx(offset, abs=1e-9)
    assert gap.largest == pytest.approx(offset, abs=1e-9)


BANNED, TEMPERATURE = [0, 5], 0.7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny random Qwen3 and its folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    policy = Qwen3ForCausalLM(config).float().eval()
    folder = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(folder)
    return policy, folder


def _drawn(policy: Any, count: int, temperature: float, top_p: float) -> tuple[list[int], list[tuple[float, ...]]]:
    """Tokens drawn from a plain softmax, and per token log pi, entropy of mu and log mass, all at that temperature."""
    import torch

    torch.manual_seed(5)
    tokens, expected = [7, 9], []
    with torch.inference_mode():
        for _ in range(count):
            logits = policy(torch.tensor([tokens])).logits[0, -1].double() / temperature
            logits[BANNED] = -torch.inf
            pi = logits.softmax(-1)
            ordered, order = pi.sort(descending=True)
            kept = order[(ordered.cumsum(-1) - ordered) < top_p]
            mu = torch.zeros_like(pi)
            mu[kept] = pi[kept] / pi[kept].sum()
            token, inside = int(torch.multinomial(mu, 1)), mu[mu > 0]
            entropy = -(inside * inside.log()).sum()
            expected.append((float(pi[token].log()), float(entropy), float(pi[kept].sum().log())))
            tokens.append(token)
    return tokens, expected


def _rescored(folder: Path, tokens: list[int], top_p: float) -> tuple[Scores, Calibration]:
    from genevolve_ray.learning.rescoring import Rescorer

    rescorer = Rescorer(folder, banned=BANNED)
    rescorer.load(folder)
    found = Scores(*rescorer.score(tokens, [False] * 2 + [True] * (len(tokens) - 2), TEMPERATURE, top_p))
    calibration = Calibration(window=1)
    calibration.add(found)
    return found, calibration


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_the_policy_is_scored_as_the_engine_samples_it(model: tuple[Any, Path], top_p: float) -> None:
    policy, folder = model
    tokens, expected = _drawn(policy, 150, TEMPERATURE, top_p)
    found, calibration = _rescored(folder, tokens, top_p)
    assert found.logprobs == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert found.entropies == pytest.approx([e[1] for e in expected], abs=1e-3)
    assert found.masses == pytest.approx([e[2] for e in expected], abs=1e-3)
    assert abs(calibration.drift().z) < 5


@pytest.mark.parametrize("temperature", [0.3, 1.6])
def test_another_temperature_shows_in_the_scores_of_the_true_one(model: tuple[Any, Path], temperature: float) -> None:
    policy, folder = model
    tokens, _ = _drawn(policy, 400, temperature, 1.0)
    drift = _rescored(folder, tokens, 1.0)[1].drift()
    assert abs(drift.z) > 5 and abs(drift.mean) > 0.02
    assert (drift.mean > 0) == (temperature < TEMPERATURE)
