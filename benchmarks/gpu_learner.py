"""What a learner step costs on one GPU, from a bare copy of the tree: `python benchmarks/gpu_learner.py`.

Needs torch, transformers, safetensors and pydantic (peft for --lora); no vLLM, no Ray, no download. A random Qwen3 of a
real size takes GRPO steps in bfloat16. Prints JSON: tokens/s, MFU with the peak it assumes, peak memory, and where the
time goes by torch's profiler. Exit code 0 when the steps are finite and change weights, 1 when not, 2 where the device
is not there.

MFU = operations that the mathematics needs / seconds / peak, recomputation left out:
    blocks     4 per parameter and token (forward, gradient of the input), 2 more where the parameter is trained
    head       the same, on policy tokens alone: no other logits are computed
    attention  6 * T^2 * heads * head_dim per layer and sequence: two causal products (half of T^2 pairs, 2 operations
               each) forward, twice that backward
A reference pass (--kl) adds its forward third of the blocks and attention.

Shape legend: T tokens of a sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

# As a script, this folder is on the path and the tree is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_smoke import TINY, gpu_is_missing, make_sequences, synchronize, write_model

if TYPE_CHECKING:
    from torch import Tensor

    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.config import LearnerConfig
    from genevolve_ray.learning.step import Learner

TOP = 15


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; the default shape is that of Qwen3-1.7B."""
    parser = argparse.ArgumentParser(prog="gpu_learner", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu to try the script itself")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers and 512 tokens")
    for name, value, what in (
        ("layers", 28, "layers"),
        ("hidden", 2048, "hidden size"),
        ("heads", 16, "attention heads"),
        ("kv-heads", 8, "key-value heads"),
        ("head-dim", 128, "size of a head"),
        ("intermediate", 6144, "size of the feed-forward layer"),
        ("vocabulary", 151_936, "vocabulary"),
        ("tokens", 16_384, "tokens of a step"),
        ("sequence", 8192, "tokens of a sequence"),
        ("budget", 0, "tokens of a micro-batch, 0 for one sequence"),
        ("lora", 0, "rank of a LoRA adapter, 0 for full-parameter training"),
        ("repeats", 5, "measured steps"),
        ("seed", 1, "seed of weights and tokens"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default {value})")
    parser.add_argument(
        "--checkpointing",
        type=float,
        nargs="?",
        default=0.0,
        const=1.0,
        metavar="SHARE",
        help="recompute the activations of the layers, or of a share of them, in the backward pass",
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers")
    parser.add_argument("--kernels", choices=("torch", "liger"), default="torch", help="kernels of norms, RoPE, SwiGLU")
    parser.add_argument("--offload", action="store_true", help="master weights and optimizer on the host")
    parser.add_argument("--kl", action="store_true", help="with a reference pass")
    parser.add_argument("--peak-tflops", type=float, default=None, help="peak of the device, if the table lacks it")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here as well")
    parsed = parser.parse_args(arguments)
    if parsed.tiny:
        vars(parsed).update(TINY)
    if parsed.tokens < parsed.sequence:
        parser.error(f"--tokens {parsed.tokens} is less than one --sequence of {parsed.sequence}")
    return parsed


def learner_config(settings: argparse.Namespace) -> LearnerConfig:
    """Return the learner's settings."""
    from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig

    return LearnerConfig(
        dtype="bfloat16",
        device=settings.device,
        token_budget=settings.budget or settings.sequence,
        lr=1e-5,
        temperature=1.0,
        gradient_checkpointing=settings.checkpointing,
        compile=settings.compile,
        kernels=settings.kernels,
        offload=settings.offload,
        lora=LoraConfig(rank=settings.lora, alpha=2.0 * settings.lora) if settings.lora else None,
        kl=KlConfig(coefficient=1e-3 if settings.kl else 0.0),
    )


def parameter_flops(parameters: Sequence[Tensor]) -> float:
    """Return operations per token of a forward and backward pass through the parameters."""
    return sum((6.0 if p.requires_grad else 4.0) * p.numel() for p in parameters)


def step_flops(learner: Learner, sequences: Sequence[TrainSequence], settings: argparse.Namespace) -> dict[str, float]:
    """Return the operations that a step needs, by the module's formula."""
    from genevolve_ray.learning.policy import decoder_layers, head_weight

    tokens = sum(len(s.tokens) for s in sequences)
    blocks = [p for p in decoder_layers(learner.model).parameters() if p.ndim > 1]
    squares = sum(len(s.tokens) ** 2 for s in sequences)
    flops = {
        "blocks": tokens * parameter_flops(blocks),
        "head": sum(s.policy_tokens for s in sequences) * parameter_flops([head_weight(learner.model)]),
        "attention": 6.0 * squares * settings.heads * settings.head_dim * settings.layers,
    }
    if settings.kl:
        flops["reference"] = 2.0 * tokens * sum(p.numel() for p in blocks) + flops["attention"] / 3
    return flops


def peak_tflops(settings: argparse.Namespace, name: str) -> float | None:
    """Return the peak that is assumed for a device, None when nothing is known of it."""
    if settings.peak_tflops is not None:
        return float(settings.peak_tflops)
    from genevolve_ray.learning.speed import PEAK_TFLOPS

    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def profile(learner: Learner, sequences: Sequence[TrainSequence], device: str, step: int) -> list[dict[str, Any]]:
    """Return the kernels (on a CPU the operators) that take the most time of one step, with their share."""
    import torch
    from torch.profiler import ProfilerActivity

    gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        learner.train_step(sequences, step)
        synchronize(device)

    def own(event: Any) -> float:
        return float(event.self_device_time_total if gpu else event.self_cpu_time_total)

    events = sorted(profiler.key_averages(), key=own, reverse=True)
    if gpu:
        # Operators repeat the time of the kernels that they start.
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(own(event) for event in events)
    return [
        {
            "name": event.key[:120],
            "calls": event.count,
            "milliseconds": own(event) / 1e3,
            "share": own(event) / total if total else 0.0,
        }
        for event in events[:TOP]
    ]


def measure(settings: argparse.Namespace, model_dir: Path | None = None) -> dict[str, Any]:
    """Run the steps and return the result; `ok` says whether they did something sensible.

    Args:
        settings: the command line.
        model_dir: the policy; by default a random one is written, and the last step is profiled.
    """
    import torch
    import transformers

    from genevolve_ray.learning.distributed import full
    from genevolve_ray.learning.step import Learner

    transformers.utils.logging.disable_progress_bar()
    gpu = settings.device.startswith("cuda")
    with TemporaryDirectory(prefix="genevolve-learner-") as folder:
        if model_dir is None:
            write_model(settings, folder)
        if gpu:
            torch.cuda.empty_cache()
        learner = Learner(model_dir or folder, learner_config(settings))
    plain = make_sequences(settings)
    sequences = [
        replace(sequence, logprobs=[0.0] * (len(sequence.tokens) - len(score)) + list(score))
        for sequence, score in zip(plain, learner.score(plain), strict=True)
    ]
    if gpu:
        torch.cuda.reset_peak_memory_stats(settings.device)
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    before = [full(p.detach()).to("cpu", copy=True) for p in trained[-2:]]
    metrics, seconds = [], []
    for step in range(settings.repeats + 1):
        synchronize(settings.device)
        started = time.perf_counter()
        metrics.append(learner.train_step(sequences, step))
        synchronize(settings.device)
        seconds.append(time.perf_counter() - started)
    first, *seconds = seconds  # the first step builds the optimizer's state, compiles, and fills caches
    memory = torch.cuda.max_memory_allocated(settings.device) if gpu else None
    flops, tokens = step_flops(learner, sequences, settings), metrics[-1]["tokens"]
    name = torch.cuda.get_device_name(settings.device) if gpu else "cpu"
    peak, rate = peak_tflops(settings, name), sum(flops.values()) / median(seconds) / 1e12
    finite = all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in metrics)
    changed = any(not torch.equal(a, full(p.detach()).cpu()) for a, p in zip(before, trained[-2:], strict=True))
    return {
        "ok": finite and changed,
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "parameters_trained": sum(p.numel() for p in trained),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "step": {
            "seconds": median(seconds),
            "seconds_low": min(seconds),
            "seconds_high": max(seconds),
            "seconds_each": seconds,
            "seconds_first": first,
            "tokens": tokens,
            "policy_tokens": metrics[-1]["policy_tokens"],
            "micro_batches": metrics[-1]["micro_batches"],
            "tokens_per_second": tokens / median(seconds),
            "peak_memory_bytes": memory,
            "loss": metrics[-1]["loss"],
            "parity_first": metrics[0]["parity"],
        },
        "flops": flops,
        "tflops_per_second": rate,
        "peak_tflops_assumed": peak,
        "mfu": rate / peak if peak else None,
        "profile": None if model_dir else profile(learner, sequences, settings.device, settings.repeats + 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    settings = parse(arguments)
    if gpu_is_missing(settings.device):
        return 2
    result = measure(settings)
    text = json.dumps(result, indent=2)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
