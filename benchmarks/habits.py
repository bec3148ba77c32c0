"""What a generator with habits takes from a program that follows every skill, by how the program words its structures.

    python -m benchmarks.habits --requests 150

Programs are those of the scripted teacher on training requests of a world of the preset `atlas-long`. Each is worded in three
ways: as the generator prefers, at random, and with any other wording throughout. A generator with habits and one without draw
every program, both without slips. Rewards are those of the preset, apart from the cost of calls. Intervals resample requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import prepare_process, say
from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.habits import WORDINGS, HabitsConfig, preferred_wordings
from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.renderer import AtlasRenderer, AtlasRendererConfig
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import world_tools
from genevolve_ray.atlas.teacher import ideal
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import build_world
from genevolve_ray.config import load_config
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.verdict import combine_reward

SEED = 7
"""Seed of the pictures."""
PREFERRED, RANDOM, OTHERS = "preferred", "random", "others"
"""Ways to word a program: as the generator prefers, at random, and with any other wording throughout."""
HABITS, PLAIN = "with habits", "without"
"""The generators."""
Rewards = Mapping[tuple[str, str], Sequence[float]]
"""Rewards by wording and generator, request by request."""


def wordings_of(truth: Truth, habits: HabitsConfig, rng: np.random.Generator) -> dict[str, dict[str, str]]:
    """Return the wording of each structure of a scene, for each way to word a program."""
    preferred = preferred_wordings(habits, truth.scene)
    others = {s: [name for name in WORDINGS[s] if name != said] for s, said in preferred.items()}
    return {
        PREFERRED: preferred,
        RANDOM: {s: str(rng.choice(list(WORDINGS[s]))) for s in preferred},
        OTHERS: {s: str(rng.choice(names)) for s, names in others.items()},
    }


async def measure(count: int, world_seed: int) -> Rewards:
    """Return the rewards of every wording with each generator on the first `count` training requests of a world."""
    config, images, judge = load_config("atlas-long"), MemoryImages(), AtlasJudge()
    habits = AtlasRendererConfig.model_validate(config.renderer.config).habits
    assert habits is not None, "the generator of the preset has habits"
    world = build_world(world_seed, Partition.TRAIN, images, styled=True)
    tools, chat = world_tools(world), ChatFormat(build_tokenizer(styled=True))
    generators = {
        HABITS: AtlasRenderer(AtlasRendererConfig(habits=habits, slip=0)),
        PLAIN: AtlasRenderer(AtlasRendererConfig(slip=0)),
    }
    found: dict[tuple[str, str], list[float]] = {}
    for index in range(count):
        request = make_request(world, index, images)
        truth = Truth.model_validate(request.meta["truth"])
        assert request.truth_image is not None, "a request of the atlas has a truth"
        for kind, wordings in wordings_of(truth, habits, np.random.default_rng(index)).items():
            decisions = ideal(truth).model_copy(update={"wordings": wordings})
            played = await play(request, truth, decisions, tools, chat, guided=True)
            assert played.program is not None, "the teacher ends with a program"
            hits = [played.images[reference.img_id] for reference in played.program.reference_images]
            for name, generator in generators.items():
                picture = generator.draw(played.program.gen_prompt, [images.get(hit.image) for hit in hits], SEED)
                verdict = await judge.judge(request, picture, images.get(request.truth_image), played.program, hits)
                reward = combine_reward(verdict, 0, config.reward).total
                found.setdefault((kind, name), []).append(reward)
    return found


def summary(rewards: Rewards) -> dict[str, dict[str, float]]:
    """Return the mean of each wording with each generator, and what the preferred wordings add, with intervals."""
    none: Sequence[float] = [0.0] * len(next(iter(rewards.values())))
    rows = {f"{kind} wordings, generator {name}": (none, scores) for (kind, name), scores in rewards.items()}
    rows["preferred - random wordings, generator with habits"] = rewards[RANDOM, HABITS], rewards[PREFERRED, HABITS]
    return {name: paired_interval(before, after, seed=0).model_dump() for name, (before, after) in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the mean reward of each wording with each generator, with its interval."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.habits", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--requests", type=int, default=150, metavar="N", help="training requests (default 150)")
    parser.add_argument("--world", type=int, default=3, metavar="SEED", help="seed of the world (default 3)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here as well")
    options = parser.parse_args(arguments)
    if options.requests < 1 or options.world < 0:
        parser.error(
            f"--requests must be at least 1 and --world at least 0, got {options.requests} and {options.world}"
        )
    prepare_process(1)
    rows = summary(asyncio.run(measure(options.requests, options.world)))
    for name, row in rows.items():
        say(f"{name}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
