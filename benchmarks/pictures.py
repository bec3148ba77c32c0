"""What it saves that each picture passes the frozen vision tower once a step, and is read from its file once.

Both sides do the same step on the same sequences: the rollouts of a group saw the same pictures, half of the groups have
a teacher, and there is a reference. One keeps features within the step; the other computes them in every pass, as a step
of text would be extended most simply.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, repeat, say

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import ImageInputs, TrainSequence
    from genevolve_ray.records.ledger import MediaSpan

VOCABULARY, START, END, IMAGE, VIDEO = 512, 508, 509, 510, 511
ROLLOUTS, PICTURES = 4, 5
"""Rollouts of a group, and pictures that each of them saw."""


@dataclass(frozen=True)
class Shape:
    """A policy and its trajectories: sizes of decoder and tower, pixels of a picture's side, tokens of text."""

    name: str
    decoder: tuple[int, int]
    tower: tuple[int, int]
    side: int
    text: int
    groups: int


SHAPES = (
    Shape("a small policy, its tower like its decoder", (128, 4), (128, 4), side=128, text=300, groups=2),
    # As in Qwen3-VL-8B, whose five pictures of 512 pixels are some 1,280 of 4,300 tokens.
    Shape("a tower of a fifteenth of its decoder", (160, 6), (48, 4), side=128, text=200, groups=2),
)


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table. The policies are random: `--policy` is not used."""
    return [row for shape in SHAPES for row in _measure(shape, options)]


def _measure(shape: Shape, options: Options) -> Iterator[Row]:
    from genevolve_ray.learning.config import KlConfig, LearnerConfig
    from genevolve_ray.learning.step import Learner
    from genevolve_ray.learning.ved_config import VedConfig
    from genevolve_ray.learning.vision import LedgerPictures
    from genevolve_ray.models.image_tokens import load_image_tokens

    say(f"building {shape.name}")
    with _policy(shape, options.quick) as folder:
        tokens = load_image_tokens(folder)
        assert tokens is not None
        watch, groups = Stopwatch(), 1 if options.quick else shape.groups
        files = [[_file(PICTURES * g + i, shape.side) for i in range(PICTURES)] for g in range(groups)]
        shown = [_context(tokens, group, shape.side, shape.text) for group in files for _ in range(ROLLOUTS)]
        data = {hashlib.sha256(file).hexdigest(): file for group in files for file in group}

        def read(reader: LedgerPictures | None) -> list[ImageInputs | None]:
            return [(reader or LedgerPictures(tokens)).inputs(*one, data.__getitem__) for one in shown]

        plain = LearnerConfig(lr=0.0, threads=options.threads, picture_cache_mib=0, token_budget=4096)
        full = {"kl": KlConfig(coefficient=1e-3), "ved": VedConfig(coefficient=1.0)}
        keep = {"picture_cache_mib": 2048}
        learners = {
            "policy alone, every pass": Learner(folder, plain),
            "policy alone, kept": Learner(folder, plain.model_copy(update=keep)),
            "three passes, every pass": Learner(folder, plain.model_copy(update=full)),
            "three passes, kept": Learner(folder, plain.model_copy(update=full | keep)),
        }

        def once(step: int) -> None:
            with watch.measure("each time"):
                read(None)
            with watch.measure("once"):
                images = read(LedgerPictures(tokens))
            sequences = [
                _sequence(ids, found, i) for i, ((ids, _), found) in enumerate(zip(shown, images, strict=True))
            ]
            for name, learner in learners.items():
                with watch.measure(name):
                    learner.train_step(sequences, step)

        repeat(options.repeats, once)
        for name in ("policy alone", "three passes"):
            yield Row(
                f"{shape.name}: GRPO step, {name}, features kept",
                Spread.of(watch.seconds(f"{name}, kept")),
                "s",
                paired_ratio(watch.seconds(f"{name}, kept"), watch.seconds(f"{name}, every pass")),
                "the same step with each picture computed in every pass",
                Goal(1.0, "at most"),
            )
        yield Row(
            f"{shape.name}: {len(shown) * PICTURES} pictures of {len(data)} files read",
            Spread.of(watch.seconds("once")),
            "s",
            paired_ratio(watch.seconds("once"), watch.seconds("each time")),
            "each file read for every trajectory",
            Goal(1.0, "at most"),
        )


@contextmanager
def _policy(shape: Shape, quick: bool) -> Iterator[Path]:
    """Write a random Qwen3-VL, with its image processor, to a temporary folder."""
    import json

    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    (hidden, layers), (wide, deep) = shape.decoder, shape.tower
    sizes = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 1024, "longest_edge": 1 << 20}}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": 1 if quick else layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 32,
            "head_dim": 32,
            "max_position_embeddings": 1 << 14,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1 if quick else deep,
            "hidden_size": wide,
            "intermediate_size": 4 * wide,
            "num_heads": wide // 24 if wide % 32 else wide // 32,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    with TemporaryDirectory(prefix="genevolve-bench-") as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
        settings = {"image_processor_type": "Qwen2VLImageProcessor", **sizes}
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield Path(folder)


def _file(seed: int, side: int) -> bytes:
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _context(tokens: Any, files: Sequence[bytes], side: int, text: int) -> tuple[list[int], list[MediaSpan]]:
    """Return the tokens of a trajectory that saw files, one after each part of its text, and their spans."""
    from genevolve_ray.records.ledger import MediaSpan

    words, grid = random.Random(len(files[0])), tokens.grid(side, side)
    ids: list[int] = []
    spans = []
    for file in files:
        ids += [words.randrange(1, START) for _ in range(text // len(files))]
        count, start = tokens.count(grid), len(ids) + 1
        ids += [START, *[IMAGE] * count, END]
        sha256 = hashlib.sha256(file).hexdigest()
        spans.append(MediaSpan(start=start, end=start + count, sha256=sha256, grid=grid))
    return [*ids, *(words.randrange(1, START) for _ in range(text // len(files)))], spans


def _sequence(ids: Sequence[int], images: ImageInputs | None, place: int) -> TrainSequence:
    """Return a trajectory whose words are the policy's; that of every other group has a teacher."""
    from genevolve_ray.learning.batch import TeacherContext, TrainSequence

    mask = [i > 0 and token < START for i, token in enumerate(ids)]
    guide = list(range(1, 41))
    taught = place // ROLLOUTS % 2 == 0
    teacher = TeacherContext([ids[0], *guide, *ids[1:]], [False] * 41 + mask[1:], images=images) if taught else None
    return TrainSequence(ids, mask, [-6.0 * m for m in mask], (-1.0) ** place, teacher=teacher, images=images)
