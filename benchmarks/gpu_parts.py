"""What the stages on one engine share: sizes by device, random models, engines, rollouts and their parity.

Without a GPU, and with --quick, everything is tiny and runs on a CPU.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Options, say

if TYPE_CHECKING:
    from genevolve_ray.engines.protocol import Generation, PromptImage
    from genevolve_ray.engines.vllm import VllmEngine
    from genevolve_ray.learning.step import Learner

Prompt = tuple[list[int], "Sequence[PromptImage]"]
Sampled = Sequence[tuple[list[int], "Generation"]]
"""Prompts, and what was sampled on each."""
PICTURES = 2
"""Pictures of each prompt of a model that sees."""


@dataclass(frozen=True)
class Size:
    """Hold the sizes of a stage: of the model, and of the rollouts."""

    device: str
    model: dict[str, Any]
    sequences: int
    prompt: int
    sampled: int
    cache_mib: int
    side: int


_GPU = Size(
    "cuda",
    {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    sequences=64,
    prompt=512,
    sampled=256,
    cache_mib=8192,
    side=512,
)
_CPU = Size(
    "cpu",
    {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
    },
    sequences=4,
    prompt=64,
    sampled=16,
    cache_mib=32,
    side=64,
)


def size_of(options: Options) -> Size:
    """Return the sizes for the device at hand."""
    import torch

    return _GPU if torch.cuda.is_available() and not options.quick else _CPU


async def generate(engine: VllmEngine, prompts: Sequence[Prompt], tokens: int) -> Sampled:
    """Sample so many tokens on every prompt, all at once."""
    from genevolve_ray.engines.protocol import SamplingParams

    sampling = SamplingParams(temperature=1.0, max_tokens=tokens)
    calls = [engine.generate(ids, sampling, f"r{place}", media) for place, (ids, media) in enumerate(prompts)]
    return [(ids, made) for (ids, _), made in zip(prompts, await asyncio.gather(*calls), strict=True)]


def parity(learner: Learner, sampled: Sampled) -> float:
    """Return the mean |engine - learner| log-prob of sampled tokens, the gauge of a run."""
    from genevolve_ray.learning.batch import TrainSequence

    sequences = []
    for ids, made in sampled:
        mask = [False] * len(ids) + [True] * len(made.tokens)
        sequences.append(TrainSequence([*ids, *made.tokens], mask, [0.0] * len(mask), 0.0))
    pairs = zip(learner.score(sequences), sampled, strict=True)
    gaps = [abs(a - b) for scores, (_, made) in pairs for a, b in zip(scores, made.logprobs, strict=True)]
    return sum(gaps) / len(gaps)


@contextmanager
def random_models(size: Size) -> Iterator[tuple[Path, Path]]:
    """Write two random models of one shape in 16 bits; their log-probs differ clearly."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**size.model, max_position_embeddings=4096, tie_word_embeddings=True, dtype="bfloat16")
    with TemporaryDirectory(prefix="genevolve-bench-") as folder, torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.device(size.device):
                model = Qwen3ForCausalLM(config).bfloat16()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(2)  # as initialized it is nearly uniform, where wrong weights hardly show
            model.save_pretrained(Path(folder) / str(seed))
            del model
        if size.device != "cpu":
            torch.cuda.empty_cache()
        yield Path(folder) / "1", Path(folder) / "2"


@asynccontextmanager
async def started_engine(
    folder: Path,
    size: Size,
    *,
    sequences: int | None = None,
    length: int | None = None,
    transfer: str | None = None,
    **settings: Any,
) -> AsyncIterator[VllmEngine]:
    """Start an engine in 16 bits, and close it at the end; `settings` are those of vLLM."""
    from genevolve_ray.engines.config import VllmConfig
    from genevolve_ray.engines.vllm import VllmEngine

    say("starting an engine")
    engine = await VllmEngine.create(
        folder,
        dtype="bfloat16",
        max_model_len=length or size.prompt + size.sampled,
        max_num_seqs=sequences or size.sequences,
        device=size.device,
        config=VllmConfig(kv_cache_mib=size.cache_mib, **settings),
        transfer=transfer,
    )
    try:
        yield engine
    finally:
        await engine.close()


def bare_learner(folder: Path, device: str) -> Learner:
    """Load a learner that computes in 16 bits over float32 weights."""
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    config = LearnerConfig(dtype="bfloat16", device=device, token_budget=8192, lr=1e-5, temperature=1.0)
    return Learner(folder, config)


def used_memory(size: Size) -> int:
    """Return the bytes of the GPU's memory that all processes use; 0 on a CPU."""
    import torch

    if size.device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def seeing_model(folder: Path, size: Size) -> Callable[[int], Prompt]:
    """Write a random model that sees, and return what makes a prompt of new pictures."""
    from genevolve_ray.atlas.sight_start import SightStartConfig
    from genevolve_ray.atlas.tokenizer import build_tokenizer

    wide: dict[str, Any] = {}
    if size.device != "cpu":
        wide = {"hidden_size": 1024, "layers": 16, "heads": 16, "head_dim": 64, "intermediate_size": 3072}
        wide |= {"tower_width": 512, "tower_layers": 12}
    config, tokenizer = SightStartConfig(image_side=size.side, **wide), build_tokenizer(sight=True)
    model = config.new_model(tokenizer, config.curriculum.seed)
    config.save(model, tokenizer, folder)
    return lambda seed: _shown(model.config, folder, size.side, seed)


def _shown(config: Any, folder: Path, side: int, seed: int) -> Prompt:
    """Return a prompt of a few words around pictures of noise."""
    import numpy as np
    from PIL import Image

    from genevolve_ray.engines.protocol import PromptImage
    from genevolve_ray.models.image_processor import patch_grid
    from genevolve_ray.models.image_tokens import load_image_tokens
    from genevolve_ray.records.ledger import MediaSpan

    images = load_image_tokens(folder)
    assert images is not None, "the model sees"
    grid, ids = patch_grid(images.processor, side, side), [20, 21, 22]
    media: list[PromptImage] = []
    for number in range(PICTURES):
        noise = np.random.default_rng((seed, number)).integers(0, 256, (side, side, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        data, start = buffer.getvalue(), len(ids) + 1
        count = images.count(grid)
        ids += [config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id, 23]
        sha256 = hashlib.sha256(data).hexdigest()
        media.append(PromptImage(span=MediaSpan(start=start, end=start + count, sha256=sha256, grid=grid), data=data))
    return ids, media
