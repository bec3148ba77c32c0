"""Qwen3-VL as the policy: its decoder learns and samples, its vision tower stays, and pictures count where they are."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning_fakes import sequences
from noisy_pictures import noise
from tiny_vl import IMAGE, VIDEO, VISION_END, VISION_START, build_vl
from transformers import AutoModelForImageTextToText

from genevolve_ray.engines.protocol import Probe, SamplingParams
from genevolve_ray.engines.transformers import TransformersEngine
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.learning.config import KlConfig, LearnerConfig, LoraConfig
from genevolve_ray.learning.step import Learner
from genevolve_ray.learning.vision import LedgerPictures, image_inputs
from genevolve_ray.models.image_processor import load_image_processor
from genevolve_ray.models.image_tokens import load_image_tokens
from genevolve_ray.records.ledger import MediaMismatch, MediaSpan

CONFIG = LearnerConfig(lr=1e-3, temperature=0.7)
BANNED = (0, VISION_START, VISION_END, IMAGE, VIDEO, 63)


@pytest.fixture(scope="module")
def vl_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_vl(tmp_path_factory.mktemp("vl"))


def batch(count: int = 4, seed: int = 0) -> list[TrainSequence]:
    return [replace(s, tokens=[1 + t % 56 for t in s.tokens]) for s in sequences(count, seed)]


def looking(vl_dir: str, seeds: list[int], sequence: TrainSequence) -> TrainSequence:
    """Put pictures before a sequence, as an observation would."""
    processor = load_image_processor(vl_dir)
    prefix = [1] + [VISION_START, IMAGE, IMAGE, IMAGE, IMAGE, VISION_END] * len(seeds)
    n = len(prefix)
    return TrainSequence(
        [*prefix, *sequence.tokens],
        [False] * n + list(sequence.policy_mask),
        [0.0] * n + list(sequence.logprobs),
        sequence.advantage,
        images=image_inputs([noise(seed) for seed in seeds], processor),
    )


def test_a_step_trains_the_decoder_and_leaves_the_tower(vl_dir: str) -> None:
    learner = Learner(vl_dir, CONFIG, BANNED)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    assert learner.train_step(batch(), 0)["grad_norm"] > 0
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".visual." in name), name


def test_scores_of_text_are_those_of_the_whole_model(vl_dir: str) -> None:
    [sequence] = batch(1)
    [score] = Learner(vl_dir, CONFIG.model_copy(update={"temperature": 1.0})).score([sequence])
    model = AutoModelForImageTextToText.from_pretrained(vl_dir).eval()
    with torch.no_grad():
        plain = model(torch.tensor([sequence.tokens])).logits[0].log_softmax(-1)
    expected = [plain[t - 1, sequence.tokens[t]].item() for t, m in enumerate(sequence.policy_mask) if m]
    assert score == pytest.approx(expected, abs=1e-5)


def test_pictures_are_seen_and_do_not_depend_on_company(vl_dir: str) -> None:
    learner = Learner(vl_dir, CONFIG, BANNED)
    one, two, text = batch(3)
    mixed = [looking(vl_dir, [1], one), text, looking(vl_dir, [2, 3], two)]
    together = learner.score(mixed)
    for sequence, score in zip(mixed, together, strict=True):
        assert learner.score([sequence])[0] == pytest.approx(score, abs=1e-5)
    assert learner.score([looking(vl_dir, [4], one)])[0] != pytest.approx(together[0], abs=1e-3), "another picture"


def test_scores_with_a_picture_are_those_of_the_whole_model(vl_dir: str) -> None:
    sequence = looking(vl_dir, [1, 2], batch(1)[0])
    assert sequence.images is not None
    [score] = Learner(vl_dir, CONFIG.model_copy(update={"temperature": 1.0})).score([sequence])
    model = AutoModelForImageTextToText.from_pretrained(vl_dir).eval()
    ids = torch.tensor([sequence.tokens])
    with torch.no_grad():
        plain = model(
            input_ids=ids,
            pixel_values=sequence.images.pixel_values,
            image_grid_thw=sequence.images.grid_thw,
            mm_token_type_ids=(ids == IMAGE).int(),
        ).logits[0]
    plain = plain.log_softmax(-1)
    expected = [plain[t - 1, sequence.tokens[t]].item() for t, m in enumerate(sequence.policy_mask) if m]
    assert score == pytest.approx(expected, abs=1e-5)


def test_a_step_on_pictures_with_reference_adapter_and_checkpointing(vl_dir: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"lora": LoraConfig(rank=4), "kl": KlConfig(coefficient=0.1), "gradient_checkpointing": True}
    )
    learner = Learner(vl_dir, config, BANNED)
    names = learner.state_dict()["model"]
    assert names and all("language_model.layers" in name for name in names)
    metrics = learner.train_step([looking(vl_dir, [1], batch(1)[0]), *batch(2)], 0)
    assert metrics["grad_norm"] > 0
    learner.save(tmp_path)
    again = Learner(vl_dir, config, BANNED)
    again.load(tmp_path)
    assert again.state_hash() == learner.state_hash()


def test_a_checkpoint_keeps_the_layout_and_restores(vl_dir: str, tmp_path: Path) -> None:
    learner = Learner(vl_dir, CONFIG, BANNED)
    learner.train_step(batch(), 0)
    learner.save(tmp_path)
    again = Learner(tmp_path, CONFIG, BANNED)
    again.load(tmp_path)
    assert again.state_hash() == learner.state_hash()


async def test_the_reference_engine_samples_what_the_learner_trains(vl_dir: str, tmp_path: Path) -> None:
    learner = Learner(vl_dir, CONFIG.model_copy(update={"lr": 1e-2}), BANNED)
    learner.train_step(batch(), 0)
    learner.write_weights(tmp_path)
    ids = (5, 6, 7, 8, 9)
    probe = Probe(token_ids=ids, logprobs=tuple(learner.raw_logprobs(ids)))
    engine = TransformersEngine(vl_dir, banned=BANNED)
    try:
        assert await engine.update(str(tmp_path), 1, probe) < 1e-5
        sampled = await engine.generate(ids, SamplingParams(temperature=0.7, max_tokens=12, seed=3), "a")
    finally:
        await engine.close()
    assert not set(sampled.tokens) & set(BANNED)
    n = len(sampled.tokens)
    sequence = TrainSequence(ids + sampled.tokens, [False] * len(ids) + [True] * n, [0.0] * (len(ids) + n), 1.0)
    assert learner.score([sequence])[0] == pytest.approx(sampled.logprobs, abs=1e-4)


def test_a_file_that_many_sequences_show_is_read_once(vl_dir: str) -> None:
    tokens = load_image_tokens(vl_dir)
    assert tokens is not None
    data = io.BytesIO()
    noise(1).save(data, "PNG")
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    span = MediaSpan(start=2, end=6, sha256=sha256, grid=(1, 4, 4))
    context = [1, VISION_START, IMAGE, IMAGE, IMAGE, IMAGE, VISION_END, 2]
    asked = []

    def read(wanted: str) -> bytes:
        asked.append(wanted)
        return data.getvalue()

    reader = LedgerPictures(tokens)
    found = reader.inputs(context, [span], read)
    twice = reader.inputs([*context, *context], [span, span.moved(len(context))], read)
    assert found is not None and twice is not None and asked == [sha256]
    assert found.pixel_values.shape == (16, 3 * 2 * 16 * 16)
    assert all(one is found.pictures[0] for one in twice.pictures)
    assert torch.equal(found.pixel_values, image_inputs([noise(1)], tokens.processor).pixel_values)
    assert reader.inputs(context[:2], [], read) is None
    with pytest.raises(
        MediaMismatch, match=r"\[2, 6\) has patch grid \(1, 4, 4\) for 4 tokens, the span has \(1, 2, 8\)"
    ):
        reader.inputs(context, [span.model_copy(update={"grid": (1, 2, 8)})], read)
