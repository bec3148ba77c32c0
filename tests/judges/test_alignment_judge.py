"""Alignment by tiny random CLIP and SigLIP models that are loaded from their folders."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from tiny_dual import LIMIT, build_dual
from vlm_judge_helpers import IMAGE, PROGRAM, REQUEST, png

from genevolve_ray.contracts.judge import check_judge
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.judges.alignment_judge import AlignmentJudge, AlignmentJudgeConfig
from genevolve_ray.judges.protocol import declared_components, needs_truth
from genevolve_ray.records.components import ComponentRange, OpenVerdict
from genevolve_ray.records.usage import metered

WIDE = {"low": -1, "high": 1}
TEXT = "a red lantern with the blue sign"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_dual(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_dual(tmp_path_factory.mktemp("siglip"), "siglip")


def judge_of(folder: str, **settings: Any) -> AlignmentJudge:
    return AlignmentJudge(AlignmentJudgeConfig.model_validate({"model": folder, **settings}))


async def asked(judge: AlignmentJudge, text: str = TEXT, image: bytes = IMAGE) -> OpenVerdict:
    return await judge.judge(REQUEST.model_copy(update={"prompt": text}), image, b"", PROGRAM, [])


def plain_output(folder: str, text: str, image: bytes) -> Any:
    """What the model itself says about one pair."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    padding = "max_length" if "siglip" in folder else False
    inputs = processor(text=[text], images=[picture], padding=padding, max_length=LIMIT, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
async def test_the_score_is_the_cosine_of_the_models_embeddings(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    out = plain_output(folder, TEXT, IMAGE)
    cosine = float((out.image_embeds * out.text_embeds).sum())
    with metered() as meter:
        verdict = await asked(judge_of(folder, **WIDE))
    component = verdict.components["alignment"]
    assert component.value == pytest.approx(cosine, abs=1e-5)
    assert component.rationale == f"cosine {component.value:.4f}" and verdict.flags == ()
    assert (meter.by_service["judge"].calls, meter.by_service["judge"].images) == (1, 1)


async def test_siglip_gives_the_probability_of_its_sigmoid_and_clip_has_none(clip: str, siglip: str) -> None:
    judge = judge_of(siglip, score="probability")
    logit = plain_output(siglip, TEXT, IMAGE).logits_per_image.sigmoid().item()
    assert (await asked(judge)).components["alignment"].value == pytest.approx(logit, abs=1e-5)
    assert declared_components(judge) == {"alignment": ComponentRange()}
    with pytest.raises(ValueError, match=r"score=probability needs a SigLIP model, but judge.config.model="):
        judge_of(clip, score="probability")


async def test_a_cosine_outside_the_range_is_clipped_and_flagged(clip: str) -> None:
    value = (await asked(judge_of(clip, **WIDE))).components["alignment"].value
    above, below = judge_of(clip, low=-1, high=value - 0.01), judge_of(clip, low=value + 0.01, high=1)
    assert [(await asked(judge)).components["alignment"].scaled for judge in (above, below)] == [1, 0]
    assert (await asked(above)).flags == ("clipped:alignment",)
    assert declared_components(AlignmentJudge, above.config)["alignment"].high == value - 0.01


async def test_calls_that_wait_are_one_batch_and_have_their_own_scores(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(clip, batch_size=4, **WIDE)
    pairs = [
        (text, png(colour, size)) for text in (TEXT, "blue") for colour, size in (("red", (40, 30)), ("blue", (9, 30)))
    ]
    alone = [(await asked(judge, *pair)).components["alignment"].value for pair in pairs]
    assert len({round(value, 4) for value in alone}) == len(pairs)
    sizes, model, begin = [], judge._model, threading.Event()
    compare = model._compare

    def counted(batch: Any) -> Any:
        sizes.append(len(batch))
        return compare(batch)

    monkeypatch.setattr(model, "_compare", counted)
    model._executor.submit(begin.wait)
    work = asyncio.gather(*(asked(judge, *pair) for pair in [*pairs, *pairs]))
    while len(model._waiting) < 2 * len(pairs):
        await asyncio.sleep(0)
    begin.set()
    together = [verdict.components["alignment"].value for verdict in await work]
    assert together == pytest.approx([*alone, *alone], abs=1e-5)
    assert sizes == [4, 4]


async def test_a_pair_that_fails_fails_alone_and_a_call_that_is_gone_is_not_computed(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(clip, **WIDE)
    seen, model, begin = [], judge._model, threading.Event()
    compare = model._compare

    def breaks(batch: Any) -> Any:
        texts = [pair.text for pair in batch]
        seen.append(texts)
        if "blue" in texts:
            raise RuntimeError("out of memory")
        return compare(batch)

    monkeypatch.setattr(model, "_compare", breaks)
    model._executor.submit(begin.wait)
    tasks = [asyncio.ensure_future(asked(judge, text)) for text in ("red", "blue", "green", "sign")]
    while len(model._waiting) < len(tasks):
        await asyncio.sleep(0)
    tasks[-1].cancel()
    await asyncio.sleep(0)
    begin.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [OpenVerdict, InfraFailure, OpenVerdict, asyncio.CancelledError]
    assert "cannot compare the image of case-7: RuntimeError: out of memory" in str(done[1])
    assert not any("sign" in texts for texts in seen)


@pytest.mark.parametrize("batch_size", [1, 2])
async def test_no_picture_is_kept_once_it_is_judged(clip: str, batch_size: int) -> None:
    judge = judge_of(clip, batch_size=batch_size, **WIDE)
    await asyncio.gather(*(asked(judge, text) for text in ("red", "blue", "green")))
    assert not judge._model._waiting


async def test_a_long_text_is_cut_and_flagged(clip: str) -> None:
    judge = judge_of(clip, **WIDE)
    words = ["red"] * (LIMIT - 2)  # Beside them the tower reads a mark at either end.
    whole, cut = await asked(judge, " ".join(words)), await asked(judge, " ".join([*words, "blue"]))
    assert (whole.flags, cut.flags) == ((), ("cut:alignment",))
    assert cut.components == whole.components
    assert (await asked(judge, "red " * 5000)).flags == ("cut:alignment",)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
async def test_a_control_token_in_a_text_is_plain_letters(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(request.getfixturevalue(kind), **WIDE)
    seen = []
    forward = judge._model._model.forward

    def watched(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"][0].tolist())
        return forward(**inputs)

    monkeypatch.setattr(judge._model._model, "forward", watched)  # Other judges of this folder share the model.
    await asked(judge, "red blue")
    await asked(judge, "red <end> blue")
    # The tokenizer does not know the pieces "<", "end" and ">"; the one end is that of the text.
    assert [ids.count(3) for ids in seen] == [1, 1] and [ids.count(1) for ids in seen] == [0, 3]


async def test_the_text_may_be_the_programs_and_have_a_prefix(clip: str) -> None:
    program, request = await asked(judge_of(clip, text="program", **WIDE)), judge_of(clip, prefix="a sign of ", **WIDE)
    assert program.components == (await asked(judge_of(clip, **WIDE), PROGRAM.gen_prompt)).components
    assert (await asked(request, "red")).components == (await asked(judge_of(clip, **WIDE), "a sign of red")).components


async def test_the_text_may_be_one_of_the_requests_meta(clip: str) -> None:
    judge = judge_of(clip, text="meta.truth.caption", **WIDE)
    told = REQUEST.model_copy(update={"prompt": "the sign", "meta": {"truth": {"caption": TEXT}}})
    verdict = await judge.judge(told, IMAGE, b"", PROGRAM, [])
    assert verdict.components == (await asked(judge_of(clip, **WIDE))).components
    AlignmentJudge.check_request(judge.config, told)


@pytest.mark.parametrize("meta", [{}, {"caption": " "}, {"caption": ["a red sign"]}])
async def test_a_request_without_the_text_is_a_failure_and_is_refused_at_the_start(
    clip: str, meta: dict[str, Any]
) -> None:
    judge, bare = judge_of(clip, text="meta.caption"), REQUEST.model_copy(update={"meta": meta})
    with pytest.raises(InfraFailure, match=r"alignment/1:.* judge.config.text=meta.caption: request case-7 has no"):
        await judge.judge(bare, IMAGE, b"", PROGRAM, [])
    with pytest.raises(UserFault, match=r"judge.config.text=meta.caption: request case-7 has no such text"):
        AlignmentJudge.check_request(judge.config, bare)
    AlignmentJudge.check_request(AlignmentJudgeConfig(model=clip), bare)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
async def test_it_keeps_the_contract_of_a_judge(kind: str, request: pytest.FixtureRequest) -> None:
    judge = judge_of(request.getfixturevalue(kind), batch_size=1)
    assert judge.deterministic and not needs_truth(judge)
    await check_judge(judge)
    await judge.aclose()


async def test_a_picture_that_cannot_be_opened_is_a_failure(clip: str) -> None:
    with pytest.raises(InfraFailure, match="cannot read the image of case-7"):
        await asked(judge_of(clip), image=IMAGE[:40])


def test_the_identity_names_model_and_score_but_neither_place_nor_batch(clip: str, siglip: str) -> None:
    one = judge_of(clip)
    assert one.identity == judge_of(clip, batch_size=2).identity and clip not in one.identity
    assert len({judge.identity for judge in (one, judge_of(siglip), judge_of(clip, low=0.1))}) == 3
    assert not one.deterministic


def test_a_folder_without_a_suitable_model_and_bad_ranges_are_refused(clip: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge.config.model='.*nowhere' cannot be loaded"):
        judge_of(str(tmp_path / "nowhere"))
    with pytest.raises(UserFault, match=r"judge.config.model='.*nowhere' is no model folder: it has no config.json"):
        AlignmentJudge.check(AlignmentJudgeConfig(model=str(tmp_path / "nowhere")))
    AlignmentJudge.check(AlignmentJudgeConfig(model=clip))
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(clip) / name).read_bytes())
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a CLIPVisionModel, which has no towers for pictures and texts"):
        judge_of(str(tmp_path))
    with pytest.raises(ValidationError, match=r"low=0.5 must be below high=0.4"):
        AlignmentJudgeConfig(model="m", low=0.5)
    with pytest.raises(ValidationError, match=r"low and high are for score=cosine"):
        AlignmentJudgeConfig(model="m", score="probability", high=0.5)
