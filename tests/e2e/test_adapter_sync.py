"""A run that trains an adapter on real vLLM: only the adapter is published, and the engine samples what the learner has."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.config import load_config
from genevolve_ray.evolution.learner import LocalLearner
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.models.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE

POLICY = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (POLICY / "config.json").is_file(), reason="the cold start is not in this checkout"),
    pytest.mark.timeout(900),
]

STEPS = 2
RANK = 4


def test_only_the_adapter_travels_and_the_engine_samples_from_the_merged_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[dict[str, int]] = []
    publish = LocalLearner.publish

    async def weighed(self: LocalLearner, version: int) -> PublishedWeights:
        weights = await publish(self, version)
        published.append({file.name: file.stat().st_size for file in Path(await weights.folder()).iterdir()})
        return weights

    monkeypatch.setattr(LocalLearner, "publish", weighed)
    settings = {
        "learner.lora": f"{{rank: {RANK}, alpha: 8}}",
        "learner.lr": "1.0e-2",
        "learner.threads": 1,
        "loop.steps": STEPS,
        "loop.requests_per_step": 2,
        "loop.group_size": 3,
        "loop.validate_every": 0,
        "heldout.requests": 0,
    }
    config = load_config("atlas", [f"{key}={value}" for key, value in settings.items()])
    assert config.engine.kind == "vllm"
    evolve_run(config, tmp_path / "run", in_process=True)

    store = RunStore.read(str(tmp_path / "run"))
    rows = store.metrics()
    assert len(rows) == STEPS
    for row in rows:
        # The engine agrees with the learner on the probe, and on what it sampled: the weights are the merged ones.
        assert row["probe_difference"] <= config.loop.parity_limit
        assert row["parity"] <= config.loop.parity_limit
        assert row["grad_norm"] > 0
    for step in range(1, STEPS + 1):
        sampled = {
            version
            for group in store.groups(step)
            for t in group.trajectories
            for version, policy in zip(t.ledger.versions, t.ledger.policy_mask, strict=True)
            if policy
        }
        assert sampled == {step - 1}
    base = (POLICY / "model.safetensors").stat().st_size
    assert len(published) == STEPS + 1
    for files in published:
        assert files.keys() == {ADAPTER_CONFIG_FILE, ADAPTER_FILE}
        assert sum(files.values()) < base / 15, (files, base)
