"""TRL's sides of the multi-turn job: its GRPOTrainer around this project's episodes, tools, renderer and judge.

The episodes are passed as `rollout_func`, the way that TRL 1.16 offers for loops over several turns. Its own loop over
tool calls would have to parse this protocol by the chat template, and knows no format errors and no final step. As that
loop does, `rollout_func` samples one turn of all running episodes at a time, through the trainer's own generation.

TRL's arguments for vLLM assume a GPU. `patch_vllm` lists what it takes to run it here. Settings were chosen for speed:
the largest micro-batches that paid, no gradient checkpointing, no text from vLLM (`detokenize`), one weight load instead
of one for each tensor.

TRL knows no ban mask: control tokens may be sampled on its sides (they have a probability of about 1e-5).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.episodes import play
from benchmarks.measure import Options
from benchmarks.sides import Turns
from benchmarks.world import concurrency, grpo_config
from genevolve_ray.config import RunConfig
from genevolve_ray.engines.checks import room_for
from genevolve_ray.engines.config import MIB
from genevolve_ray.engines.protocol import FinishReason, Generation, SamplingParams
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.records.trajectory import Trajectory

if TYPE_CHECKING:
    from genevolve_ray.evolution.ports import RolloutPort

TRANSFORMERS, CORRECTED, UNCORRECTED = "transformers", "vllm", "vllm, uncorrected"
"""Ways to generate; the last one is without TRL's importance-sampling correction."""
MICRO_BATCH = 16
"""Sequences of a micro-batch."""
LARGEST_GAP = 0.01
"""Largest mean difference of the log-probs of vLLM and of the trainer; above it, vLLM has other weights."""

SampleBatch = Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float]] | None]]
"""Takes prompts and a token limit, returns tokens and log-probs (None: the backend has none)."""


class LockstepEngine:
    """Sample for episodes one turn at a time: when every running episode waits for its next turn."""

    name, version = "trl", 0

    def __init__(self, sample: SampleBatch, max_model_len: int, end_of_turn: int) -> None:
        """Sample with `sample`, which blocks."""
        self._sample, self._max_model_len, self._end_of_turn = sample, max_model_len, end_of_turn
        self._playing = 0
        self._waiting: list[tuple[list[int], int, asyncio.Future[Generation]]] = []

    def begin(self, episodes: int) -> None:
        """Expect so many episodes, each of which ends with `leave`."""
        self._playing = episodes

    def leave(self) -> None:
        """Note that an episode has ended."""
        self._playing -= 1
        self._sample_when_complete()

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[Any] = ()
    ) -> Generation:
        """Sample one turn; see `Engine.generate`."""
        limit = room_for(len(token_ids), sampling.max_tokens, self._max_model_len)
        turn: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(token_ids), limit, turn))
        self._sample_when_complete()
        return await turn

    def _sample_when_complete(self) -> None:
        if not self._waiting or len(self._waiting) < self._playing:
            return
        waiting, self._waiting = self._waiting, []
        prompts, limits, turns = zip(*waiting, strict=True)
        rows, logprobs = self._sample(list(prompts), max(limits))
        for row, limit, turn, tokens in zip(range(len(rows)), limits, turns, rows, strict=True):
            # TRL has one limit for all prompts: a turn that may be shorter is cut.
            kept = tuple(tokens[:limit])
            turn.set_result(
                Generation(
                    tokens=kept,
                    logprobs=(0.0,) * len(kept) if logprobs is None else tuple(logprobs[row][:limit]),
                    versions=(0,) * len(kept),
                    finish=FinishReason.STOP if kept[-1:] == (self._end_of_turn,) else FinishReason.LENGTH,
                )
            )

    async def update(self, folder: str, version: int, probe: Any = None) -> float:
        """Do nothing: the trainer loads its weights itself."""
        return 0.0

    async def score(self, token_ids: Sequence[int], media: Sequence[Any] = ()) -> list[float]:
        """Refuse with RuntimeError: the trainer scores."""
        raise RuntimeError("TRL's trainer scores by itself; this engine only generates")

    async def close(self) -> None:
        """Do nothing: the trainer owns the backend."""


class CountedRollouts:
    """Tell a lockstep engine when an episode ends."""

    def __init__(self, rollouts: RolloutPort, engine: LockstepEngine) -> None:
        """Play with `rollouts`, which sample from `engine`."""
        self._rollouts, self._engine = rollouts, engine

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play, render and judge one sample."""
        try:
            return await self._rollouts.rollout(task)
        finally:
            self._engine.leave()

    async def rest(self) -> None:
        """Do nothing: the trainer owns the engine."""

    async def update(self, weights: Any) -> float:
        """Do nothing: the trainer loads its weights itself."""
        return 0.0


class Player:
    """TRL's `rollout_func`: play, render and judge the rollouts of one step."""

    def __init__(self, config: RunConfig, policy: Path) -> None:
        """Build requests, tools, renderer and judge as a run in one process does."""
        from genevolve_ray.evolution.inprocess import build_rollouts, load_chat
        from genevolve_ray.records.images import MemoryImages

        assert config.engine.max_model_len is not None, "the preset states it"
        images, end = MemoryImages(), load_chat(policy).end_of_turn_id
        self._config, self._requests = config, config.requests.build(images)
        self._engine = LockstepEngine(self._sample, config.engine.max_model_len, end)
        engine: Any = self._engine
        self._rollouts = CountedRollouts(build_rollouts(config, policy, engine, images), self._engine)
        self._trainer: Any = None
        self.seconds, self.trajectories = 0.0, list[Trajectory]()

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Return the columns of the trajectories; each prompt is the number of a request, repeated for its group."""
        started, self._trainer = time.perf_counter(), trainer
        requests = [self._requests.train(int(number)) for number in prompts[:: self._config.loop.group_size]]
        self._engine.begin(len(prompts))
        self.trajectories = asyncio.run(play(self._config, self._rollouts, requests, trainer.state.global_step))
        self.seconds = time.perf_counter() - started
        ledgers = [trajectory.ledger for trajectory in self.trajectories]
        heads = [ledger.policy_mask.index(True) for ledger in ledgers]
        parts = list(zip(ledgers, heads, strict=True))
        return {
            "prompt_ids": [list(ledger.tokens[:head]) for ledger, head in parts],
            "completion_ids": [list(ledger.tokens[head:]) for ledger, head in parts],
            "env_mask": [[int(sampled) for sampled in ledger.policy_mask[head:]] for ledger, head in parts],
            "logprobs": [list(ledger.logprobs[head:]) for ledger, head in parts] if trainer.use_vllm else None,
            "reward": [trajectory.score for trajectory in self.trajectories],
        }

    def _sample(self, prompts: list[list[int]], limit: int) -> tuple[list[list[int]], list[list[float]] | None]:
        """Sample through the trainer's own generation, with the limit of this turn."""
        trainer = self._trainer
        if trainer.use_vllm:
            trainer.vllm_generation.max_completion_length = limit
        else:
            trainer.generation_config.max_new_tokens = limit
        tokens, logprobs = trainer._generate_single_turn(prompts, None, {}, num_generations=1)
        return tokens, logprobs


def reward(completion_ids: Sequence[Any], reward: Sequence[float], **_: Any) -> list[float | None]:
    """Return the rewards that came with the rollouts."""
    return list(reward)


def serve(options: Options, way: str, turns: Turns) -> None:
    """Let a GRPOTrainer take turns; `way` is one of the ways to generate."""
    # What it says is about vLLM's version and the literature of its losses.
    warnings.filterwarnings("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    config, use_vllm = grpo_config(options), way != TRANSFORMERS
    if use_vllm:
        patch_vllm(config, options.threads)

    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from genevolve_ray.learning.policy import load_policy

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.done(player.seconds, player.trajectories)
            if way == CORRECTED:
                check_weights(trainer)

    size, player = config.loop.requests_per_step, Player(config, options.policy)
    steps = options.repeats + 1
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        trainer = GRPOTrainer(
            model=load_policy(options.policy, "float32"),
            reward_funcs=reward,
            args=trl_settings(config, way, steps + 1, folder),
            train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(size * (steps + 1))]),
            processing_class=AutoTokenizer.from_pretrained(options.policy),
            callbacks=[TakeTurns()],
            rollout_func=player,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def check_weights(trainer: Any) -> None:
    """Raise RuntimeError when vLLM samples with other weights than the trainer has, by the gauge of its correction."""
    gap = trainer._metrics["train"]["sampling/sampling_logp_difference/mean"][-1]
    if not gap <= LARGEST_GAP:
        raise RuntimeError(f"the log-probs of vLLM and of the trainer differ by {gap:.3g} in the mean")


def trl_settings(config: RunConfig, way: str, steps: int, folder: str) -> Any:
    """Return TRL's settings for the same work: same sampling, optimizer, clipping and aggregation, float32."""
    from trl import GRPOConfig

    learner, samples = config.learner, concurrency(config)
    micro_batch = max(n for n in range(1, samples + 1) if samples % n == 0 and n <= MICRO_BATCH)
    return GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=samples // micro_batch,
        num_generations=config.loop.group_size,
        max_completion_length=config.protocol.max_turn_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        top_k=0,
        learning_rate=learner.lr,
        lr_scheduler_type="constant",
        adam_beta1=learner.betas[0],
        adam_beta2=learner.betas[1],
        weight_decay=learner.weight_decay,
        max_grad_norm=learner.grad_clip,
        epsilon=learner.grpo.clip_low,
        epsilon_high=learner.grpo.clip_high,
        beta=0.0,
        loss_type="luspo",  # with token-level ratios: summed over tokens, averaged over sequences, as ours
        use_vllm=way != TRANSFORMERS,
        vllm_mode="colocate",
        vllm_max_model_length=config.engine.max_model_len,
        vllm_importance_sampling_correction=way == CORRECTED,
        generation_kwargs={} if way == TRANSFORMERS else {"detokenize": False},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,  # TRL's default recomputes activations; ours does not, so neither does this
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )


def patch_vllm(config: RunConfig, threads: int) -> None:
    """Make TRL's colocated vLLM run on a CPU. Call it before TRL is imported.

    - One process and the executor `uni`: TRL asks for `external_launcher`, which needs a process group for each device.
    - Eager, float32, a cache of the size that ours has, and as many sequences at once as a step has.
    - Weights arrive in one reload, and a tied head is packed again. TRL loads each tensor into the running model, whose
      CPU kernels have packed their weights by then.
    - vLLM searches all imported modules for its kernels, and fails at objects of TRL's imports whose `__dict__` is no
      dictionary: these are skipped.
    """
    from genevolve_ray.engines.vllm_settings import vllm_environment

    os.environ.update(vllm_environment(threads=threads))

    import trl.generation.vllm_generation
    from vllm import LLM
    from vllm.config import set_current_vllm_config
    from vllm.triton_utils import dispatcher

    from genevolve_ray.engines.vllm_worker import WeightLoader

    def start(**arguments: Any) -> Any:
        return LLM(
            **arguments
            | {
                "distributed_executor_backend": "uni",
                "enforce_eager": True,
                "dtype": config.engine.dtype,
                "max_num_seqs": concurrency(config),
                "kv_cache_memory_bytes": (config.engine.vllm.kv_cache_mib or 256) * MIB,
            }
        )

    def sync_weights(self: Any) -> None:
        worker = self.llm.llm_engine.model_executor.driver_worker
        loader: Any = worker
        with set_current_vllm_config(worker.vllm_config):
            loader.model_runner.reload_weights(weights_iterator=self._iter_named_params())
        WeightLoader.pack_head(loader)
        self.llm.reset_prefix_cache()

    patched: Any = trl.generation.vllm_generation
    patched.LLM, patched.VLLMGeneration.sync_weights = start, sync_weights
    dispatcher.vars = _dictionary_of


def _dictionary_of(value: Any) -> dict[str, Any]:
    """Return `vars(value)`, and nothing where that is no dictionary."""
    found: Any = vars(value)
    return found if isinstance(found, dict) else {}
