"""Every model folder of the zoo on vLLM: it samples what the learner scores, before and after updates, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from zoo import ZOO

from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.preflight import preflight

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("clean_environment")]
Animal = Callable[[str], Path]
TOLERANCE = 1e-4


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's variables end with the test."""
    from genevolve_ray.engines.vllm_settings import vllm_environment

    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", ZOO)
async def test_engine_and_learner_agree_before_and_after_updates(
    name: str, animal: Animal, config_of: Callable[..., RunConfig], tmp_path: Path
) -> None:
    import torch

    from genevolve_ray.engines.protocol import Probe, SamplingParams
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.evolution.inprocess import load_banned, load_chat
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    folder = animal(name)
    preflight(config_of(folder, "engine.kind=vllm"), local=True)
    chat = load_chat(folder)
    banned = load_banned(folder, chat)
    learner = Learner(folder, LearnerConfig(temperature=1.0, threads=1), banned)
    # Beyond the window of the windowed models, and beyond the original positions of the one with a factor.
    repeated = 80 if "yarn" in name else 8
    prompt = chat.prompt_ids([{"role": "user", "content": "Show a bright row of the moon in the picture. " * repeated}])
    sampling = SamplingParams(max_tokens=40, seed=1, stop_token_ids=(chat.end_of_turn_id,))
    engine = await VllmEngine.create(folder, banned=banned, max_num_seqs=4)

    async def agrees() -> None:
        turn = await engine.generate(prompt, sampling, "turn")
        tokens = [*prompt, *turn.tokens]
        mask = [False] * len(prompt) + [True] * len(turn.tokens)
        [scored] = learner.score([TrainSequence(tokens, mask, [0.0] * len(tokens), 0.0)])
        assert not set(turn.tokens) & set(banned)
        assert turn.logprobs == pytest.approx(scored, abs=TOLERANCE)

    try:
        await agrees()
        for version in (1, 2):
            target = tmp_path / f"v{version}"
            target.mkdir()
            learner.write_weights(target)
            probe = Probe(token_ids=tuple(prompt), logprobs=tuple(learner.raw_logprobs(prompt)), tolerance=TOLERANCE)
            await engine.update(str(target), version, probe)
            await agrees()
            with torch.no_grad():
                for parameter in learner.model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
    finally:
        await engine.close()
