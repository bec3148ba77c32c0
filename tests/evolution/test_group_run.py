"""Whole runs in this process whose reward counts comparisons of the pictures of each group."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from group_plugins import prefer_brighter, settings
from loop_fakes import Recorder
from scripted_server import Reply, in_turn, serving

from benchmarks.measure import Options
from benchmarks.rehearsal import rehearsal_config
from benchmarks.world import default_policy
from genevolve_ray.commands.assemble import open_ports
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.preflight import check_reward
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.records.usage import Usage

LOOP = "loop={steps: 2, requests_per_step: 2, group_size: 3, max_attempts: 2, validate_every: 2, validation_requests: 2"
LOOP += ", checkpoint_every: 100, outage_limit: 0.001"


def config_of(*more: str, mode: str = "sync") -> RunConfig:
    return rehearsal_config(
        Options(default_policy()),
        f"{LOOP}, mode: {mode}}}",
        *(f"{role}.runtime_env={{}}" for role in ("tools", "renderer", "judge")),
        "gateway.port=null",
        *more,
    )


async def evolved(config: RunConfig, folder: Path) -> tuple[RunStore, Recorder]:
    with RunStore.open(str(folder), config, run_seed=1, keep=config.checkpoints) as store:
        requests, heard = config.requests.build(store.images), Recorder()
        screen: Any = heard
        async with open_ports(config, default_policy(), store, screen, local=True) as ports:
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, heard, panel=ports.panel)
            await loop.run(await loop.start())
        assert store.last_step == config.loop.steps, heard.notes
        return store, heard


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_comparisons_enter_rewards_metrics_costs_and_files(mode: str, tmp_path: Path) -> None:
    with serving(prefer_brighter) as server:
        config = config_of(*settings(server.url), mode=mode)
        check_reward(config)
        store, heard = asyncio.run(evolved(config, tmp_path / "run"))
    # Each group of three has three pairs, each in two orders. A picture of the validation has no rivals.
    # A try may be repeated on a busy machine, so answers are counted below, and here only a lower bound.
    assert len(server.calls) >= 2 * 2 * 6
    for metrics in store.metrics():
        assert metrics["component_pairs.preference"] == pytest.approx(0.5)
        assert metrics["component_pairs.agreement"] == 1
        assert metrics["service_calls"] >= 12 and metrics["money"] == pytest.approx(0.5 * 12)
    for group in store.groups(1):
        assert [t.outcome for t in group.trajectories] == [Outcome.SCORED] * 3
        shades = [store.images.get(t.rendered) for t in group.trajectories if t.rendered is not None]
        assert len(set(shades)) == 3
        parts = [t.reward.parts["pairs.preference"] for t in group.trajectories if t.reward is not None]
        assert len(set(parts)) == 3 and sum(parts) == pytest.approx(1.5)
        for trajectory in group.trajectories:
            assert trajectory.reward is not None and "judge.kscore" in trajectory.components()
            assert trajectory.score == pytest.approx(0.4 + 0.5 * trajectory.reward.parts["pairs.preference"])
        used = sum((t.usage.get("judge.pairs", Usage()) for t in group.trajectories), Usage())
        assert (used.calls - used.failed_calls, used.money, used.prompt_tokens) == (6, 3.0, 600)
    [(_, none), (_, validation)] = heard.steps
    assert none is None and validation is not None
    assert validation["reward_mean"] == pytest.approx(0.8), "the weight of the preference goes to the others"


def test_a_server_that_is_down_leaves_the_other_components(tmp_path: Path) -> None:
    down = in_turn(Reply(b"", 500))
    with serving(down) as server:
        chat = {"url": server.url, "model": "vlm", "attempts": 1}
        config = config_of(*settings(server.url, chat=chat), "loop.steps=1", "loop.validate_every=0")
        store, _ = asyncio.run(evolved(config, tmp_path / "run"))
    for metrics in store.metrics():
        assert "component_pairs.preference" not in metrics and metrics["infra_failures"] == 0
        assert metrics["component_judge.kscore"] == metrics["reward_mean"] == pytest.approx(0.8)


def test_a_judge_of_groups_cannot_be_the_judge_of_a_run() -> None:
    pairwise = "judge={type: pairwise, config: {alone: 0.5, chat: {url: 'http://h', model: m}}}"
    with pytest.raises(UserFault, match="judge.type=pairwise judges groups: name it under judges"):
        check_reward(config_of(pairwise, "reward={components: {judge.preference: 1.0}}"))


def test_a_preference_needs_a_rule_for_pictures_without_rivals() -> None:
    with pytest.raises(UserFault, match="'pairs.preference' has no value for some requests"):
        check_reward(config_of(*settings("http://h"), "reward.missing=infra_failure"))
    check_reward(config_of(*settings("http://h", alone=0.5), "reward.missing=infra_failure"))
