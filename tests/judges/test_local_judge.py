"""A judge model in this process: the tiny Qwen3-VL with random weights, and with weights that learnt an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_vlm import ANSWER, build_vlm, teach
from vlm_judge_helpers import BIN, HIT, IMAGE, KSCORE, PROGRAM, REQUEST, TRUTH, judged, png

from genevolve_ray.engines.chat_transformers import TransformersChat
from genevolve_ray.engines.protocol import ChatImage, ChatMessage, ChatModel
from genevolve_ray.engines.vllm_settings import vllm_environment
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.judges.local_judge import LocalVlmJudge, LocalVlmJudgeConfig
from genevolve_ray.judges.vlm_judge import VlmJudgeConfig
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import SufficiencyBin

RUBRIC = "Grade it."


@pytest.fixture(scope="module")
def random_vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_vlm(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def taught_vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return teach(build_vlm(tmp_path_factory.mktemp("taught")))


def local(folder: str, **settings: Any) -> LocalVlmJudge:
    rubrics = {"kscore_rubric": f"{__name__}:RUBRIC", "sufficiency_rubric": f"{__name__}:RUBRIC", "max_tokens": 64}
    config = {"backend": "transformers", "model": {"model": folder, "threads": 1}, **rubrics, **settings}
    judge = PluginSpec(type="genevolve_ray.judges.local_judge:LocalVlmJudge", config=config).build()
    assert isinstance(judge, LocalVlmJudge)
    return judge


async def test_random_weights_give_an_infra_failure_and_no_score(random_vlm: str) -> None:
    with metered() as meter, pytest.raises(InfraFailure, match=r"returned no usable \w+ in 2 answers"):
        await judged(local(random_vlm, repairs=1))
    assert meter.by_service["judge"].calls >= 2


async def test_weights_that_answer_give_a_verdict(taught_vlm: str, tmp_path: Path) -> None:
    judge = local(taught_vlm, cache=str(tmp_path))
    with metered() as meter:
        verdict = await judged(judge)
        assert await judged(judge) == verdict
    assert {k: ANSWER[k] for k in verdict.image.model_dump()} == verdict.image.model_dump()
    assert verdict.text.score == 0.75
    assert (verdict.rationale, verdict.text_rationale, verdict.flags) == ("fine", "fine", ())
    assert verdict.judge == judge.identity
    used = meter.by_service["judge"]
    assert (used.calls, used.failed_calls, used.cached) == (2, 0, 1)
    assert used.completion_tokens == 2 * (len(ANSWER) + 4)


async def test_a_judge_without_its_cache_shares_the_loaded_model(taught_vlm: str, tmp_path: Path) -> None:
    judge = local(taught_vlm, cache=str(tmp_path))
    bare = judge.without_cache()
    assert bare.identity == judge.identity
    await judged(judge)
    with metered() as meter:
        await judged(bare)
    assert (meter.total.calls, meter.total.cached) == (2, 0)


async def looked(chat: ChatModel, *pictures: bytes) -> tuple[list[str], int]:
    """Return the words that a model says to pictures, and the tokens that it read."""
    parts = ("look", *(ChatImage(data, "image/png") for data in pictures))
    with metered() as meter:
        answer = await chat.chat([ChatMessage("user", parts)], max_tokens=8)
    return answer.split(), meter.total.prompt_tokens


async def test_the_model_looks_at_the_pictures(random_vlm: str) -> None:
    chat = TransformersChat(TransformersChat.Config(model=random_vlm, threads=1), "judge")
    (red, _), (blue, one), (_, two), (_, none) = [
        await looked(chat, *pictures) for pictures in ((IMAGE,), (png("blue", (40, 30)),), (IMAGE, TRUTH), ())
    ]
    assert red != blue
    assert none < one < two
    await chat.aclose()
    await chat.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        chat.check_health()


async def test_a_conversation_that_does_not_fit_is_an_infra_failure(tmp_path: Path) -> None:
    judge = local(build_vlm(tmp_path, context=40))
    with pytest.raises(InfraFailure, match="tokens, but the context holds 40"):
        await judge.judge(REQUEST, IMAGE, TRUTH, PROGRAM, [HIT])


def test_an_identity_names_the_model_and_not_its_place(random_vlm: str, taught_vlm: str) -> None:
    one = local(random_vlm)
    assert one.identity.startswith(f"local-judge/1:{Path(random_vlm).name}:float32:release-summary:")
    assert str(Path(random_vlm).parent) not in one.identity
    assert len({one.identity, local(taught_vlm).identity, local(random_vlm, max_tokens=65).identity}) == 3


@pytest.mark.e2e
async def test_vllm_judges_pictures_on_a_cpu(random_vlm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in vllm_environment().items():
        monkeypatch.setenv(name, value)  # Ends with the test.
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_mib": 64, "max_concurrent": 4}
    judge = local(random_vlm, backend="vllm", model={"model": random_vlm, **settings}, cache=str(tmp_path))
    try:
        verdict = await judged(judge)
        assert (verdict.rationale, verdict.text_rationale) == ("fine", "fine"), "the schemas allow nothing else"
        assert (verdict.image.visual_correctness, verdict.text.score) == (0.5, 0.75)
        looks = [await looked(judge._chat, *pictures) for pictures in ((IMAGE,), (png("blue"),), (IMAGE, TRUTH))]
    finally:
        await judge.aclose()
    other = TransformersChat(TransformersChat.Config(model=random_vlm, threads=1), "judge")
    plain = [await looked(other, *pictures) for pictures in ((IMAGE,), (png("blue"),), (IMAGE, TRUTH))]
    assert looks == plain, "the same pixels and the same tokens on both backends"
    await other.aclose()


def test_what_is_wrong_in_the_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        local("nowhere")
    with pytest.raises(ValueError, match="backend 'no_such_module:Chat' cannot be loaded"):
        local("x", backend="no_such_module:Chat")
    with pytest.raises(ValueError, match="tempo"):
        local("x", model={"model": "x", "tempo": 1})


class Blind:
    """A chat model of texts alone."""

    identity, sees = "blind", False

    def __init__(self, *_: Any) -> None:
        pass

    Config = VlmJudgeConfig


def test_a_model_that_does_not_see_is_refused() -> None:
    with pytest.raises(ValueError, match="blind is a text-only model"):
        LocalVlmJudge(LocalVlmJudgeConfig(backend=f"{__name__}:Blind", model={}))


class ScriptedChat:
    """Answer by what is asked, and keep the conversations."""

    identity = "scripted"

    def __init__(self) -> None:
        self.seen: list[list[ChatMessage]] = []

    async def chat(self, messages: Any, *, max_tokens: int, schema: Any = None) -> str:
        self.seen.append(list(messages))
        return json.dumps(BIN if "score" in schema["properties"] else KSCORE)

    def check_health(self) -> None: ...

    async def aclose(self) -> None: ...


async def test_in_bins_a_local_model_sees_the_target_too() -> None:
    chat = ScriptedChat()
    judge = LocalVlmJudge(LocalVlmJudgeConfig(model={"model": "none"}, sufficiency_form="bins"), chat)
    verdict = await judged(judge)
    assert verdict.text == SufficiencyBin(score=0.75)
    shown = [[part for part in messages[1].parts if isinstance(part, ChatImage)] for messages in chat.seen]
    assert sorted(len(pictures) for pictures in shown) == [1, 2]
