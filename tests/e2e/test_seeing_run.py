"""Policies that see, trained for two steps on real vLLM and Ray, while a worker outside plays part of the samples."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from genevolve_ray.models.image_tokens import load_image_tokens
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


def seeing_config(root: Path, policy: Path, address: str, *more: str) -> RunConfig:
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
            # A step must move log-probs beyond the limit of parity, and must not undo what was taught.
            "learner.lr=1.0e-4",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:PictureTools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            *(f"{role}.runtime_env={environment}" for role in ("tools", "renderer", "judge")),
            f"cluster.address={address}",
            "cluster.start_timeout=900",
            *more,
        ],
    )


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(request.param, tmp_path_factory.mktemp(request.param) / "model", read_profile(PROFILE))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
async def test_engine_worker_outside_and_learner_agree_on_what_was_seen(
    tmp_path: Path, policy: Path, shared_cluster: Head, lora: bool
) -> None:
    more = [f"gateway={{port: 0, share: 0.5, patience: 600, tokens: '{tmp_path / 'tokens.json'}'}}"]
    if lora:
        more.append(f"learner.lora={{rank: 4, alpha: 8, publish: {PUBLISH[policy.parent.name[:-1]]}}}")
    config = seeing_config(tmp_path, policy, shared_cluster.address, *more)
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
        check_metrics(store.metrics(), f"lora={lora}")
        played = check_seen(store)
        seen = {t.provenance.outside: t for t in played if t.ledger.media}
        assert seen.keys() == {True, False}, "inside and outside"
        check_sight(policy, store, seen[True])
        assert progress.accepted == sum(t.provenance.outside for t in played) >= STEPS and not progress.refused
        write_report(store, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("seen by the policy") > 0
    assert any((tmp_path / "worker" / "pictures").rglob("*.png"))
    check_weights(tmp_path / "worker", policy)


@pytest.mark.parametrize("policy", ["qwen3-vl"], indirect=True)
async def test_weights_that_never_lie_in_a_folder_reach_an_engine_that_sees(
    tmp_path: Path, policy: Path, shared_cluster: Head
) -> None:
    config = seeing_config(tmp_path, policy, shared_cluster.address, "cluster.weights=gloo")
    with RunStore.open(str(tmp_path / "run"), config, run_seed=1, keep=config.checkpoints) as store:
        requests, monitor = config.requests.build(store.images), NullMonitor()
        async with open_ports(config, policy, store, monitor, local=False) as ports:  # type: ignore[arg-type]
            loop = Evolution(config, requests, ports.rollouts, ports.learner, store, monitor)
            await loop.run(await loop.start())
        check_metrics(store.metrics(), "gloo")
        assert any(t.ledger.media and max(t.ledger.versions) == 1 for t in check_seen(store))


async def start_outside(card: Any, model: Path) -> Any:
    return await start_engine(card, model, EngineConfig(kind="transformers", dtype=card.dtype))


def check_metrics(rows: list[dict[str, Any]], case: str) -> None:
    """Check that engines and learner agree before and after each update, over what was seen as well."""
    assert len(rows) == STEPS
    for row in rows:
        said = {name: row[name] for name in ("parity", "parity_images", "probe_difference", "grad_norm")}
        print(json.dumps({"case": case, "step": row["step"], **said}))
        assert max(row["parity"], row["parity_images"], row["probe_difference"]) <= 1e-4
        assert row["grad_norm"] > 1e-4, "the rewards of a group were all the same"


def check_seen(store: RunStore) -> list[Trajectory]:
    """Return the trajectories of all steps, after a check that the run keeps each picture that they saw."""
    played = [t for step in store.committed_steps() for g in store.groups(step) for t in g.trajectories]
    assert len(played) == STEPS * 8
    assert {v for t in played for v in t.ledger.versions} >= {0, 1}
    for trajectory in played:
        trajectory.ledger.check()
        assert len(trajectory.ledger.media) % 2 == 0, "each search finds two"
        for span in trajectory.ledger.media:
            assert store.images.get(trajectory.shown(span.sha256))
    return played


def check_sight(policy: Path, store: RunStore, one: Trajectory) -> None:
    """Check that what the policy samples depends on the pictures: with others, its log-probs are different."""
    import torch

    from genevolve_ray.learning.batch import ImageInputs
    from genevolve_ray.learning.rescoring import Rescorer
    from genevolve_ray.learning.vision import LedgerPictures

    tokens, ledger, scorer = load_image_tokens(policy), one.ledger, Rescorer(policy, threads=1)
    assert tokens is not None
    seen = LedgerPictures(tokens).inputs(
        ledger.tokens, ledger.media, lambda sha256: store.images.get(one.shown(sha256))
    )
    assert seen is not None
    blank = ImageInputs(tuple(replace(picture, patches=torch.zeros_like(picture.patches)) for picture in seen.pictures))
    found, other = (
        scorer.score(ledger.tokens, ledger.policy_mask, 1.0, images=images).logprobs for images in (seen, blank)
    )
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) > 1e-3


def check_weights(worker: Path, policy: Path) -> None:
    """Check that the newest weights outside are others than at the start, but for the vision tower."""
    from safetensors.numpy import load_file

    def tensors(file: Path) -> dict[str, Any]:
        # transformers writes the files of Qwen2.5-VL under other names than the tensors of the model have.
        return {
            name.removeprefix("model.").removeprefix("language_model."): tensor
            for name, tensor in load_file(file).items()
        }

    [*_, newest] = sorted(worker.glob("v*/*.safetensors"))
    first, last = tensors(policy / "model.safetensors"), tensors(newest)
    if not first.keys() & last.keys():
        assert any(np.any(tensor) for name, tensor in last.items() if "lora_B" in name), "an adapter begins with zeros"
        return
    changed = {name for name in first if not np.array_equal(first[name], last[name])}
    assert changed and not any("visual" in name for name in changed)
