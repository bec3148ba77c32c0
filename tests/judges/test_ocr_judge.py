"""The judge of letters: with a reader that knows its lines, with readers that fail, and with the real one."""

from __future__ import annotations

import asyncio
import io
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError
from vlm_judge_helpers import IMAGE, PROGRAM, REQUEST, TRUTH, png

from genevolve_ray.contracts.judge import check_judge
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.judges import rapidocr_reader
from genevolve_ray.judges.ocr_judge import OcrJudge, OcrJudgeConfig
from genevolve_ray.judges.text_matching import ReadText
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import OpenVerdict
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import metered

LINES = (
    ReadText(text="SOL", box=(4, 3, 14, 9), confidence=0.9),
    ReadText(text="RIN", box=(4, 10, 44, 16), confidence=0.8),
    ReadText(text="RIM", box=(4, 20, 14, 26), confidence=0.3),
)


class Lines:
    """Reads the same lines in every picture."""

    class Config(Config):
        fails: bool = False

    identity = "lines/1"
    deterministic = True

    def __init__(self, config: Config | None = None) -> None:
        self.fails = bool(config and config.model_dump()["fails"])
        self.pictures: list[bytes] = []

    async def read(self, picture: bytes) -> Sequence[ReadText]:
        self.pictures.append(picture)
        if self.fails:
            raise KeyError("no model")
        return LINES


def judge_of(reader: Any = None, **settings: Any) -> OcrJudge:
    return OcrJudge(OcrJudgeConfig.model_validate(settings), reader)


async def asked(judge: OcrJudge, request: Request = REQUEST, image: bytes = IMAGE) -> OpenVerdict:
    return await judge.judge(request, image, b"", PROGRAM, [])


async def test_the_wanted_text_is_compared_with_what_is_read() -> None:
    with metered() as meter:
        verdict = await asked(judge_of(Lines()))
    text, exact = verdict.components["text"], verdict.components["exact"]
    assert text.value == pytest.approx(1 - 1 / 6) and exact.value == 0
    assert text.rationale == "'SOL RIM' was read as 'SOL RIN' (0.83)"
    assert [(one.kind, one.label) for one in text.artefacts] == [("text", "SOL"), ("text", "RIN")]
    # The picture has 40 x 30 pixels, and the second box ends outside of it.
    assert text.artefacts[1].box == pytest.approx((4 / 40, 10 / 30, 1, 16 / 30))
    assert (meter.by_service["judge"].calls, meter.by_service["judge"].images) == (1, 1)


async def test_texts_that_the_reader_is_unsure_of_count_if_configured() -> None:
    verdict = await asked(judge_of(Lines(), min_confidence=0))
    assert verdict.components["text"].value == pytest.approx(1 - 1 / 6)
    request = REQUEST.model_copy(update={"prompt": "'RIM' and \"RIN\""})
    values = [(await asked(judge_of(Lines(), min_confidence=c), request)).components["exact"].value for c in (0, 0.5)]
    assert values == [1, 0.5]


async def test_a_request_without_text_has_no_value_and_is_not_read() -> None:
    reader = Lines()
    verdict = await asked(judge_of(reader), REQUEST.model_copy(update={"prompt": "three lanterns"}))
    assert verdict.components == {} and not reader.pictures
    with pytest.raises(InfraFailure, match="cannot read the image of case-7"):
        await asked(judge_of(reader), REQUEST.model_copy(update={"prompt": "three lanterns"}), b"no picture")


async def test_the_texts_may_come_from_the_source() -> None:
    request = REQUEST.model_copy(update={"meta": {"texts": ["SOL", "RIN"]}})
    assert (await asked(judge_of(Lines(), wanted="meta.texts"), request)).components["exact"].value == 1


async def test_the_reader_gets_a_png_of_bounded_size() -> None:
    reader = Lines()
    await asked(judge_of(reader, long_side=28), image=png("red", (400, 300)))
    assert Image.open(io.BytesIO(reader.pictures[0])).size == (28, 21)


async def test_texts_that_are_too_long_to_compare_are_flagged() -> None:
    request = REQUEST.model_copy(update={"meta": {"texts": "SOL" * 500}})
    assert (await asked(judge_of(Lines()))).flags == ()
    assert (await asked(judge_of(Lines(), wanted="meta.texts"), request)).flags == ("cut:text",)


async def test_a_reader_that_fails_is_no_empty_picture() -> None:
    judge = OcrJudge(OcrJudgeConfig(reader=f"{__name__}:Lines", reader_config={"fails": True}))
    with (
        metered() as meter,
        pytest.raises(InfraFailure, match=r"cannot read the texts of case-7: KeyError: 'no model'"),
    ):
        await asked(judge)
    assert meter.by_service["judge"].failed_calls == 1


@pytest.mark.parametrize("given", [("SOL", (4, 3, 14, 9)), {"text": "SOL", "box": (math.nan, 3, 14, 9)}])
async def test_what_a_reader_returns_is_checked(given: object) -> None:
    reader = Lines()

    async def read(picture: bytes) -> Any:
        return [given]

    reader.read = read  # type: ignore[method-assign]
    with pytest.raises(InfraFailure, match=r"cannot read the texts of case-7: ValidationError: "):
        await asked(judge_of(reader))
    with pytest.raises(ValidationError, match="finite number"):
        ReadText(text="SOL", box=(4, 3, math.inf, 9))


async def test_it_keeps_the_contract_of_a_judge() -> None:
    await check_judge(OcrJudge(OcrJudgeConfig(reader=f"{__name__}:Lines")))


def test_the_identity_names_reader_and_settings() -> None:
    one = judge_of(Lines())
    assert one.identity.startswith("ocr/1:lines/1:") and one.deterministic
    assert one.identity == judge_of(Lines()).identity != judge_of(Lines(), ignore_case=False).identity


def test_settings_that_cannot_be_are_refused() -> None:
    for wanted in ("prompt", "meta", "meta.a..b"):
        with pytest.raises(ValidationError):
            judge_of(Lines(), wanted=wanted)
    with pytest.raises(UserFault, match=r"reader 'nowhere:Reader' cannot be loaded: No module named 'nowhere'"):
        OcrJudge.check(OcrJudgeConfig(reader="nowhere:Reader"))
    with pytest.raises(UserFault, match=r"reader_config.workers: Input should be greater than or equal to 1"):
        OcrJudge.check(OcrJudgeConfig(reader_config={"workers": 0}))


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapidocr_reader, "find_spec", lambda name: None if name == "rapidocr" else object())
    with pytest.raises(UserFault, match=r"needs rapidocr: pip install 'genevolve_ray\[ocr\]'"):
        OcrJudge.check(OcrJudgeConfig())


def install(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    """Put a library in the place of rapidocr whose engine is this function."""
    library = ModuleType("rapidocr")
    library.RapidOCR = engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rapidocr", library)
    monkeypatch.setattr(rapidocr_reader, "find_spec", lambda name: object())
    monkeypatch.setattr(rapidocr_reader, "version", lambda name: "0")


def test_models_that_cannot_be_loaded_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(params: dict[str, object]) -> Any:
        def read(picture: bytes) -> None:
            raise FileNotFoundError(params["Rec.model_path"])

        return read

    install(monkeypatch, engine)
    params = {"Rec.model_path": "/nowhere.onnx"}
    with pytest.raises(
        UserFault, match=r"params=\{'Rec.model_path': '/nowhere.onnx'\}: FileNotFoundError: /nowhere.onnx"
    ):
        OcrJudge(OcrJudgeConfig(reader_config={"params": params}))


async def test_each_thread_of_the_reader_has_its_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    built, reading = [], threading.Barrier(2, timeout=60)

    def engine(params: dict[str, object]) -> Any:
        built.append(params)

        def read(picture: bytes) -> Any:
            if not picture:
                reading.wait()
            return SimpleNamespace(boxes=None)

        return read

    install(monkeypatch, engine)
    reader = rapidocr_reader.RapidOcrReader(rapidocr_reader.RapidOcrConfig(workers=2))
    assert len(built) == 1
    assert await asyncio.gather(reader.read(b""), reader.read(b"")) == [[], []]
    assert len(built) == 2
    await reader.aclose()


# --- the real reader ---


def lettered(*lines: tuple[str, int, int]) -> bytes:
    image = Image.new("RGB", (480, 320), (240, 236, 220))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(44)
    for text, x, y in lines:
        draw.text((x, y), text, fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rapidocr() -> Iterator[OcrJudge]:
    if missing := [name for name in ("rapidocr", "onnxruntime") if find_spec(name) is None]:
        pytest.skip(f"the extra `ocr` is not installed: {', '.join(missing)}")
    yield OcrJudge(OcrJudgeConfig(reader_config={"threads": 1}))


async def test_rapidocr_reads_letters_over_two_lines(rapidocr: OcrJudge) -> None:
    picture = lettered(("GRAND", 40, 40), ("OPENING", 40, 100), ("exit", 330, 240))
    request = REQUEST.model_copy(update={"prompt": "a sign “Grand Opening” and a plate 'exit'"})
    verdict = await asked(rapidocr, request, picture)
    assert [verdict.components[name].value for name in ("text", "exact")] == [1, 1]
    left, top, right, bottom = verdict.components["text"].artefacts[0].box or (0, 0, 0, 0)
    assert 0.05 < left < 0.12 and 0.1 < top < 0.2 and 0.3 < right < 0.6 and 0.2 < bottom < 0.4


async def test_rapidocr_reads_a_wrong_letter_and_an_empty_picture(rapidocr: OcrJudge) -> None:
    wrong = await asked(rapidocr, image=lettered(("SOL RIN", 40, 40)))
    assert wrong.components["text"].value == pytest.approx(1 - 1 / 6)
    empty = await asked(rapidocr, image=TRUTH)
    assert (empty.components["text"].value, empty.components["text"].rationale) == (0, "'SOL RIM' was not read")


@pytest.mark.parametrize(
    ("params", "said"),
    [({"Rec.model_path": "/nowhere.onnx"}, "FileNotFoundError: /nowhere.onnx"), ({"No.key": 1}, "ValueError: No.key")],
)
@pytest.mark.usefixtures("rapidocr")
def test_rapidocr_refuses_parameters_at_the_start(params: dict[str, object], said: str) -> None:
    with pytest.raises(UserFault, match=said):
        OcrJudge(OcrJudgeConfig(reader_config={"threads": 1, "params": params}))


async def test_rapidocr_keeps_the_contract_of_a_judge(rapidocr: OcrJudge) -> None:
    await check_judge(rapidocr)
