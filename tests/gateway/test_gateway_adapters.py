"""A run that publishes adapters: workers get the base once, adapters from then on, and are scored by the same weights."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_helpers import MODEL, House, house

import genevolve_ray
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.protocol import Engine, Probe, SamplingParams, WeightUpdateError
from genevolve_ray.evolution.inprocess import start_learner
from genevolve_ray.evolution.weights import WeightFolders
from genevolve_ray.gateway import client as client_module
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.launch import run_facts
from genevolve_ray.gateway.wire import FileCard, RunCard, WeightsCard
from genevolve_ray.gateway.worker import Worker, WorkerConfig, WorkerProgress
from genevolve_ray.gateway.worker_engine import WorkerError, start_engine
from genevolve_ray.gateway.worker_folder import bring_weights, clear_strangers, version_name
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.records.images import MemoryImages

BASE = MODEL / "model.safetensors"


def adapting(publish: str = "adapter", **gateway: Any) -> RunConfig:
    """A run with a real policy on the reference engine, whose learner trains an adapter."""
    return load_config(
        "atlas",
        [
            "engine.kind=transformers",
            "sampling.temperature=1.0",
            "learner.temperature=1.0",
            f"learner.lora={{rank: 2, alpha: 4, publish: {publish}}}",
            "learner.lr=1.0e-2",
            "learner.threads=1",
            "experience.enabled=false",
            "learner.ved.coefficient=0",
            "requests={type: 'benchmarks.null_parts:Requests'}",
            "tools={type: 'benchmarks.null_parts:Tools'}",
            "renderer={type: 'benchmarks.null_parts:Renderer'}",
            "judge={type: 'benchmarks.null_parts:Judge'}",
            f"gateway={ {'port': 0, **gateway} }",
        ],
    )


class Versions:
    """The learner of a run, and what each version that it published weighs."""

    def __init__(self, house: House) -> None:
        folders = WeightFolders(house.folder / "versions")
        self._house, self._port = house, start_learner(house.config, MODEL, folders, MemoryImages())
        self.sizes: list[int] = []

    async def publish(self) -> None:
        """Publish the next version; every one but the first has learned something."""
        version = len(self.sizes)
        if version:
            tokens = [5 + version, 9, 27, 41, 33]
            sequence = TrainSequence(tokens, [False, *[True] * 4], [-3.0] * 5, advantage=1.0)
            self._port._learner.train_step([sequence], version - 1)
        weights = await self._port.publish(version)
        self.sizes.append(sum(file.stat().st_size for file in Path(await weights.folder()).iterdir()))
        await self._house.rollouts.update(weights)


async def _engine(card: RunCard, model: Path) -> Engine:
    return await start_engine(card, model, EngineConfig(kind="transformers", dtype=card.dtype))  # type: ignore[arg-type]


def hire(h: House, name: str, token: str | None = None, base: Path | None = None) -> Worker:
    config = WorkerConfig(concurrent=2, poll_seconds=0.5, drain_seconds=10, patience=5)
    return Worker(h.client(token or h.token(name)), config, h.folder / "workers" / name, _engine, base=base)


async def reached(worker: Worker, version: int) -> WorkerProgress:
    """Run a worker until it has loaded a version."""
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        while worker.progress.version < version and not running.done():
            await asyncio.sleep(0.01)
    worker.drain()
    return await running


async def test_the_base_travels_once_and_then_adapters_alone(tmp_path: Path) -> None:
    async with house(tmp_path, run=adapting, trust={"spot_check": 1.0}) as h:
        versions, token = Versions(h), h.token("anna")
        await versions.publish()
        worker = hire(h, "anna", token)
        running = asyncio.create_task(worker.run())
        sampling = SamplingParams(temperature=1.0, max_tokens=24)
        async with asyncio.timeout(120):
            for version in (0, 1):
                if version:
                    await versions.publish()
                    while worker.progress.version < version:
                        await asyncio.sleep(0.01)
                task = h.task(version).model_copy(update={"sampling": sampling})
                found = await h.rollouts.rollout(task)
                # Every trajectory is scored again, by weights that the gateway has merged for itself.
                ledger = found.ledger
                assert {v for v, m in zip(ledger.versions, ledger.policy_mask, strict=True) if m} == {version}
        worker.drain()
        progress = await running
        meters = h.server.gateway.meters
        assert (meters.accepted, meters.workers["anna"].scored, meters.refused.total()) == (2, 2, 0)
        assert meters.workers["anna"].gap < 1e-4
        # zstd hardly packs trained numbers: what went over the wire is the files themselves.
        assert 0.8 * BASE.stat().st_size < progress.base_bytes <= 1.01 * BASE.stat().st_size
        for version, size in enumerate(versions.sizes):
            assert 0 < progress.version_bytes[version] < size + 1024
            assert size < BASE.stat().st_size / 20
        assert meters.base_bytes_out == progress.base_bytes
        assert dict(meters.version_bytes_out) == dict(progress.version_bytes)
        assert h.server.gateway.status()["version_bytes_out"] == dict(progress.version_bytes)

        again = await reached(hire(h, "anna", token), 1)
        assert (again.base_bytes, again.version_bytes[1]) == (0, 0), "it is all there from before"


async def test_a_base_that_was_begun_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RANGE_BYTES", 1 << 18)
    async with house(tmp_path, run=adapting) as h:
        await Versions(h).publish()
        model = tmp_path / "workers" / "anna" / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors.part").write_bytes(BASE.read_bytes()[: BASE.stat().st_size * 3 // 4])
        (model / "model-00001-of-00002.safetensors").write_bytes(b"of another run")
        progress = await reached(hire(h, "anna"), 0)
        assert 0 < progress.base_bytes < 0.3 * BASE.stat().st_size
        assert (model / "model.safetensors").read_bytes() == BASE.read_bytes()
        assert [p.name for p in model.glob("*.safetensors")] == ["model.safetensors"]


async def test_a_worker_that_has_the_base_loads_none(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(MODEL, own)
    async with house(tmp_path, run=adapting) as h:
        versions = Versions(h)
        await versions.publish()
        progress = await reached(hire(h, "anna", base=own), 0)
        assert (progress.base_bytes, h.server.gateway.meters.base_bytes_out) == (0, 0)
        assert 0 < progress.version_bytes[0] < versions.sizes[0] + 1024


async def test_a_worker_whose_base_is_another_is_told_which_file(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    async with house(tmp_path, run=adapting) as h:
        await Versions(h).publish()
        with pytest.raises(WorkerError, match=f"--model {own}: model.safetensors of the run's base is missing"):
            await hire(h, "anna", base=own).run()
        data = bytearray(BASE.read_bytes())
        data[-1] ^= 1
        (own / "model.safetensors").write_bytes(data)
        with pytest.raises(WorkerError, match=f"--model {own}: model.safetensors differs from the run's base"):
            await hire(h, "ben", base=own).run()


@pytest.mark.e2e
async def test_the_command_says_in_a_line_what_is_wrong_with_a_base(tmp_path: Path) -> None:
    async with house(tmp_path, run=adapting) as h:
        await Versions(h).publish()
        command = ["worker", "--gateway", h.server.url, "--model", str(tmp_path), "--folder", str(tmp_path / "worker")]
        root = str(Path(genevolve_ray.__file__).parents[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from genevolve_ray.cli import main; main()", *command),
            env=os.environ | {"PYTHONPATH": root, "GENEVOLVE_TOKEN": h.token("anna")},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):
            _, told = await process.communicate()
        assert process.returncode
        assert f"--model {tmp_path}: model.safetensors of the run's base is missing" in told.decode()
        assert "Traceback" not in told.decode()


async def test_a_base_is_waited_for_as_long_as_patience_lasts(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = GatewayClient(f"http://127.0.0.1:{free.getsockname()[1]}", "token", attempts=1)
        worker = Worker(client, WorkerConfig(patience=1e-3), tmp_path, _engine)
        files = [FileCard(name="model.safetensors", size=9, sha256="0" * 64)]
        with pytest.raises(WorkerError, match="no answer from the gateway for 0.001 s"):
            await worker._bring_base(files, tmp_path)
        worker.drain()
        with pytest.raises(WorkerError, match="drained while the base was loading"):
            await worker._bring_base(files, tmp_path)
        await client.close()


async def test_a_base_that_changes_under_a_worker_is_found_out_by_the_probe(tmp_path: Path) -> None:
    async with house(tmp_path, run=adapting) as h:
        versions = Versions(h)
        await versions.publish()
        worker = hire(h, "anna")
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(60):
            while worker.progress.version < 0:
                await asyncio.sleep(0.01)
        model = tmp_path / "workers" / "anna" / "model"
        _negate(model / "model.safetensors")
        await versions.publish()
        with pytest.raises(WeightUpdateError, match=f"merged into the base {model}"):
            await running


def _negate(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: -tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


async def test_the_base_is_shown_to_holders_of_a_token_where_versions_are_adapters(tmp_path: Path) -> None:
    async with house(tmp_path, run=adapting) as h, h.http() as stranger, h.http(h.token("anna")) as http:
        [card] = (await http.get("/v1/run")).json()["base"]
        assert card["sha256"] == hashlib.sha256(BASE.read_bytes()).hexdigest()
        assert (await http.get("/v1/model/model.safetensors")).status_code == 206
        assert (await stranger.get("/v1/model/model.safetensors")).status_code == 401
    assert not run_facts(adapting("merged"), MODEL).adapter


def test_the_same_number_with_other_weights_is_another_folder() -> None:
    def card(digit: str) -> WeightsCard:
        same = FileCard(name="adapter_config.json", size=1, sha256="0" * 64)
        other = FileCard(name="adapter_model.safetensors", size=1, sha256=digit * 64)
        return WeightsCard(version=3, probe=Probe(token_ids=(1, 2), logprobs=(-1.0,)), files=(same, other))

    assert version_name(card("a")) == version_name(card("a")) != version_name(card("b"))
    assert version_name(card("a")).startswith("v000003-")


def test_weights_are_not_written_through_a_link_to_a_base(tmp_path: Path) -> None:
    own, model, version = tmp_path / "own.safetensors", tmp_path / "model", tmp_path / "version"
    for folder in (model, version):
        folder.mkdir()
    own.write_bytes(b"precious")
    (version / "model.safetensors").write_bytes(b"version 3")
    (model / "model.safetensors").symlink_to(own)
    bring_weights(version, model)
    assert (own.read_bytes(), (model / "model.safetensors").read_bytes()) == (b"precious", b"version 3")


def test_weights_of_an_earlier_run_are_cleared(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model.safetensors.index.json", "config.json", "kept.safetensors"):
        (tmp_path / name).write_text("{}")
    clear_strangers(tmp_path, [FileCard(name="kept.safetensors", size=1, sha256="0" * 64)])
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "kept.safetensors"}
