"""What the forms of distillation cost and how noisy they are: `python -m benchmarks.distillation --part PART`.

`memory`: growth of a fresh process's peak resident memory over forward and backward pass of an exact form at 8,192 tokens
and the vocabulary of Qwen3, in bfloat16. Everything beyond the inputs counts (states of student and teacher, head, ban
mask): logits, copies of the head, gradients.

`cost`: processor time of a learner's step with each form over that with `score`, in turn on one batch. It is the first
step of the atlas preset, or a stored step of a run (`--run`, with the policy that the run trained).

`noise`: cosine between the distillation gradients of two halves of that batch, before any update. The halves share
either the requests (other rollouts of the same) or nothing.

Shape legend: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Goal, Options, Row, Spread, paired_ratio, prepare_process, repeat, say

if TYPE_CHECKING:
    from torch import Tensor

    from genevolve_ray.config import RunConfig
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.step import Learner

TOKENS, HIDDEN, VOCABULARY = 8192, 1024, 151_936
EXACT = ("reverse_kl", "forward_kl", "jsd")
LIMIT = Goal(2048, "at most")
FORMS: dict[str, dict[str, Any]] = {
    "score": {},
    "paper": {"form": "paper"},
    "score, every token": {"gate": "all"},
    "score, sigmoid gate": {"gate": "sigmoid"},
    **{f"{form}, top tenth": {"form": form} for form in EXACT},
    **{f"{form}, every token": {"form": form, "gate": "all"} for form in EXACT},
    "reverse_kl, sigmoid gate": {"form": "reverse_kl", "gate": "sigmoid"},
}
RATIO = {"score, coefficient by gradient norms": {"coefficient": {"ratio_to_grpo": 0.5}}}
SPLITS = 200
"""Random halves of the batch."""


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(forms: Sequence[str], tokens: int) -> list[Row]:
    """Return a row for each form: MiB beyond the inputs."""
    rows = []
    for form in forms:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            mib, seconds = pool.apply(_grown, (form, tokens))
        say(f"{form}: {mib:,.0f} MiB, {seconds:,.0f} s")
        rows.append(Row(f"{form}, {tokens} tokens, V {VOCABULARY}", Spread.of([mib]), "MiB", goal=LIMIT))
    return rows


def _grown(form: str, tokens: int) -> tuple[float, float]:
    import torch

    from genevolve_ray.learning.divergences import divergence_of, divergences
    from genevolve_ray.learning.ved_config import VedConfig, VedForm

    torch.set_num_threads(1)
    chosen = divergence_of(VedConfig(coefficient=1.0, form=VedForm(form)))

    def inputs(count: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden_T_H, teacher_T_H = (torch.randn(count, HIDDEN).bfloat16() for _ in range(2))
        weight_V_H = torch.empty(vocabulary, HIDDEN, dtype=torch.bfloat16).normal_(std=0.02)
        ban_V = torch.zeros(vocabulary, dtype=torch.bool)
        ban_V[-100:] = True
        return hidden_T_H.requires_grad_(), teacher_T_H, weight_V_H.requires_grad_(), ban_V

    def both_passes(hidden_T_H: Tensor, teacher_T_H: Tensor, weight_V_H: Tensor, ban_V: Tensor) -> None:
        divergences(hidden_T_H, teacher_T_H, weight_V_H, chosen, ban_mask_V=ban_V).mean().backward()

    both_passes(*inputs(4, 256))
    given = inputs(tokens, VOCABULARY)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    both_passes(*given)
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return mib, time.process_time() - started


# --- a batch ---------------------------------------------------------------------------------------------------------


def atlas_batch(options: Options) -> tuple[RunConfig, Path, list[TrainSequence]]:
    """Return the atlas preset, its policy, and the sequences that its first step trains on."""
    from benchmarks.packing import played
    from benchmarks.world import atlas_config

    config = atlas_config(options, "learner.lr=0", "engine.kind=transformers", "loop.steps=1", "loop.validate_every=0")
    say("playing one step")
    return config, options.policy, asyncio.run(played(config, options.policy))


def stored_batch(run: Path, policy: Path, step: int, most: int) -> tuple[RunConfig, Path, list[TrainSequence]]:
    """Return the configuration of a run, its policy, and at most `most` taught sequences of a stored step."""
    from genevolve_ray.config import RunConfig
    from genevolve_ray.evolution.inprocess import load_chat
    from genevolve_ray.evolution.learner import training_sequences
    from genevolve_ray.evolution.store.lessons import stored_lessons
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.evolution.teaching import TeacherPatch

    with RunStore.read(str(run)) as store:
        config = RunConfig.model_validate(store.config)
        patch = TeacherPatch(load_chat(policy), config.protocol, max_tokens=sys.maxsize)
        lessons = {lesson.request_id: lesson.experience for lesson in stored_lessons(store, step)}
        sequences = training_sequences(
            store.groups(step),
            config.learner.advantage,
            lambda t, images: patch.context(t, found, images) if (found := lessons.get(t.key.request_id)) else None,
        )
    return config, policy, [s for s in sequences if s.teacher is not None][:most]


def learner_of(config: RunConfig, policy: Path, settings: dict[str, Any]) -> Learner:
    """Return a learner at learning rate 0 with other settings of distillation."""
    from genevolve_ray.evolution.inprocess import load_banned, load_chat
    from genevolve_ray.learning.step import Learner
    from genevolve_ray.learning.ved_config import VedConfig

    ved = VedConfig.model_validate({"coefficient": 0.1, **settings})
    learner = config.learner.model_copy(update={"lr": 0.0, "ved": ved, "threads": 1})
    return Learner(policy, learner, load_banned(policy, load_chat(policy)))


# --- cost and noise --------------------------------------------------------------------------------------------------


def cost(
    config: RunConfig, policy: Path, batch: Sequence[TrainSequence], forms: Sequence[str], times: int
) -> list[Row]:
    """Return a row for each form: CPU seconds of a step, and their ratio to `score`."""
    settings = FORMS | RATIO
    learners = {name: learner_of(config, policy, settings[name]) for name in dict.fromkeys(["score", *forms])}
    seconds: dict[str, list[float]] = {name: [] for name in learners}

    def once(step: int) -> None:
        for name, learner in learners.items():
            started = time.process_time()
            learner.train_step(batch, step)
            seconds[name].append(time.process_time() - started)

    repeat(times, once)
    kept = {name: values[1:] for name, values in seconds.items()}
    taught, tokens = sum(s.teacher is not None for s in batch), sum(s.policy_tokens for s in batch)
    what = f"{len(batch)} sequences, {taught} taught, {tokens} policy tokens"
    return [
        Row(f"{name}, {what}", Spread.of(kept[name]), "CPU s", paired_ratio(kept[name], kept["score"]), "score")
        for name in learners
    ]


def noise(config: RunConfig, policy: Path, batch: Sequence[TrainSequence], forms: Sequence[str]) -> list[Row]:
    """Return two rows for each form: the cosine between halves of the same requests, and of other requests.

    The rollouts of each request are divided into two at random, once. A half of the batch takes one part of every request,
    or both parts of every other request.
    """
    import torch

    taught = [replace(s, advantage=0.0) for s in batch if s.teacher is not None]
    requests: dict[tuple[int, ...], list[TrainSequence]] = {}
    for s in taught:
        requests.setdefault(tuple(s.tokens[: list(s.policy_mask).index(True)]), []).append(s)
    rng = random.Random(0)
    parts = [part for rollouts in requests.values() for part in _divided(rng.sample(rollouts, len(rollouts)))]
    what = f"{len(taught)} sequences of {len(requests)} requests"
    rows = []
    for name in forms:
        learner = learner_of(config, policy, FORMS[name] | {"coefficient": 1.0})
        # Under `sum` the gradient of a half is the sum over its sequences, up to a factor.
        gradients = torch.stack([_gradient(learner, part) for part in parts])
        for kind, halves in (("same requests", _by_rollout), ("other requests", _by_request)):
            rng = random.Random(1)
            found = []
            for _ in range(SPLITS):
                first, second = (gradients[half].sum(0) for half in halves(len(requests), rng))
                found.append(float(torch.nn.functional.cosine_similarity(first, second, dim=0)))
            rows.append(Row(f"{name}, halves with {kind}, {what}", Spread.of(found), "cosine"))
        say(f"{name}: {rows[-2].value.median:.3f} (same requests), {rows[-1].value.median:.3f} (other requests)")
    return rows


def _divided(rollouts: list[TrainSequence]) -> tuple[list[TrainSequence], list[TrainSequence]]:
    return rollouts[: len(rollouts) // 2], rollouts[len(rollouts) // 2 :]


def _by_rollout(requests: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Return the parts of two halves; the parts of request r are 2 r and 2 r + 1."""
    sides = [rng.randrange(2) for _ in range(requests)]
    return [2 * r + side for r, side in enumerate(sides)], [2 * r + 1 - side for r, side in enumerate(sides)]


def _by_request(requests: int, rng: random.Random) -> tuple[list[int], list[int]]:
    shuffled = rng.sample(range(requests), requests)
    first, second = shuffled[: requests // 2], shuffled[requests // 2 :]
    return [2 * r + side for r in first for side in (0, 1)], [2 * r + side for r in second for side in (0, 1)]


def _gradient(learner: Learner, sequences: Sequence[TrainSequence]) -> Tensor:
    """Return the sum over sequences of the gradient of their distillation, on all parameters."""
    import torch

    learner.drop()
    objective = learner._objective
    objective.add_gradients(learner._passes.split(sequences), objective.with_teacher(sequences), 0)
    gradient = torch.cat([p.grad.flatten() for p in learner._parameters if p.grad is not None])
    return gradient * len(sequences)  # `sum` is averaged over sequences


def main(arguments: list[str] | None = None) -> int:
    """Measure one part, print its rows, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--part", choices=("memory", "cost", "noise"), required=True)
    parser.add_argument("--form", action="append", help="this form alone; repeatable")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of `memory` (default 8192)")
    parser.add_argument("--repeats", type=int, default=5, help="of `cost` (default 5)")
    parser.add_argument("--policy", type=Path, help="model folder (default: the cold start of the atlas)")
    parser.add_argument("--run", type=Path, help="run with stored steps, trained from --policy")
    parser.add_argument("--step", type=int, default=1, help="its step (default 1)")
    parser.add_argument("--sequences", type=int, default=10**6, help="most taught sequences of a stored step")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parsed = parser.parse_args(arguments)
    prepare_process(1)
    if parsed.part == "memory":
        rows = memory(parsed.form or EXACT, parsed.tokens)
    else:
        from benchmarks.world import default_policy

        options = Options(parsed.policy or default_policy(), parsed.repeats, threads=1)
        if parsed.run is None:
            config, policy, batch = atlas_batch(options)
        else:
            config, policy, batch = stored_batch(parsed.run, options.policy, parsed.step, parsed.sequences)
        measure: Callable[..., list[Row]] = cost if parsed.part == "cost" else noise
        names = parsed.form or ([*FORMS, *RATIO] if parsed.part == "cost" else list(FORMS))
        rows = measure(config, policy, batch, names, *([parsed.repeats] if parsed.part == "cost" else []))
    from benchmarks.report import print_table

    print_table({f"distillation, {parsed.part}": [row.as_json() for row in rows]})
    if parsed.json:
        parsed.json.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
