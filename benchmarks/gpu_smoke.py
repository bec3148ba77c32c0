"""The learner on one GPU, from a bare copy of the tree: `python benchmarks/gpu_smoke.py`.

Needs torch, transformers, safetensors and pydantic; no vLLM, no Ray, no download. A random Qwen3 is written to a
temporary folder, then: parity of the bf16 learner with a plain forward, learner steps (tokens/s, peak memory, the
share of the chip's work), and the weights' way from the GPU to the host and back. Prints JSON. Exit code 0 when every
check holds, 1 when one does not, 2 when the device is not there.

Shape legend: T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

# As a script, this folder is on the path and the tree is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from torch import Tensor

    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.step import Learner

PARITY_LIMIT = 0.03
"""Largest mean |learner - plain forward| log-prob in bf16, the limit that a run uses."""
TINY = {
    "layers": 2,
    "hidden": 64,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "intermediate": 128,
    "vocabulary": 512,
    "tokens": 512,
    "sequence": 128,
    "repeats": 2,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; the default shape is that of Qwen3-0.6B."""
    parser = argparse.ArgumentParser(prog="gpu_smoke", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu to try the script itself")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers and 512 tokens")
    for name, value, what in (
        ("layers", 28, "layers"),
        ("hidden", 1024, "hidden size"),
        ("heads", 16, "attention heads"),
        ("kv-heads", 8, "key-value heads"),
        ("head-dim", 128, "size of a head"),
        ("intermediate", 3072, "size of the feed-forward layer"),
        ("vocabulary", 151_936, "vocabulary"),
        ("tokens", 4096, "tokens of a step"),
        ("sequence", 1024, "tokens of a sequence"),
        ("repeats", 5, "measured repetitions"),
        ("seed", 1, "seed of weights and tokens"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default {value})")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here as well")
    parsed = parser.parse_args(arguments)
    if parsed.tiny:
        vars(parsed).update(TINY)
    if parsed.tokens < parsed.sequence:
        parser.error(f"--tokens {parsed.tokens} is less than one --sequence of {parsed.sequence}")
    return parsed


def write_model(settings: argparse.Namespace, folder: str | Path, dtype: str = "float32") -> None:
    """Write the random policy to `folder` in HF layout."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(settings.seed)
    shape = Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        intermediate_size=settings.intermediate,
        max_position_embeddings=max(2048, settings.sequence),
        tie_word_embeddings=True,
    )
    with torch.device(settings.device):
        model = Qwen3ForCausalLM(shape).to(getattr(torch, dtype))
    model.save_pretrained(folder)


def make_sequences(settings: argparse.Namespace) -> list[TrainSequence]:
    """Return random sequences: a quarter of context, then policy tokens; advantages +1 and -1."""
    import torch

    from genevolve_ray.learning.batch import TrainSequence

    generator = torch.Generator().manual_seed(settings.seed)
    length, context = settings.sequence, settings.sequence // 4
    mask = [False] * context + [True] * (length - context)
    sequences = []
    for index in range(settings.tokens // length):
        tokens = torch.randint(settings.vocabulary, (length,), generator=generator).tolist()
        sequences.append(TrainSequence(tokens, mask, [0.0] * length, (-1.0) ** index))
    return sequences


def plain_logprobs(model: Any, sequence: TrainSequence, *, half: bool) -> Tensor:
    """Return the log-probs of the policy tokens by the plain way: all logits [T, V], log-softmax, gather."""
    import torch

    device = model.device
    ids_T = torch.tensor(sequence.tokens, device=device)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        logits_T_V = model(input_ids=ids_T[None], use_cache=False).logits[0]
    logprobs_T = logits_T_V[:-1].float().log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    policy_logprobs: Tensor = logprobs_T[torch.tensor(sequence.policy_mask[1:], device=device)].cpu()
    return policy_logprobs


def parity(learner: Learner, sequences: Sequence[TrainSequence], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return mean and largest |learner - plain forward| in bf16, and beside it what bf16 itself costs over float32."""
    import torch

    mine = torch.cat([torch.tensor(score) for score in scores])
    plain = {
        half: torch.cat([plain_logprobs(learner.model, sequence, half=half) for sequence in sequences])
        for half in (True, False)
    }
    gap, wide, own = (mine - plain[True]).abs(), (mine - plain[False]).abs(), (plain[True] - plain[False]).abs()
    return {
        "mean": gap.mean().item(),
        "max": gap.max().item(),
        "mean_to_float32": wide.mean().item(),
        "mean_of_plain_bf16_to_float32": own.mean().item(),
        "limit": PARITY_LIMIT,
        "policy_tokens": len(mine),
    }


def synchronize(device: str) -> None:
    """Wait for the GPU; on a CPU there is nothing to wait for."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(device: str, repeats: int, work: Callable[[], object]) -> list[float]:
    """Return the seconds of each repetition after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def learner_steps(
    learner: Learner, sequences: Sequence[TrainSequence], settings: argparse.Namespace
) -> dict[str, float | bool]:
    """Take steps and return speed, peak memory and whether they did something."""
    import torch

    from genevolve_ray.learning.distributed import full

    gpu = settings.device.startswith("cuda")
    if gpu:
        torch.cuda.reset_peak_memory_stats(settings.device)
    before = full(next(learner.model.parameters()).detach()).clone()
    metrics: list[dict[str, float]] = []
    seconds = timed(
        settings.device,
        settings.repeats,
        lambda: metrics.append(learner.train_step(sequences, len(metrics))),
    )
    tokens, flops = metrics[-1]["tokens"], metrics[-1]["model_flops_per_second"] * metrics[-1]["seconds"]
    return {
        "seconds": median(seconds),
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "tokens": tokens,
        "tokens_per_second": tokens / median(seconds),
        "model_tflops_per_second": flops / median(seconds) / 1e12,
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated(settings.device)) if gpu else math.nan,
        "loss_first": metrics[0]["loss"],
        "loss_last": metrics[-1]["loss"],
        "parity_first": metrics[0]["parity"],
        "finite": all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in metrics),
        "weights_changed": not torch.equal(before, full(next(learner.model.parameters()).detach())),
    }


def weight_copy(learner: Learner, settings: argparse.Namespace) -> dict[str, float | bool]:
    """Time the weights' way to host memory (page-locked where there is a GPU), back, and to a folder."""
    import torch

    from genevolve_ray.learning.distributed import full

    gpu = settings.device.startswith("cuda")
    weights = [full(parameter.detach()) for parameter in learner.model.parameters()]
    host = [torch.empty(w.shape, dtype=w.dtype, pin_memory=gpu) for w in weights]
    back = [torch.empty_like(w) for w in weights]

    def copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source, non_blocking=True)

    size = sum(w.numel() * w.element_size() for w in weights)
    to_host = timed(settings.device, settings.repeats, lambda: copy(weights, host))
    to_device = timed(settings.device, settings.repeats, lambda: copy(host, back))
    with TemporaryDirectory(prefix="genevolve-smoke-") as folder:
        to_folder = timed(settings.device, 1, lambda: learner.write_weights(folder))
    return {
        "bytes": float(size),
        "seconds_to_host": median(to_host),
        "seconds_to_device": median(to_device),
        "seconds_to_folder": median(to_folder),
        "gigabytes_per_second_to_host": size / median(to_host) / 1e9,
        "gigabytes_per_second_to_device": size / median(to_device) / 1e9,
        "equal": all(torch.equal(a, b) for a, b in zip(weights, back, strict=True)),
    }


def smoke(settings: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the result; `ok` says whether every check holds."""
    from dataclasses import replace

    import torch
    import transformers

    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory(prefix="genevolve-smoke-") as folder:
        write_model(settings, folder)
        config = LearnerConfig(
            dtype="bfloat16", device=settings.device, token_budget=settings.tokens, lr=1e-5, temperature=1.0
        )
        learner = Learner(folder, config)
    sequences = make_sequences(settings)
    scores = learner.score(sequences)
    checked = parity(learner, sequences, scores)
    context = len(sequences[0].tokens) - len(scores[0])
    sampled = [
        replace(sequence, logprobs=[0.0] * context + list(score))
        for sequence, score in zip(sequences, scores, strict=True)
    ]
    step, copied = learner_steps(learner, sampled, settings), weight_copy(learner, settings)
    gpu = settings.device.startswith("cuda")
    return {
        "ok": checked["mean"] <= PARITY_LIMIT and all((step["finite"], step["weights_changed"], copied["equal"])),
        "device": torch.cuda.get_device_name(settings.device) if gpu else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "parity_bf16": checked,
        "learner_step": {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in step.items()},
        "weight_copy": copied,
    }


def gpu_is_missing(device: str) -> bool:
    """Return whether a script cannot have its GPU, and say so on stderr."""
    import torch

    if not device.startswith("cuda") or torch.cuda.is_available():
        return False
    print(
        f"error: --device {device}: torch {torch.__version__} sees no GPU on this machine "
        "(--device cpu --tiny tries the script itself)",
        file=sys.stderr,
    )
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    settings = parse(arguments)
    if gpu_is_missing(settings.device):
        return 2
    result = smoke(settings)
    text = json.dumps(result, indent=2)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
