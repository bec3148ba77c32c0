"""Likeness to the ground truth by tiny random models: dual encoders, and one that only sees."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from tiny_dual import build_dual
from vlm_judge_helpers import IMAGE, PROGRAM, REQUEST, TRUTH, png

from genevolve_ray.contracts.judge import check_judge
from genevolve_ray.engines import picture_batches
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.likeness_judge import LikenessJudge, LikenessJudgeConfig
from genevolve_ray.judges.protocol import declared_components, needs_truth
from genevolve_ray.records.components import ComponentRange, OpenVerdict
from genevolve_ray.records.usage import metered

WIDE = {"low": -1, "high": 1}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_dual(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_dual(tmp_path_factory.mktemp("siglip"), "siglip")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder, tower = tmp_path_factory.mktemp("dinov2"), {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=16, image_size=16, patch_size=8, **tower)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def judge_of(folder: str, **settings: Any) -> LikenessJudge:
    return LikenessJudge(LikenessJudgeConfig.model_validate({"model": folder, **settings}))


async def asked(judge: LikenessJudge, image: bytes = IMAGE, truth: bytes = TRUTH) -> OpenVerdict:
    return await judge.judge(REQUEST, image, truth, PROGRAM, [])


def plain_cosine(folder: str) -> float:
    """What the model itself says about the picture and the truth."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (IMAGE, TRUTH)]
    with torch.no_grad():
        found = getattr(model, "get_image_features", model)(**processor(images=pictures, return_tensors="pt"))
    return float(torch.cosine_similarity(*found.pooler_output, dim=0))


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
async def test_the_score_is_the_cosine_in_the_models_image_space(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    with metered() as meter:
        verdict = await asked(judge_of(folder, **WIDE))
    component = verdict.components["likeness"]
    assert component.value == pytest.approx(plain_cosine(folder), abs=1e-5)
    assert component.rationale == f"cosine {component.value:.4f}" and verdict.flags == ()
    assert (meter.by_service["judge"].calls, meter.by_service["judge"].images) == (1, 1)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
async def test_the_truth_itself_is_most_like_it(kind: str, request: pytest.FixtureRequest) -> None:
    judge = judge_of(request.getfixturevalue(kind), **WIDE)
    same, other = [(await asked(judge, image)).components["likeness"].value for image in (TRUTH, IMAGE)]
    assert same == pytest.approx(1, abs=1e-5) and other < same


async def test_a_cosine_outside_the_range_is_clipped_and_flagged(clip: str) -> None:
    value = (await asked(judge_of(clip, **WIDE))).components["likeness"].value
    above, below = judge_of(clip, low=-1, high=value - 0.01), judge_of(clip, low=value + 1e-4, high=1)
    assert [(await asked(judge)).components["likeness"].scaled for judge in (above, below)] == [1, 0]
    assert (await asked(above)).flags == ("clipped:likeness",)
    assert declared_components(LikenessJudge, above.config) == {"likeness": ComponentRange(low=-1, high=value - 0.01)}


async def test_concurrent_pairs_have_their_own_scores(clip: str) -> None:
    judge = judge_of(clip, batch_size=4, **WIDE)
    pairs = [(png(one), png(other, (9, 30))) for one, other in (("red", "blue"), ("red", "green"), ("blue", "green"))]
    alone = [(await asked(judge, *pair)).components["likeness"].value for pair in pairs]
    together = await asyncio.gather(*(asked(judge, *pair) for pair in pairs))
    assert [verdict.components["likeness"].value for verdict in together] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
async def test_it_keeps_the_contract_of_a_judge(kind: str, request: pytest.FixtureRequest) -> None:
    judge = judge_of(request.getfixturevalue(kind), batch_size=1)
    assert judge.deterministic and needs_truth(judge)
    await check_judge(judge)
    await judge.aclose()


async def test_a_picture_that_cannot_be_opened_is_a_failure_that_names_it(clip: str) -> None:
    with pytest.raises(InfraFailure, match="cannot read the image of case-7"):
        await asked(judge_of(clip), image=IMAGE[:40])
    with pytest.raises(InfraFailure, match="cannot read the ground-truth image of case-7"):
        await asked(judge_of(clip), truth=b"")


async def test_a_model_that_fails_is_a_failure(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(clip)

    def fails(**inputs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(judge._model, "_features", fails)
    with metered() as meter, pytest.raises(InfraFailure, match="cannot compare the image of case-7: RuntimeError: out"):
        await asked(judge)
    assert meter.by_service["judge"].failed_calls == 1


def test_two_judges_of_one_folder_share_its_weights_until_the_last_is_gone(tmp_path: Path) -> None:
    folder = build_dual(tmp_path, "clip")
    likeness, alignment = judge_of(folder), AlignmentJudge(AlignmentJudgeConfig(model=folder))
    assert likeness._model._model is alignment._model._model
    other = judge_of(folder, dtype="bfloat16")
    assert other._model._model is not likeness._model._model
    del likeness, alignment, other
    gc.collect()
    assert not [key for key in picture_batches._models if str(tmp_path) in key[0]]


def test_a_folder_that_was_written_anew_is_loaded_anew(tmp_path: Path) -> None:
    folder = build_dual(tmp_path, "clip")
    before = judge_of(folder)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "note": "another"}))
    assert judge_of(folder)._model._model is not before._model._model


def test_the_identity_names_model_and_range_but_no_place(clip: str, siglip: str) -> None:
    one = judge_of(clip)
    assert one.identity.startswith(f"likeness/1:{Path(clip).name}:") and clip not in one.identity
    assert one.identity == judge_of(clip, batch_size=2).identity
    assert len({judge.identity for judge in (one, judge_of(siglip), judge_of(clip, low=0.1))}) == 3


def test_a_folder_without_a_suitable_model_and_a_bad_range_are_refused(clip: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge.config.model='.*nowhere' cannot be loaded"):
        judge_of(str(tmp_path / "nowhere"))
    with pytest.raises(UserFault, match=r"judge.config.model='.*nowhere' is no model folder: it has no config.json"):
        LikenessJudge.check(LikenessJudgeConfig(model=str(tmp_path / "nowhere")))
    LikenessJudge.check(LikenessJudgeConfig(model=clip))
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=8, **size)).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_bytes((Path(clip) / "processor_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"is a BertModel, which has no tower for pictures"):
        judge_of(str(tmp_path))
    with pytest.raises(ValidationError, match=r"low=0.5 must be below high=0.4"):
        LikenessJudgeConfig(model="m", low=0.5, high=0.4)
