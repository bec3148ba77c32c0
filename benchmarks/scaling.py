"""`python -m benchmarks.scaling`: what a step of an 8B policy costs and where the bottleneck lies, by arithmetic alone.

Nothing is measured here. Constants say where they come from; docs/scaling.md holds the printed tables and tells what they
leave out. GPU-seconds are seconds of one H100 SXM at the stated share of its peak.

Shape legend: T tokens of a trajectory, P policy tokens of it, S tokens of a picture's pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

GB = 1e9

# --- published -------------------------------------------------------------------------------------------------------
PEAK_FLOPS = 989e12
"""bfloat16, dense; H100 SXM's data sheet."""
BANDWIDTH = 3.35e12
"""Bytes/s of its memory; the same."""
GPU_GB = 80.0
LAYERS, HIDDEN, QUERY, KEY_VALUE, MLP, VOCABULARY = 36, 4096, 4096, 1024, 12288, 151_936
"""Text decoder of Qwen3-VL-8B (its config.json); embeddings and head are two matrices."""
VISION = 0.576e9
"""Parameters of its vision tower, frozen."""
IMAGE_LAYERS, IMAGE_HIDDEN = 60, 3072
"""Qwen-Image's two-stream transformer (its report and config.json)."""
IMAGE_TOKENS = 4096
"""1024 x 1024 pixels, 16 x 16 a token."""

# --- assumed ---------------------------------------------------------------------------------------------------------
T, P = 10_000, 3_000
CONTEXT = 6_000
"""Mean tokens in the cache of a sequence while it decodes."""
MFU = 0.35
"""Of learner passes and prefill."""
IMAGE_MFU = 0.40
DECODE_SHARE = 0.60
"""Of the memory bandwidth, while decoding."""
CONCURRENT = 48
"""Sequences that one engine decodes at once."""
REFERENCES, PROMPT_TOKENS = 1.5, 512
"""Reference pictures, each of a picture's tokens, and tokens of the prompt in a picture's pass."""
JUDGE_PARAMETERS, JUDGE_PROMPT, JUDGE_ANSWER, JUDGE_BATCH = 32e9, 4_000, 500, 16
"""A dense judge with 8-bit weights; tokens of a call; calls that it answers at once."""
TOOL_SECONDS = 10.0
"""What the tool calls of an episode take, one after another."""
PCIE, NETWORK, HOST_ADAM = 50 * GB, 12.5 * GB, 100 * GB
"""Bytes/s between host and GPU, between nodes (100 Gbit/s), and of an AdamW step in host memory."""
TOKEN_BUDGET = 36_864
RANK = 16
"""Of a LoRA adapter on every linear layer of the decoder."""

# --- measured --------------------------------------------------------------------------------------------------------
SHARED = 0.36
"""Share of a step's tokens that repeat a prefix of another rollout of their group (default shape of the atlas preset)."""
PADDING = 0.19
"""Padding of micro-batches of whole sequences (the same run)."""
SHA256 = 2.1 * GB
"""Bytes/s of one core (AMD EPYC with SHA extensions, Python's hashlib)."""
HASH_CORES = 16
"""Cores of a host over which tensors and pieces of files are hashed side by side: assumed."""

BLOCKS = LAYERS * (2 * HIDDEN * QUERY + 2 * HIDDEN * KEY_VALUE + 3 * HIDDEN * MLP)
ADAPTER = LAYERS * RANK * (2 * (HIDDEN + QUERY) + 2 * (HIDDEN + KEY_VALUE) + 3 * (HIDDEN + MLP))
HEAD = HIDDEN * VOCABULARY
TRAINED = BLOCKS + 2 * HEAD
ALL = TRAINED + VISION
KV_BYTES = 2 * 2 * LAYERS * KEY_VALUE
"""Bytes of a token in the cache, bfloat16."""


def forward_flops(shared: float = 0.0) -> float:
    """Return the operations of one pass over one trajectory: blocks, causal attention, head on policy tokens.

    A share of its tokens, its first ones, is computed elsewhere. They attend to few, so their attention is its square.
    """
    return 2.0 * BLOCKS * T * (1 - shared) + 2.0 * LAYERS * QUERY * T**2 * (1 - shared**2) + 2.0 * HEAD * P


def learner_seconds(*, lora: bool = False, shared: float = SHARED) -> float:
    """Return GPU-seconds of one trajectory in a step, on packed rows of prefix trees.

    A pass each for forward, recomputation, reference and teacher (all sequences taught), and two for the backward pass,
    with LoRA one: weights that are frozen have no gradient.
    """
    return (5 if lora else 6) * forward_flops(shared) / (MFU * PEAK_FLOPS)


def offload_seconds(samples: int) -> float:
    """Return what CPU offload adds to a step of one rank: weights up five times a micro-batch, gradients down, AdamW.

    Weights go up in float32 for forward, backward and teacher, in bfloat16 for the reference.
    """
    batches = ceil(samples * T * (1 - SHARED) / TOKEN_BUDGET)
    traffic = TRAINED * (3 * 4 + 2 + 4) / PCIE
    adding = TRAINED * 12 / HOST_ADAM
    return batches * (traffic + adding) + TRAINED * 28 / HOST_ADAM


def decode_rate(concurrent: int = CONCURRENT) -> float:
    """Return policy tokens/s of one engine: each step reads the weights and every sequence's cache."""
    read = 2.0 * (BLOCKS + HEAD) + concurrent * CONTEXT * KV_BYTES
    return concurrent * DECODE_SHARE * BANDWIDTH / read


def rollout_seconds(concurrent: int = CONCURRENT) -> float:
    """Return GPU-seconds of one trajectory: its policy tokens decoded, all others prefilled once."""
    prefill = forward_flops() * (T - P) / T / (MFU * PEAK_FLOPS)
    return P / decode_rate(concurrent) + prefill


def render_flops() -> float:
    """Return the operations of one pass of the image transformer: both streams and their joint attention.

    A token meets its own stream's weights; those that make the modulation are applied once a picture and left out.
    """
    stream = IMAGE_LAYERS * 12 * IMAGE_HIDDEN**2
    tokens = IMAGE_TOKENS * (1 + REFERENCES) + PROMPT_TOKENS
    return 2.0 * stream * tokens + 4.0 * IMAGE_LAYERS * IMAGE_HIDDEN * tokens**2


def render_seconds(steps: int = 40, *, guided: bool = True) -> float:
    """Return GPU-seconds of one picture; `guided` takes two passes a step."""
    return render_flops() * steps * (2 if guided else 1) / (IMAGE_MFU * PEAK_FLOPS)


def judge_calls(samples: int, pairs: int = 8) -> int:
    """Return calls of a step: two a sample, and one for each pair that is summarised."""
    return 2 * samples + pairs


def judge_seconds() -> float:
    """Return GPU-seconds of one judge call: its prompt read, its answer decoded in company."""
    reading = 2.0 * JUDGE_PARAMETERS * JUDGE_PROMPT / (MFU * PEAK_FLOPS)
    return reading + JUDGE_ANSWER * JUDGE_PARAMETERS / (DECODE_SHARE * BANDWIDTH) / JUDGE_BATCH


def published_bytes(*, lora: bool = False) -> float:
    """Return bytes of a version: all weights in bfloat16, with LoRA the float32 adapter alone."""
    return 4.0 * ADAPTER if lora else 2.0 * ALL


def publish_seconds(*, lora: bool = False) -> float:
    """Return seconds from a finished step to weights on another node, digests left out: off the GPU, network, onto one.

    Of an adapter the engine merges the base, which goes onto the GPU in bfloat16 from its own host's memory.
    """
    size = published_bytes(lora=lora)
    return 2 * size / PCIE + size / NETWORK + (2 * ALL / PCIE if lora else 0.0)


def digest_seconds(*, lora: bool = False) -> float:
    """Return seconds of a step's digests, one after another, each on all cores of its host.

    The version is hashed as it is shipped and as it arrives. The hash of the learner's state is added up on the GPUs
    that hold its shards, at the speed of their memory.
    """
    return 2 * published_bytes(lora=lora) / (SHA256 * HASH_CORES)


def logits_gb(tokens: int = TOKEN_BUDGET) -> float:
    """Return GB of the float32 logits of a micro-batch, which the plain way holds and the learner never does."""
    return 4.0 * tokens * VOCABULARY / GB


# --- memory ----------------------------------------------------------------------------------------------------------


def activation_gb() -> float:
    """Return GB of activations of a micro-batch: one state a layer (checkpointing), and one layer computed again."""
    again = 8 * HIDDEN + 4 * MLP
    return 2.0 * TOKEN_BUDGET * (LAYERS * HIDDEN + again) / GB


def learner_gb(ranks: int, *, lora: bool = False, offload: bool = False) -> float:
    """Return GB on each GPU of a learner: weights, gradients, AdamW, reference, activations.

    The tower is whole on every rank; embeddings and head are whole while a pass needs them, their gradient in float32.
    """
    if lora:
        return 2 * ALL / GB + activation_gb()
    shards = 0.0 if offload else (16 + 2) * TRAINED / ranks
    return (shards + 6 * VISION + 2 * HEAD * (2 + 4)) / GB + activation_gb()


def cache_tokens(share: float) -> float:
    """Return tokens that an engine's cache holds beside its weights and 3 GB of its own, on a share of one GPU."""
    return (share * GPU_GB * GB - 2 * ALL - 3 * GB) / KV_BYTES


# --- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How many GPUs each part of a run has; 0 where it is a service outside, which is taken to have one GPU."""

    gpus: int
    learner: float
    rollouts: float
    renderer: int
    judge: int
    requests: int
    staleness: int
    lora: bool = False
    offload: bool = False
    concurrent: int = CONCURRENT
    group: int = 6

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.requests * self.group

    def seconds(self, image_steps: int = 40) -> dict[str, float]:
        """Return seconds that each part takes for one step's samples, were it never kept waiting.

        Two halves of one GPU take turns: each has all of it while it works.
        """
        n = self.samples
        work = n * learner_seconds(lora=self.lora) / max(1.0, self.learner)
        return {
            "roll out": n * rollout_seconds(self.concurrent) / max(1.0, self.rollouts),
            "render": n * picture_seconds(image_steps) / max(1, self.renderer),
            "judge": judge_calls(n) * judge_seconds() / max(1, self.judge),
            "learn": work + (offload_seconds(n) if self.offload else 0.0),
            "publish": publish_seconds(lora=self.lora),
            "digest": digest_seconds(lora=self.lora),
        }

    def chains(self, image_steps: int = 40, *, digests: bool = True) -> dict[str, float]:
        """Return the same with what one process does in turn added up: learning, publishing, hashing."""
        parts = self.seconds(image_steps)
        learner = parts.pop("learn") + parts.pop("publish") + parts.pop("digest") * digests
        return parts | {"learner": learner}

    def step_seconds(self, image_steps: int = 40, *, digests: bool = True) -> float:
        """Return seconds of a step: the slowest part; in sync mode their sum, where no two overlap."""
        chains = self.chains(image_steps, digests=digests)
        return max(chains.values()) if self.staleness else sum(chains.values())

    def bottleneck(self, image_steps: int = 40) -> str:
        """Return the part that takes longest."""
        chains = self.chains(image_steps)
        return max(chains, key=lambda part: chains[part])

    def latency(self) -> float:
        """Return seconds of a sample from its lease until what was learned from it is published."""
        decode = P * self.concurrent / decode_rate(self.concurrent)
        return decode + TOOL_SECONDS + picture_seconds() + 2 * judge_seconds() + self.chains()["learner"]

    def in_flight(self) -> float:
        """Return samples in flight: Little's law, throughput times latency."""
        return self.samples / self.step_seconds() * self.latency()

    def staleness_needed(self) -> int:
        """Return the smallest `max_staleness` whose leases, (max_staleness + 1) steps, cover the samples in flight."""
        return ceil(self.in_flight() / self.samples) - 1


LAYOUTS = (
    Layout(1, 0.5, 0.5, 0, 0, requests=8, staleness=0, lora=True, concurrent=16),
    Layout(8, 1, 1, 5, 1, requests=8, staleness=1, offload=True),
    Layout(64, 8, 4, 48, 4, requests=16, staleness=2),
    Layout(512, 32, 32, 416, 32, requests=96, staleness=3),
)


def picture_seconds(image_steps: int = 40) -> float:
    """Return GPU-seconds of a picture, guided unless the generator is distilled to 8 steps or fewer."""
    return render_seconds(image_steps, guided=image_steps > 8)


# --- tables ----------------------------------------------------------------------------------------------------------


def work_table() -> list[str]:
    """Return what one sample costs, part by part."""
    calls = judge_calls(48) / 48
    rows = {
        "roll out": rollout_seconds(),
        "judge": calls * judge_seconds(),
        "learn": learner_seconds(),
        "render, 40 steps with guidance": picture_seconds(40),
        "render, 8 steps without": picture_seconds(8),
    }
    body = [f"| {part} | {seconds:.1f} | {48 * seconds:,.0f} |" for part, seconds in rows.items()]
    return ["| part | GPU-seconds a sample | a step of 8 x 6 |", "|---|---|---|", *body]


def rows_table() -> list[str]:
    """Return what the learner's step of 8 x 6 costs on padded rows, on packed ones, and on those of prefix trees."""
    packed = 48 * learner_seconds(shared=0)
    rows = {
        "padded": (1 / (1 - PADDING), packed / (1 - PADDING)),
        "packed": (1.0, packed),
        "packed, common prefixes once": (1 - SHARED, 48 * learner_seconds()),
    }
    body = [
        f"| {rows_of} | {48 * T * tokens:,.0f} | {seconds:.0f} | {seconds / packed:.2f} |"
        for rows_of, (tokens, seconds) in rows.items()
    ]
    return ["| rows | tokens of a pass | GPU-seconds of a step | over packed |", "|---|---|---|---|", *body]


def memory_table() -> list[str]:
    """Return GB on one GPU for each way to hold a learner, and tokens of an engine's cache."""
    rows = [
        ("learner, LoRA, one GPU", learner_gb(1, lora=True)),
        ("learner, all parameters, one GPU", learner_gb(1)),
        ("learner, all parameters, one GPU, `learner.offload`", learner_gb(1, offload=True)),
        *((f"learner, all parameters, {n} ranks", learner_gb(n)) for n in (2, 4, 8, 32)),
    ]
    body = [f"| {what} | {gb:.0f} | {'yes' if gb < 0.95 * GPU_GB else '**no**'} |" for what, gb in rows]
    return ["| what | GB on a GPU | fits into 80 |", "|---|---|---|", *body]


def layout_table(layouts: Sequence[Layout] = LAYOUTS) -> list[str]:
    """Return what each layout needs for a step, and where it waits."""
    names = list(layouts[0].seconds())
    head = ["GPUs", "samples", *names, "step", "slowest", "without digests", "8-step pictures"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for layout in layouts:
        seconds = [f"{value:,.0f}" for value in layout.seconds().values()]
        times = [layout.step_seconds(), layout.step_seconds(digests=False), layout.step_seconds(8)]
        step, bare, quick = (f"{value:,.0f}" for value in times)
        cells = [str(layout.gpus), str(layout.samples), *seconds, step, layout.bottleneck(), bare]
        lines.append(f"| {' | '.join([*cells, f'{quick}, {layout.bottleneck(8)}'])} |")
    return lines


def flow_table(layouts: Sequence[Layout] = LAYOUTS) -> list[str]:
    """Return throughput, latency and samples in flight."""
    lines = [
        "| GPUs | trajectories/s | latency, s | in flight | `max_staleness` at least | set | policy tokens/s | pictures/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layout in layouts:
        rate = layout.samples / layout.step_seconds()
        flow = f"{layout.in_flight():,.0f} | {layout.staleness_needed()} | {layout.staleness}"
        flow = flow if layout.staleness else "one at a time | 0 | 0"
        lines.append(
            f"| {layout.gpus} | {rate:.2f} | {layout.latency():,.0f} | {flow} | {rate * P:,.0f} | {rate:.2f} |"
        )
    return lines


TABLES = {"work": work_table, "rows": rows_table, "memory": memory_table, "layouts": layout_table, "flow": flow_table}


def main() -> None:
    """Print the tables of docs/scaling.md."""
    for name, table in TABLES.items():
        print(f"<!-- {name} -->", *table(), "", sep="\n")


if __name__ == "__main__":
    main()
