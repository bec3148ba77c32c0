"""Models of judges that compare embeddings: unusable folders, types of weights, shared models, odd truths, closing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_dual import build_dual
from vlm_judge_helpers import IMAGE, PROGRAM, REQUEST, TRUTH, png

from genevolve_ray.data.requests import PublishedRequests, PublishedRequestsConfig
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.embedding import opened
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import PictureLimits

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIGHT = {"image_size": 16, "patch_size": 8}


def likeness_of(folder: Path | str, **settings: Any) -> LikenessJudge:
    return LikenessJudge(LikenessJudgeConfig.model_validate({"model": str(folder), "low": -1, **settings}))


def alignment_of(folder: Path | str, **settings: Any) -> AlignmentJudge:
    values = {"model": str(folder), "low": -1, "high": 1, **settings}
    return AlignmentJudge(AlignmentJudgeConfig.model_validate(values))


async def score(judge: LikenessJudge | AlignmentJudge, image: bytes = IMAGE, truth: bytes = TRUTH) -> float:
    (found,) = (await judge.judge(REQUEST, image, truth, PROGRAM, [])).components.values()
    return found.value


def sees_alone(folder: Path, kind: str) -> Path:
    """Write a random model that sees alone: a classifier without a pooler, an encoder of patches, or a ConvNeXt."""
    import torch
    import transformers as t

    build: dict[str, Callable[[], Any]] = {
        "classifier": lambda: t.ViTForImageClassification(t.ViTConfig(**TOWER, **SIGHT)),
        "patches": lambda: t.ViTMAEModel(t.ViTMAEConfig(**TOWER, **SIGHT)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**{**TOWER, **SIGHT})),
        "convnext": lambda: t.ConvNextV2Model(t.ConvNextV2Config(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)),
    }
    torch.manual_seed(0)
    build[kind]().save_pretrained(folder)
    t.BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def convnext_dual(folder: Path) -> Path:
    """Write a dual encoder with the text tower and processor of a CLIP, and a ConvNeXt for pictures."""
    import torch
    import transformers as t

    build_dual(folder, "clip")
    stages = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "hidden_size": 8}
    text = t.BertConfig(vocab_size=32, **TOWER)
    seen = t.ConvNextV2Config(**stages)
    both = t.VisionTextDualEncoderConfig.from_vision_text_configs(seen, text, projection_dim=8)
    torch.manual_seed(0)
    t.VisionTextDualEncoderModel(both, t.ConvNextV2Model(seen), t.BertModel(text)).save_pretrained(folder)
    return folder


def test_a_model_whose_files_lack_weights_is_refused(tmp_path: Path) -> None:
    said = (
        r"judge.config.model='.*' cannot be loaded: .* lack 2 weights of a ViTModel, such as pooler.dense.bias, pooler"
    )
    with pytest.raises(ValueError, match=said):
        likeness_of(sees_alone(tmp_path, "classifier"))


def test_a_model_without_a_vector_for_a_whole_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"judge.config.model='.*' \(ViTMAEModel\) fails .* no vector for a whole pic"):
        likeness_of(sees_alone(tmp_path / "patches", "patches"))
    from transformers import Dinov2Model

    class OfPatches:
        def __init__(self, states: Any) -> None:
            self.pooler_output = states

    def features(self: Any, pixel_values: Any) -> OfPatches:
        return OfPatches(self(pixel_values).last_hidden_state)

    monkeypatch.setattr(Dinov2Model, "get_image_features", features, raising=False)
    with pytest.raises(ValueError, match=r"\(Dinov2Model\) fails .* but Tensor \[2, 5, 16\]"):
        likeness_of(sees_alone(tmp_path / "tokens", "dinov2"))


@pytest.mark.parametrize("judge_of", [likeness_of, alignment_of])
@pytest.mark.parametrize("damage", ["cut", "other sizes"])
def test_damaged_weights_are_one_message_that_names_the_setting(
    tmp_path: Path, damage: str, judge_of: Callable[[Path], Any]
) -> None:
    build_dual(tmp_path, "clip")
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "projection_dim": 4}))
    with pytest.raises(ValueError, match=r"judge.config.model='.*' cannot be loaded: (Safetensor|Runtime)Error: "):
        judge_of(tmp_path)


async def test_a_tower_that_converts_no_pixels_has_nearly_the_same_scores_in_bfloat16(tmp_path: Path) -> None:
    sees, both = sees_alone(tmp_path / "sees", "convnext"), convnext_dual(tmp_path / "both")
    for judge_of, folder in ((likeness_of, sees), (likeness_of, both), (alignment_of, both)):
        full, half = [await score(judge_of(folder, dtype=dtype)) for dtype in ("float32", "bfloat16")]
        assert full != half and half == pytest.approx(full, abs=0.05)


def test_judges_of_one_model_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_dual(tmp_path, "clip")
    likeness, alignment = likeness_of(folder), alignment_of(folder)
    turn = likeness._model._turn
    assert alignment._model._turn is turn
    held = []
    for judge in (likeness, alignment):
        monkeypatch.setattr(judge._model, "_compare", lambda items: [held.append(turn.locked()) or 0.5] * len(items))
        judge._model._computation([object()])  # type: ignore[list-item]
    assert held == [True, True] and not turn.locked()


async def test_calls_that_wait_when_a_judge_is_closed_are_failures_and_not_canceled(tmp_path: Path) -> None:
    judge, begin = likeness_of(build_dual(tmp_path, "clip"), batch_size=1), threading.Event()
    judge._model._executor.submit(begin.wait)
    calls = [asyncio.ensure_future(score(judge)) for _ in range(2)]
    while len(judge._model._waiting) < len(calls):
        await asyncio.sleep(0)
    await judge.aclose()
    begin.set()
    for said in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(said, InfraFailure) and "the model is closed" in str(said)
    with pytest.raises(InfraFailure):
        await score(judge)


def test_the_identity_of_likeness_tells_weights_apart_and_not_their_place(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel

    one, copy, other = [Path(build_dual(tmp_path / place / "clip", "clip")) for place in ("one", "copy", "other")]
    model = CLIPModel.from_pretrained(other)
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    model.save_pretrained(other)
    same, equal, trained = [likeness_of(folder).identity for folder in (one, copy, other)]
    assert same == equal != trained
    assert len({alignment_of(folder).identity for folder in (one, other)}) == 1, "recorded runs have this form"


def test_truths_that_the_judge_cannot_open_are_left_out_before_a_run(tmp_path: Path) -> None:
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(png("red", (8 + n, 8)))
    with (tmp_path / "0.png").open("ab") as file:
        file.truncate(PictureLimits().max_bytes + 1)
    rows = [{"prompt": f"draw {n}", "gt_image": f"{n}.png"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"paths": [tmp_path / "rows.jsonl"], "split": {"validation": 0.3, "test": 0.3}}
    source = PublishedRequests(PublishedRequestsConfig.model_validate(values), MemoryImages())
    assert not source.report.rejected
    source.accept(LikenessJudge.truth_limits(LikenessJudgeConfig(model="m")))
    assert source.report.rejected.total() == 1


@pytest.mark.parametrize("size, expected", [((1, 2000), (52, 1024)), ((600, 3), (600, 30)), ((400, 20), (400, 20))])
async def test_a_very_long_picture_is_widened_with_white(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = await opened(png("red", size), PictureLimits(long_side=1024), "likeness/1", "the truth")
    assert found.size == expected
    assert found.getpixel(((expected[0] - 1) // 2, (expected[1] - 1) // 2)) == (255, 0, 0)
    assert (found.getpixel((0, 0)) == (255, 255, 255)) is (size != expected)
