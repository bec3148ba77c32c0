"""Policies that see, trained for two steps on real vLLM and Ray, while a worker outside plays part of the samples."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from head_node import Head
from taught import taught

from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.commands.assemble import open_ports
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.worker import Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import start_engine
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.report import write_report

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PROFILE = {
    "extends": "atlas",
    "name": "seeing",
    "prompt": "Draw.\n{{tools}}\n",
    "max_turns": 4,
    "max_tool_calls": 2,
    "observations": {"images": True, "max_side": 96, "per_search": 2},
}
PUBLISH = {"qwen3-vl": "adapter", "qwen2.5-vl": "merged"}
"""By kind of model; files of Qwen2.5-VL have other names of tensors than the model, so an adapter cannot be attached."""
STEPS = 2


class Heard(NullMonitor):
    """Keeps the address of the gateway."""

    url = ""

    def note(self, text: str) -> None:
        if "listening on" in text:
            self.url = text.rpartition(" ")[2]


def seeing_config(root: Path, policy: Path, address: str, lora: bool) -> RunConfig:
    environment = f"{{env_vars: {{PYTHONPATH: '{ROOT}'}}}}"
    (root / "seeing.yaml").write_text(json.dumps(PROFILE))
    return load_config(
        "atlas",
        [
            f"policy.model={policy}",
            f"profile={root / 'seeing.yaml'}",
            f"loop={{steps: {STEPS}, requests_per_step: 2, group_size: 4, validate_every: 0, parity_limit: 1.0e-4}}",
            "sampling.temperature=1.0",
            "learner.temperature=1.0",
            "heldout.requests=0",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "learner.threads=1",
            "engine.max_concurrent=8",
            "learner.lr=1.0e-3",
            *([f"learner.lora={{rank: 4, alpha: 8, publish: {PUBLISH[policy.parent.name[:-1]]}}}"] if lora else []),
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:PictureTools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            *(f"{role}.runtime_env={environment}" for role in ("tools", "renderer", "judge")),
            f"cluster.address={address}",
            "cluster.start_timeout=900",
            f"gateway={{port: 0, share: 0.5, patience: 600, tokens: '{root / 'tokens.json'}'}}",
        ],
    )


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(request.param, tmp_path_factory.mktemp(request.param) / "model", read_profile(PROFILE))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
async def test_engine_worker_outside_and_learner_agree_on_what_was_seen(
    tmp_path: Path, policy: Path, shared_cluster: Head, lora: bool
) -> None:
    config = seeing_config(tmp_path, policy, shared_cluster.address, lora)
    assert config.protocol.observations.images and config.engine.kind == "vllm"
    heard = Heard()
    with RunStore.open(str(tmp_path / "run"), config, run_seed=1, keep=config.checkpoints) as store:
        requests = config.requests.build(store.images)
        async with open_ports(config, policy, store, heard, local=False) as ports:  # type: ignore[arg-type]
            client = GatewayClient(heard.url, TokenFile(tmp_path / "tokens.json").new("remote", (Scope.ROLLOUT,)))
            worker = Worker(client, WorkerConfig(concurrent=2, poll_seconds=0.5), tmp_path / "worker", start_outside)
            await client.run()  # From now on the gateway counts on it.
            working = asyncio.create_task(worker.run())
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, heard)
            await loop.run(await loop.start())
            worker.drain()
            progress = await working
            await client.close()
        check_metrics(store.metrics(), lora)
        played = [t for step in store.committed_steps() for g in store.groups(step) for t in g.trajectories]
        check_seen(store, played)
        assert progress.accepted == sum(t.provenance.outside for t in played) >= STEPS and not progress.refused
        write_report(store, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("seen by the policy") > 0
    assert any((tmp_path / "worker" / "pictures").rglob("*.png"))


async def start_outside(card: Any, model: Path) -> Any:
    return await start_engine(card, model, EngineConfig(kind="transformers", dtype=card.dtype))


def check_metrics(rows: list[dict[str, Any]], lora: bool) -> None:
    """Check that engines and learner agree before and after each update, over what was seen as well."""
    assert len(rows) == STEPS
    for row in rows:
        said = {name: row[name] for name in ("parity", "parity_images", "probe_difference", "grad_norm")}
        print(json.dumps({"lora": lora, "step": row["step"], **said}))
        assert max(row["parity"], row["parity_images"], row["probe_difference"]) <= 1e-4
        assert row["grad_norm"] > 1e-4


def check_seen(store: RunStore, played: list[Trajectory]) -> None:
    """Check that both sides saw pictures, each of which the run keeps."""
    assert len(played) == STEPS * 8
    seen = {t.provenance.outside: t for t in played if t.ledger.media}
    assert seen.keys() == {True, False}, "inside and outside"
    assert {v for t in played for v in t.ledger.versions} >= {0, 1}
    for trajectory in seen.values():
        trajectory.ledger.check()
        assert len(trajectory.ledger.media) == 2
        for span in trajectory.ledger.media:
            assert store.images.get(trajectory.shown(span.sha256))
