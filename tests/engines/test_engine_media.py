"""Pictures in prompts: both engines sample what the learner scores, and a picture that does not fit is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from noisy_pictures import noise_file
from zoo import build

from genevolve_ray.engines.config import VllmConfig
from genevolve_ray.engines.media import check_expanded
from genevolve_ray.engines.protocol import (
    Engine,
    MediaMismatch,
    Probe,
    PromptImage,
    SamplingParams,
    WeightUpdateError,
)
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.evolution.inprocess import load_banned, load_chat
from genevolve_ray.learning.batch import ImageInputs, TrainSequence
from genevolve_ray.learning.config import LearnerConfig, LoraConfig, PublishForm
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.vision import LedgerPictures
from genevolve_ray.models.image_processor import patch_grid
from genevolve_ray.models.image_tokens import load_image_tokens
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.pictures import open_picture

SAMPLING = SamplingParams(temperature=0.7, max_tokens=12, seed=1)
TOLERANCE = 1e-4


WIDE, TALL = noise_file(1, (96, 64)), noise_file(2, (64, 128))


@dataclass
class Seeing:
    """A tiny model that sees, with its learner and what prompts need."""

    folder: Path
    processor: Any = field(init=False)
    learner: Learner = field(init=False)

    def __post_init__(self) -> None:
        chat = load_chat(self.folder)
        self.banned = load_banned(self.folder, chat)
        tokens = load_image_tokens(self.folder)
        assert tokens is not None
        self.tokens, self.processor = tokens, tokens.processor
        self.learner = Learner(self.folder, LearnerConfig(lr=1e-3, temperature=0.7, threads=1), self.banned)
        self.words = [i for i in range(20, 400) if i not in self.banned]
        config = self.learner.model.config
        self.start, self.end, self.image = (
            config.vision_start_token_id,
            config.vision_end_token_id,
            config.image_token_id,
        )

    def prompt(self, *parts: int | bytes) -> tuple[list[int], list[PromptImage]]:
        """Return tokens and pictures: a number stands for that many words, bytes for a picture."""
        tokens: list[int] = []
        media: list[PromptImage] = []
        for part in parts:
            if isinstance(part, int):
                tokens += [self.words[(7 * len(tokens) + i) % len(self.words)] for i in range(part)]
                continue
            picture = open_picture(part)
            grid = patch_grid(self.processor, picture.width, picture.height)
            count, start = self.tokens.count(grid), len(tokens) + 1
            tokens += [self.start, *[self.image] * count, self.end]
            sha = hashlib.sha256(part).hexdigest()
            media.append(PromptImage(span=MediaSpan(start=start, end=start + count, sha256=sha, grid=grid), data=part))
        return tokens, media

    def sequence(
        self, prompt: Sequence[int], sampled: Sequence[int], media: Sequence[PromptImage], advantage: float = 0.0
    ) -> TrainSequence:
        data = {image.span.sha256: image.data for image in media}
        images = LedgerPictures(self.tokens).inputs(
            [*prompt, *sampled], [image.span for image in media], data.__getitem__
        )
        tokens, mask = [*prompt, *sampled], [False] * len(prompt) + [True] * len(sampled)
        return TrainSequence(tokens, mask, [0.0] * len(tokens), advantage, images=images)

    def scores(self, prompt: Sequence[int], sampled: Sequence[int], media: Sequence[PromptImage]) -> list[float]:
        return self.learner.score([self.sequence(prompt, sampled, media)])[0]

    def publish(self, folder: Path) -> Probe:
        """Train a step on pictures and write the weights; the probe has two pictures."""
        prompt, media = self.prompt(4, WIDE, 3, TALL, 2)
        self.learner.train_step([self.sequence(prompt, self.words[:6], media, 1.0)], 0)
        folder.mkdir()
        self.learner.write_weights(folder)
        images = self.sequence(prompt, [], media).images
        logprobs = tuple(self.learner.raw_logprobs(prompt, images))
        return Probe(token_ids=tuple(prompt), logprobs=logprobs, tolerance=TOLERANCE, media=tuple(media))


Start = Callable[[Seeing], Awaitable[Engine]]


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def seeing(folder: Path) -> Seeing:
    """The model with its first weights; some tests train it."""
    return Seeing(folder)


async def reference(seeing: Seeing) -> Engine:
    return TransformersEngine(seeing.folder, banned=seeing.banned)


async def vllm(seeing: Seeing) -> Engine:
    from genevolve_ray.engines.vllm import VllmEngine

    config = VllmConfig(max_images=2, kv_cache_mib=64)
    return await VllmEngine.create(seeing.folder, banned=seeing.banned, max_num_seqs=8, config=config)


@asynccontextmanager
async def running(start: Start, seeing: Seeing) -> AsyncIterator[Engine]:
    engine = await start(seeing)
    try:
        yield engine
    finally:
        await engine.close()


async def agrees(engine: Engine, seeing: Seeing) -> None:
    """Sample two turns of trajectories with no, one and two pictures, all in company, and compare each log-prob."""

    async def turns(name: str, *parts: int | bytes) -> None:
        prompt, media = seeing.prompt(*parts)
        for turn in range(2):
            sampled = await engine.generate(prompt, SAMPLING, f"{name}/{turn}", media)
            assert not set(sampled.tokens) & set(seeing.banned)
            assert seeing.scores(prompt, sampled.tokens, media) == pytest.approx(sampled.logprobs, abs=TOLERANCE)
            prompt = [*prompt, *sampled.tokens, *seeing.words[:3]]

    await asyncio.gather(
        turns("text", 30), turns("one", 5, WIDE, 4), turns("last", 3, TALL), turns("two", 2, WIDE, 9, TALL, 1)
    )


async def examine(engine: Engine, seeing: Seeing, tmp_path: Path) -> None:
    await agrees(engine, seeing)
    for version in (1, 2):
        probe = seeing.publish(tmp_path / f"v{version}")
        prompt, media = seeing.prompt(5, WIDE, 4)
        sampling = SAMPLING.model_copy(update={"max_tokens": 60})
        flying = [asyncio.create_task(engine.generate(prompt, sampling, f"f{version}/{i}", media)) for i in range(3)]
        await engine.generate(prompt, SAMPLING, f"short{version}", media)
        assert await engine.update(str(tmp_path / f"v{version}"), version, probe) < TOLERANCE
        assert all(len(one.tokens) == 60 for one in await asyncio.gather(*flying)), "pictures survive an update"
        await agrees(engine, seeing)
    other = probe.media[0].model_copy(update={"data": TALL, "span": probe.media[0].span})
    with pytest.raises(MediaMismatch, match="is another: sha256"):
        await engine.score(probe.token_ids, (other, probe.media[1]))
    assert await engine.score(probe.token_ids, probe.media) == pytest.approx(list(probe.logprobs), abs=TOLERANCE)
    # The learner's probe with another picture of the same size: the engine's weights are right, its picture is not.
    stranger = seeing.prompt(4, noise_file(9, (96, 64)), 3, TALL, 2)[1]
    with pytest.raises(WeightUpdateError, match="is off by"):
        await engine.update(str(tmp_path / "v2"), 3, probe.model_copy(update={"media": tuple(stranger)}))


async def test_the_reference_engine_samples_what_the_learner_scores(seeing: Seeing, tmp_path: Path) -> None:
    async with running(reference, seeing) as engine:
        await examine(engine, seeing, tmp_path)


@pytest.mark.e2e
async def test_vllm_samples_what_the_learner_scores(
    seeing: Seeing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genevolve_ray.engines.vllm_settings import vllm_environment

    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)  # Ends with the test.
    async with running(vllm, seeing) as engine:
        await misfits_are_refused(engine, seeing)
        prompt, media = seeing.prompt(2, WIDE, 1, TALL, 1, WIDE)
        with pytest.raises(MediaMismatch, match=r"has 3 pictures, but engine\.vllm\.max_images=2"):
            await engine.generate(prompt, SAMPLING, "many", media)
        await examine(engine, seeing, tmp_path)


@pytest.mark.e2e
async def test_vllm_follows_trained_projectors(seeing: Seeing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of pictures that an engine keeps belong to one version: the probe shows those that it knows."""
    from genevolve_ray.engines.vllm_settings import vllm_environment

    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)  # Ends with the test.
    lora = LoraConfig(rank=4, projector=True, publish=PublishForm.MERGED)
    config = LearnerConfig(lr=1e-2, temperature=0.7, threads=1, lora=lora)
    seeing.learner = Learner(seeing.folder, config, seeing.banned)
    async with running(vllm, seeing) as engine:
        for version in (1, 2, 3):
            probe = seeing.publish(tmp_path / f"v{version}")
            await engine.score(probe.token_ids, probe.media)
            assert await engine.update(str(tmp_path / f"v{version}"), version, probe) < TOLERANCE
            await agrees(engine, seeing)


async def misfits_are_refused(engine: Engine, seeing: Seeing) -> None:
    prompt, media = seeing.prompt(4, WIDE, 3, TALL, 2)
    first, second = media

    def changed(image: PromptImage, **change: Any) -> PromptImage:
        return image.model_copy(update={"span": image.span.model_copy(update=change)})

    place = rf"tokens \[{first.span.start}, {first.span.end}\)"
    time, height, width = first.span.grid
    wrong = {
        f"{place} is another: sha256": [first.model_copy(update={"data": TALL}), second],
        rf"{place} has patch grid \(1, {height}, {width}\)": [changed(first, grid=(time, width, height)), second],
        rf"\[{first.span.start + 1}, {first.span.end + 1}\) has another token at": [
            changed(first, start=first.span.start + 1, end=first.span.end + 1),
            second,
        ],
        "out of order": [second, first],
        "but the spans of its pictures cover": [first],
        "has another token": [changed(first, start=first.span.start - 1), second],
    }
    for said, pictures in wrong.items():
        with pytest.raises(MediaMismatch, match=said):
            await engine.generate(prompt, SAMPLING, "wrong", pictures)
    data = b"no picture"
    broken = changed(first, sha256=hashlib.sha256(data).hexdigest()).model_copy(update={"data": data})
    with pytest.raises(MediaMismatch, match=f"{place} cannot be opened"):
        await engine.generate(prompt, SAMPLING, "broken", [broken, second])
    assert await engine.generate(prompt, SAMPLING, "right", media)


async def test_a_wrong_image_grid_or_place_is_refused(seeing: Seeing) -> None:
    async with running(reference, seeing) as engine:
        await misfits_are_refused(engine, seeing)


def test_the_learner_tells_another_image_grid_or_place_by_its_log_probs(seeing: Seeing) -> None:
    """The parity gauge compares these: whatever the engine saw differently shows in it."""
    prompt, media = seeing.prompt(4, WIDE, 3, TALL, 2)
    sampled = seeing.words[:6]
    right = seeing.scores(prompt, sampled, media)

    def gap(images: Any) -> float:
        sequence = seeing.sequence(prompt, sampled, media)
        [scored] = seeing.learner.score([TrainSequence(**{**vars(sequence), "images": images})])
        return max(abs(a - b) for a, b in zip(scored, right, strict=True))

    images = seeing.sequence(prompt, sampled, media).images
    assert images is not None and gap(images) < TOLERANCE
    stranger = seeing.sequence(prompt, sampled, seeing.prompt(4, noise_file(9, (96, 64)), 3, TALL, 2)[1]).images
    assert gap(stranger) > 10 * TOLERANCE, "another picture of the same size"
    turned = ImageInputs(tuple(replace(p, grid=(p.grid[0], p.grid[2], p.grid[1])) for p in images.pictures))
    assert gap(turned) > 10 * TOLERANCE, "the same patches in a grid of the other shape"
    moved, shifted = seeing.prompt(5, WIDE, 2, TALL, 2)
    assert max(abs(a - b) for a, b in zip(seeing.scores(moved, sampled, shifted), right, strict=True)) > 10 * TOLERANCE


def test_no_policy_samples_a_token_of_a_picture(seeing: Seeing) -> None:
    config = seeing.learner.model.config
    assert {seeing.start, seeing.end, seeing.image, config.video_token_id} <= set(seeing.banned)


def test_the_grid_of_a_picture_is_its_processors(seeing: Seeing) -> None:
    for size in ((96, 64), (64, 128), (1, 1), (33, 200), (3000, 20), (2000, 1500)):
        picture = open_picture(noise_file(0, size))
        found = seeing.processor(images=[picture], return_tensors="pt")["image_grid_thw"]
        assert patch_grid(seeing.processor, picture.width, picture.height) == tuple(found[0].tolist())


def test_tokens_that_an_engine_read_otherwise_are_named(seeing: Seeing) -> None:
    prompt, media = seeing.prompt(4, WIDE, 3)
    check_expanded(prompt, prompt, media)
    short = [*prompt[:6], *prompt[7:]]
    span = media[0].span
    said = rf"read {len(short)} tokens, the prompt has {len(prompt)}.*\[{span.start}, {span.end}\)"
    with pytest.raises(MediaMismatch, match=said):
        check_expanded(prompt, short, media)
    with pytest.raises(MediaMismatch, match="from token 0 on, before any image"):
        check_expanded(prompt, prompt[1:], media)


def test_a_probe_with_pictures_is_json_and_one_without_is_as_before(seeing: Seeing) -> None:
    tokens, media = seeing.prompt(2, WIDE)
    probe = Probe(token_ids=tuple(tokens), logprobs=(0.0,) * (len(tokens) - 1), media=tuple(media))
    assert Probe.model_validate_json(probe.model_dump_json()) == probe
    assert set(probe.model_copy(update={"media": ()}).model_dump()) == {"token_ids", "logprobs", "tolerance"}


async def test_a_model_that_does_not_see_takes_no_picture(tmp_path: Path, seeing: Seeing) -> None:
    from genevolve_ray.engines.vllm import VllmEngine

    blind = build("qwen3", tmp_path / "blind")
    prompt, media = seeing.prompt(4, WIDE)
    engine = TransformersEngine(blind)
    try:
        with pytest.raises(MediaMismatch, match=f"1 pictures, but the model in {blind} does not see"):
            await engine.generate(prompt, SAMPLING, "blind", media)
    finally:
        await engine.close()
    with pytest.raises(ValueError, match=r"engine\.vllm\.max_images=1, but the model in .* does not see"):
        await VllmEngine.create(blind, config=VllmConfig(max_images=1))
