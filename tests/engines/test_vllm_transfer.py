"""vLLM given weights over gloo: by the learner's own source, tensor for tensor, and what becomes of a transfer that fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
from tiny_qwen3 import TinyModels, forward_logprobs

from genevolve_ray.engines.protocol import Generation, Probe, SamplingParams, WeightUpdateError
from genevolve_ray.engines.transports.queue import TransferCall, TransferQueue
from genevolve_ray.engines.vllm import VllmEngine

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROMPTS = [tuple(range(10, 10 + n)) for n in (3, 17, 9, 30)]
PIECE = 30_000
"""Bytes of a piece: several tensors of a block, and less than the embedding."""
WRONG = Probe(token_ids=(1, 2, 3), logprobs=(0.0, 0.0))


class Half:
    """A source that fails in its second half, in the midst of a layer whose tensors vLLM packs into one."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def metadata(self) -> list[Any]:
        return self._source.metadata()

    def __iter__(self) -> Iterator[Any]:
        for name, tensor in self._source:
            if name == "model.layers.1.self_attn.k_proj.weight":
                raise FloatingPointError("the learner fell over")
            yield name, tensor


class Trainer:
    """The learner's end in a thread of this process; it has a group with the engine from its first sending on."""

    def __init__(self, engine: VllmEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop
        self._end: Any = None

    def source(self, folder: str) -> Any:
        from genevolve_ray.learning.outgoing import OutgoingWeights
        from genevolve_ray.learning.policy import load_policy

        return OutgoingWeights(load_policy(folder), {})

    async def send(self, source: Any, version: int, probe: Probe | None) -> float:
        self._transfer_queue = TransferQueue()
        receiving = asyncio.ensure_future(self._engine.receive(self._transfer_queue.calls(), version, probe))
        sent = await asyncio.gather(asyncio.to_thread(self._send, source), return_exceptions=True)
        if isinstance(sent[0], BaseException):
            self._end = self._end and self._end.shutdown()
            self._transfer_queue.close(str(sent[0]))
        return await receiving

    def _send(self, source: Any) -> None:
        from genevolve_ray.engines.transports.protocol import Meeting
        from genevolve_ray.engines.transports.sender import open_sender

        if self._end is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            self._end = open_sender("gloo", Meeting(address, 2, 60.0, piece_bytes=PIECE), source, self)
        self._end.source = source
        self._end.send_weights()

    def _deliver(self, call: TransferCall, argument: dict[str, Any] | None = None) -> None:
        asyncio.run_coroutine_threadsafe(self._transfer_queue.deliver(call, argument), self._loop).result(timeout=60)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._deliver(TransferCall.JOIN, init_info)

    def start_weight_update(self) -> None:
        self._deliver(TransferCall.START)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._deliver(TransferCall.PART, update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._deliver(TransferCall.FINISH)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trainer(engine: VllmEngine) -> Trainer:
    return Trainer(engine, asyncio.get_running_loop())


def probe_of(folder: str) -> Probe:
    import torch
    from transformers import AutoModelForCausalLM

    ids = tuple((7 * i * i + 11) % 300 for i in range(40))
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, :-1]
    return Probe(
        token_ids=ids, logprobs=tuple(logits.log_softmax(-1)[torch.arange(39), torch.tensor(ids[1:])].tolist())
    )


def start_long(engine: VllmEngine) -> list[asyncio.Task[Generation]]:
    return [
        asyncio.create_task(engine.generate(p, SamplingParams(max_tokens=60, seed=i), f"long-{i}"))
        for i, p in enumerate(PROMPTS)
    ]


def check_tokens(results: list[Generation], folders: dict[int, str]) -> None:
    """Every token has the log-prob that the weights of its version give it."""
    assert {version for result in results for version in result.versions} == set(folders)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert list(result.versions) == sorted(result.versions)
        expected = {v: forward_logprobs(folder, prompt, result.tokens, 1.0) for v, folder in folders.items()}
        for place, (version, logprob) in enumerate(zip(result.versions, result.logprobs, strict=True)):
            assert logprob == pytest.approx(expected[version][place], abs=1e-4)


async def test_what_was_sent_is_what_samples(engine: VllmEngine, trainer: Trainer, tiny_models: TinyModels) -> None:
    probe, before = probe_of(tiny_models.second), engine.version
    assert await trainer.send(trainer.source(tiny_models.second), before + 1, probe) < 1e-5
    by_transfer = await engine.score(probe.token_ids)
    await engine.update(tiny_models.first, before + 2)
    await engine.update(tiny_models.second, before + 3)
    assert await engine.score(probe.token_ids) == by_transfer, "a folder gives the same weights"
    results = await asyncio.gather(*start_long(engine))
    check_tokens(results, {before + 3: tiny_models.second})


async def test_requests_under_way_go_on_with_the_new_weights(
    engine: VllmEngine, trainer: Trainer, tiny_models: TinyModels
) -> None:
    old, new = engine.version + 1, engine.version + 2
    await engine.update(tiny_models.second, old)
    long = start_long(engine)
    await engine.generate((50, 60), SamplingParams(max_tokens=5, seed=9), "short")
    await trainer.send(trainer.source(tiny_models.first), new, probe_of(tiny_models.first))
    check_tokens(await asyncio.gather(*long), {old: tiny_models.second, new: tiny_models.first})


async def test_a_transfer_that_breaks_off_is_an_error_and_requests_wait_for_another(
    engine: VllmEngine, trainer: Trainer, tiny_models: TinyModels
) -> None:
    old, broken, new = (engine.version + n for n in (1, 2, 3))
    await engine.update(tiny_models.first, old)
    long = start_long(engine)
    await engine.generate((50, 60), SamplingParams(max_tokens=5, seed=9), "short")
    second = trainer.source(tiny_models.second)
    with pytest.raises(WeightUpdateError, match=f"the transfer of version {broken} failed"):
        await trainer.send(Half(second), broken, probe_of(tiny_models.second))
    late = asyncio.create_task(engine.generate((50, 60), SamplingParams(max_tokens=5), "late"))
    done, _ = await asyncio.wait([*long, late], timeout=0.5)
    assert done == set(), "nothing is handed out, and nothing sampled, with half of the weights"
    # A group of its own, and layers that remember nothing of the first half.
    assert await trainer.send(second, new, probe_of(tiny_models.second)) < 1e-5
    check_tokens(await asyncio.gather(*long), {old: tiny_models.first, new: tiny_models.second})
    assert set((await late).versions) == {new}


async def test_weights_that_the_probe_refuses_sample_nothing(
    engine: VllmEngine, trainer: Trainer, tiny_models: TinyModels
) -> None:
    wrong, new = engine.version + 1, engine.version + 2
    with pytest.raises(WeightUpdateError, match=f"after the update to version {wrong}"):
        await trainer.send(trainer.source(tiny_models.first), wrong, WRONG)
    with pytest.raises(WeightUpdateError, match=f"after the update to version {wrong}"):
        await engine.generate((50, 60), SamplingParams(max_tokens=5), "refused")
    await trainer.send(trainer.source(tiny_models.first), new, probe_of(tiny_models.first))
    assert set((await engine.generate((50, 60), SamplingParams(max_tokens=5), "fine")).versions) == {new}
