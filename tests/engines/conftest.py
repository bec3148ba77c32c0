"""The tiny models of the engine tests, built once, and one vLLM engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tiny_qwen3 import BANNED, CONTEXT, VOCAB, TinyModels, build_adapter, build_model, build_tokenizer

if TYPE_CHECKING:
    from genevolve_ray.engines.vllm import VllmEngine


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    root = tmp_path_factory.mktemp("tiny")
    return TinyModels(build_model(root / "first", 1), build_model(root / "second", 2))


@pytest.fixture(scope="session")
def engine_case(tiny_models: TinyModels) -> Any:
    """The contract's case for the tiny models; the probe's log-probs come from a plain forward."""
    import torch
    from transformers import AutoModelForCausalLM

    from genevolve_ray.contracts.engine import EngineCase
    from genevolve_ray.engines.protocol import Probe

    ids = tuple((7 * i * i + 11) % VOCAB for i in range(40))
    model = AutoModelForCausalLM.from_pretrained(tiny_models.second).eval()
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    probe = Probe(token_ids=ids, logprobs=tuple(logprobs[torch.arange(39), torch.tensor(ids[1:])].tolist()))
    return EngineCase(
        prompt=(11, 45, 200, 7, 150),
        vocab_size=VOCAB,
        banned=BANNED,
        max_model_len=CONTEXT,
        folder=tiny_models.second,
        probe=probe,
    )


@pytest.fixture(scope="session")
def adapter_case(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The contract's case for an adapter over the first tiny model; peft's own forward made the probe."""
    return build_adapter(tmp_path_factory.mktemp("adapter") / "version", tiny_models.first)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(tiny_models: TinyModels) -> AsyncIterator[VllmEngine]:
    """One vLLM engine for whole modules of tests, open to both ways of new weights; its start takes longer than they do."""
    from genevolve_ray.engines.protocol import SamplingParams
    from genevolve_ray.engines.vllm import VllmEngine

    engine = await VllmEngine.create(
        tiny_models.first, banned=BANNED, max_model_len=CONTEXT, max_num_seqs=16, transfer="gloo"
    )
    yield engine
    await engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        await engine.generate((1, 2), SamplingParams(), "late")
