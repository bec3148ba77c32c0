"""The same GRPO step in TRL's GRPOTrainer and in ours, beside the counted floor of bare engine and bare training.

Single-turn text: the prompts of atlas requests, 8 x 6 completions of a fixed number of tokens, a reward that costs
nothing, one update. TRL generates with `model.generate`, its default. The two take turns, step by step, in one process,
so that whatever slows the machine slows both.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.world import BareLoop, atlas_config, concurrency
from genevolve_ray.config import RunConfig
from genevolve_ray.engines.protocol import Engine, Generation, SamplingParams
from genevolve_ray.evolution.weights import WeightFolders, weight_folders

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.learning.step import Learner

NEW_TOKENS, QUICK_NEW_TOKENS = 128, 16
PROBE_TOKENS = 96


def even_share(tokens: Sequence[int]) -> float:
    """Return the reward: the share of even token ids."""
    return sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))


@dataclass(frozen=True)
class Work:
    """What both sides do: the prompts of each step as text and as ids, and how many tokens follow each."""

    texts: list[list[str]]
    prompts: list[list[list[int]]]
    new_tokens: int
    banned: tuple[int, ...]
    end_of_turn: int

    def micro_batch(self, samples: int, token_budget: int) -> int:
        """Return the largest divisor of `samples` whose padded sequences fit the learner's token budget."""
        longest = max(len(ids) for step in self.prompts for ids in step) + self.new_tokens
        return max(n for n in range(1, samples + 1) if samples % n == 0 and (n == 1 or n * longest <= token_budget))


def prepare(config: RunConfig, options: Options) -> Work:
    """Make the prompts of every step.

    Raises:
        ValueError: when TRL's way to tokenise a prompt gives other ids than ours.
    """
    from genevolve_ray.agent.profile import prompt_messages
    from genevolve_ray.evolution.inprocess import load_banned, load_chat
    from genevolve_ray.records.images import MemoryImages

    chat, images = load_chat(options.policy), MemoryImages()
    source, tools = config.requests.build(images), config.tools.build(images).tools
    size = config.loop.requests_per_step
    requests = [[source.train(step * size + i) for i in range(size)] for step in range(options.repeats + 1)]
    messages = [[prompt_messages(r.prompt, config.protocol, tools) for r in step] for step in requests]
    prompts = [[chat.prompt_ids(m) for m in step] for step in messages]
    render: Any = chat.tokenizer.apply_chat_template
    texts = [[render(m, tokenize=False, add_generation_prompt=True) for m in step] for step in messages]
    tokenizer: Any = chat.tokenizer
    if any(tokenizer(text=step)["input_ids"] != ids for step, ids in zip(texts, prompts, strict=True)):
        raise ValueError("TRL would tokenise these prompts differently: the two sides would not do the same work")
    return Work(
        texts=texts,
        prompts=prompts,
        new_tokens=QUICK_NEW_TOKENS if options.quick else NEW_TOKENS,
        banned=load_banned(options.policy, chat),
        end_of_turn=chat.end_of_turn_id,
    )


class Ours:
    """Our step on the same work: engine, learner, publication with its probe; and the two bare parts of the floor."""

    def __init__(
        self, config: RunConfig, policy: Path, work: Work, engine: Engine, folders: WeightFolders, watch: Stopwatch
    ) -> None:
        """Load learner and bare loop; the engine has been started on the same weights."""
        from genevolve_ray.learning.step import Learner

        self._config, self._work, self._engine, self._folders, self._watch = config, work, engine, folders, watch
        self._learner: Learner = Learner(policy, config.learner, work.banned)
        self._bare = BareLoop(policy, config)
        self._version = 0

    async def step(self, step: int) -> None:
        """Do one step and time it, then time the floor: the bare engine and the bare loop on as many tokens."""
        watch, started = self._watch, time.perf_counter()
        with watch.measure("ours: generate"):
            generations = await self._generate(step, seeded=True)
        sequences = self._sequences(step, generations)
        with watch.measure("ours: learn"):
            self._learner.train_step(sequences, step)
        with watch.measure("ours: publish"):
            await self._publish()
        watch.add("ours", time.perf_counter() - started)
        await self._floor(step, sequences)

    async def _generate(self, step: int, *, seeded: bool) -> list[Generation]:
        samples = self._config.loop.group_size
        sampling = SamplingParams(temperature=self._config.sampling.temperature, max_tokens=self._work.new_tokens)
        return await asyncio.gather(
            *(
                self._engine.generate(
                    prompt,
                    sampling.model_copy(update={"seed": 1000 * step + samples * at + i if seeded else None}),
                    f"{step}/{at}/{i}",
                )
                for at, prompt in enumerate(self._work.prompts[step])
                for i in range(samples)
            )
        )

    def _sequences(self, step: int, generations: Sequence[Generation]) -> list[TrainSequence]:
        from genevolve_ray.learning.advantage import group_advantages
        from genevolve_ray.learning.batch import TrainSequence

        samples, sequences = self._config.loop.group_size, []
        for at, prompt in enumerate(self._work.prompts[step]):
            group = generations[at * samples : (at + 1) * samples]
            rewards = [even_share(generation.tokens) for generation in group]
            advantages = group_advantages(rewards, self._config.learner.advantage).values
            head = len(prompt)
            sequences += [
                TrainSequence(
                    [*prompt, *g.tokens],
                    [False] * head + [True] * len(g.tokens),
                    [0.0] * head + list(g.logprobs),
                    advantage,
                )
                for g, advantage in zip(group, advantages, strict=True)
            ]
        return sequences

    async def _publish(self) -> None:
        from genevolve_ray.engines.protocol import Probe

        self._version += 1
        folder = self._folders.create(self._version)
        self._learner.write_weights(folder)
        tokens = tuple((self._work.prompts[0][0] * PROBE_TOKENS)[:PROBE_TOKENS])
        logprobs = tuple(self._learner.raw_logprobs(tokens))
        await self._engine.update(folder, self._version, Probe(token_ids=tokens, logprobs=logprobs))
        self._folders.release(self._version - 1)

    async def _floor(self, step: int, sequences: Sequence[TrainSequence]) -> None:
        from genevolve_ray.learning.batch import micro_batches

        batches = self._bare.prepare(micro_batches(sequences, self._config.learner.token_budget))
        with self._watch.measure("floor: engine"):
            await self._generate(step, seeded=False)
        with self._watch.measure("floor: training"):
            self._bare.step(batches)
        # An update with the weights it has: the next step's prompts shall not find this one's in the cache.
        self._version += 1
        folder = self._folders.create(self._version)
        self._learner.write_weights(folder)
        await self._engine.update(folder, self._version)
        self._folders.release(self._version - 1)


def run_trl(config: RunConfig, policy: Path, work: Work, watch: Stopwatch, between: Callable[[int], None]) -> None:
    """Let TRL take its steps; `between` is called after each, outside its time.

    Raises:
        RuntimeError: when TRL's completions are not all of the length that ours have.
    """
    # What it says is about vLLM versions and the literature of its losses; neither is used here.
    warnings.filterwarnings("ignore", module="trl")
    logging.getLogger("trl").setLevel(logging.ERROR)

    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from genevolve_ray.learning.policy import load_policy

    class Timer(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Timer.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.add("TRL", time.perf_counter() - Timer.started)
            between(int(state.global_step) - 1)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        if {len(tokens) for tokens in completion_ids} != {work.new_tokens}:
            raise RuntimeError(f"TRL sampled {[len(x) for x in completion_ids]} tokens, not {work.new_tokens} each")
        return [even_share(tokens) for tokens in completion_ids]

    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        trainer = GRPOTrainer(
            model=load_policy(policy, "float32"),
            reward_funcs=reward,
            args=trl_config(config, work, folder),
            train_dataset=Dataset.from_list([{"prompt": text} for step in work.texts for text in step]),
            processing_class=AutoTokenizer.from_pretrained(policy),
            callbacks=[Timer()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trl_config(config: RunConfig, work: Work, folder: str) -> Any:
    """Return TRL's settings for the same work: same optimizer, clipping, aggregation and micro-batches, float32."""
    from trl import GRPOConfig

    learner, samples = config.learner, concurrency(config)
    micro_batch = work.micro_batch(samples, learner.token_budget)
    return GRPOConfig(
        output_dir=folder,
        max_steps=len(work.texts),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=samples // micro_batch,
        num_generations=config.loop.group_size,
        max_completion_length=work.new_tokens,
        # Every completion has the same length on both sides: none may end itself.
        generation_kwargs={"suppress_tokens": sorted({*work.banned, work.end_of_turn})},
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
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
        use_vllm=False,
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


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    import torch

    from genevolve_ray.engines.factory import create_engine

    config = atlas_config(
        options, "learner.kl.coefficient=0", "learner.ved.coefficient=0", f"engine.vllm.threads={options.threads}"
    )
    torch.set_num_threads(options.threads)
    work, watch = prepare(config, options), Stopwatch()
    with asyncio.Runner() as runner, weight_folders() as folders:
        say("starting the engine")
        engine = runner.run(create_engine(config.engine, options.policy, work.banned))
        try:
            ours = Ours(config, options.policy, work, engine, folders, watch)

            def between(step: int) -> None:
                say(f"repetition {step} of {options.repeats} (0 is warm-up)")
                torch.set_num_threads(options.threads)
                runner.run(ours.step(step))

            run_trl(config, options.policy, work, watch, between)
        finally:
            runner.run(engine.close())
    return _rows(watch, work, concurrency(config))


def _rows(watch: Stopwatch, work: Work, samples: int) -> list[Row]:
    ours, theirs = watch.seconds("ours"), watch.seconds("TRL")
    engine, training = watch.seconds("floor: engine"), watch.seconds("floor: training")
    floor = [a + b for a, b in zip(engine, training, strict=True)]
    parts = ("ours: generate", "ours: learn", "ours: publish")
    return [
        Row(
            f"ours, {samples} x {work.new_tokens} new tokens",
            Spread.of(ours),
            "s a step",
            paired_ratio(ours, theirs),
            "TRL's GRPOTrainer",
            Goal(0.7, "at most"),
        ),
        Row("TRL's GRPOTrainer", Spread.of(theirs), "s a step", paired_ratio(theirs, floor), "counted floor"),
        Row(
            "counted floor (bare engine + bare training)",
            Spread.of(floor),
            "s a step",
            paired_ratio(floor, ours),
            "ours",
        ),
        *(
            Row(part, Spread.of(watch.seconds(part)), "s", paired_ratio(watch.seconds(part), ours), "ours")
            for part in parts
        ),
        Row("floor: engine", Spread.of(engine), "s", paired_ratio(engine, floor), "counted floor"),
        Row("floor: training", Spread.of(training), "s", paired_ratio(training, floor), "counted floor"),
    ]
