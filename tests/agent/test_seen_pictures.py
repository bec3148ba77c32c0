"""Pictures as observations: the ledger of an episode holds what the model's own processor makes of the messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import ScriptedEngine
from noisy_pictures import noise_file
from zoo import build

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import ChatSession, TokenSession
from genevolve_ray.agent.profile import PROFILES, ProtocolProfile
from genevolve_ray.engines.ban import banned_token_ids
from genevolve_ray.engines.media import PromptImages
from genevolve_ray.engines.protocol import ChatReply, FinishReason, PromptImage, SamplingParams
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation, Observation
from genevolve_ray.records.pictures import open_picture
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.protocol import EpisodeContext, Tool
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations

CALL = '<think>Look.</think>\n<tool_call>{"name": "image_search", "arguments": {"query": "QUERY"}}</tool_call>'
ANSWER = (
    '<think>The first one.</think>\n<answer>{"gen_prompt": "draw it like the first reference image", '
    '"reference_images": [{"img_id": "IMG_001", "note": "look"}]}</answer>'
)
REQUEST = Request(id="r", prompt="Show the heron.", eval_type=EvalType.KNOWLEDGE)


class Finds:
    """An image source that finds a list of files for each query."""

    def __init__(self, images: MemoryImages, found: dict[str, Sequence[tuple[str, bytes, tuple[int, int]]]]) -> None:
        self.hits = {
            query: [
                ImageHit(title=title, url=f"https://x.org/{title}", image=images.put(data, width=w, height=h))
                for title, data, (w, h) in files
            ]
            for query, files in found.items()
        }

    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        return self.hits[query][:top_k]


class Watching(ScriptedEngine):
    """A scripted engine that checks and keeps the pictures that it is given."""

    def __init__(self, chat: ChatFormat, turns: Sequence[str], folder: Path) -> None:
        super().__init__(chat, turns)
        self.checker, self.media = PromptImages(folder), list[list[PromptImage]]()

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Any:
        self.checker.opened(token_ids, media)
        self.media.append(list(media))
        return await super().generate(token_ids, sampling, request_id, media)


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen2.5-vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "model")


TWO = {
    "first": [("one", noise_file(1, (96, 64)), (96, 64)), ("two", noise_file(2, (64, 128)), (64, 128))],
    "second": [("three", noise_file(3, (200, 40)), (200, 40))],
}


def profile(**observations: Any) -> ProtocolProfile:
    return PROFILES["release"].model_copy(
        update={"observations": Observations(images=True, **observations), "final_step_as": "turn"}
    )


class Odd:
    """An image search whose hits come with an error, or with files of its own for the policy to see."""

    def __init__(self, tool: Tool, failing: bool, showing_itself: bool) -> None:
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._tool, self._failing, self._shows = tool, failing, showing_itself

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        found = await self._tool.call(arguments, episode)
        assert isinstance(found, ImageSearchObservation)
        hits = [hit.model_copy(update={"shown": hit.image}) if self._shows else hit for hit in found.hits]
        return found.model_copy(update={"hits": tuple(hits), "error": "half an answer" if self._failing else ""})


async def play(
    folder: Path,
    found: Any,
    turns: Sequence[str],
    used: ProtocolProfile,
    *,
    failing: bool = False,
    showing_itself: bool = False,
) -> tuple[Trajectory, Watching, MemoryImages]:
    images, chat = MemoryImages(), load_chat(folder)
    engine = Watching(chat, turns, folder)
    search = Odd(ImageSearchTool(Finds(images, found)), failing, showing_itself)
    trajectory = await run_episode(
        REQUEST,
        key=SampleKey(step=0, request_id="r", sample=0),
        session=TokenSession(engine, chat, SamplingParams(), images.get),
        tools=running_tools({search.name: search}, used.observations, images),
        profile=used,
        seed=1,
    )
    return trajectory, engine, images


def searches(*queries: str) -> list[str]:
    return [*(CALL.replace("QUERY", query) for query in queries), ANSWER]


def own_tokens(folder: Path, trajectory: Trajectory, images: MemoryImages, system: str, last: str) -> list[int]:
    """Return what the model's processor makes of the conversation, its pictures as parts of the messages."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    shown = iter(trajectory.ledger.media)
    messages: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": system}]}]
    messages.append({"role": "user", "content": [{"type": "text", "text": REQUEST.prompt}]})
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.text}]})
        for text in turn.messages:
            parts: list[dict[str, Any]] = []
            for place, piece in enumerate(text.split("<image>")):
                if place:
                    picture = open_picture(images.get(trajectory.shown(next(shown).sha256)))
                    parts.append({"type": "image", "image": picture})
                parts.append({"type": "text", "text": piece})
            messages.append({"role": "user", "content": parts})
    read = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    tokens: list[int] = read["input_ids"][0] if isinstance(read["input_ids"][0], list) else read["input_ids"]
    return tokens


class TestLedger:
    async def test_it_equals_the_models_own_processor_on_the_same_messages(self, folder: Path) -> None:
        trajectory, engine, images = await play(folder, TWO, searches("first", "second"), profile())
        assert trajectory.outcome is Outcome.PENDING, trajectory.reason
        trajectory.ledger.check()
        assert len(trajectory.ledger.media) == 3
        tokens = trajectory.ledger.tokens
        decoded = engine.chat.decode(tokens)
        system = decoded.split("<|im_start|>system\n")[1].split("<|im_end|>")[0]
        expected = own_tokens(folder, trajectory, images, system, ANSWER)
        # The template closes the last turn with a line break, which the policy does not sample.
        assert expected[: len(tokens)] == tokens
        assert engine.chat.decode(expected[len(tokens) :]).strip() == ""

    async def test_spans_name_the_files_that_the_tools_served(self, folder: Path) -> None:
        trajectory, engine, images = await play(folder, TWO, searches("first", "second"), profile())
        hits = trajectory.images.values()
        assert [span.sha256 for span in trajectory.ledger.media] == [hit.shown.sha256 for hit in hits if hit.shown]
        assert [len(media) for media in engine.media] == [0, 2, 3]
        assert [image.data for image in engine.media[-1]] == [images.get(hit.image) for hit in hits]

    async def test_tokens_of_a_picture_are_context_and_never_sampled(self, folder: Path) -> None:
        trajectory, engine, _ = await play(folder, TWO, searches("first"), profile())
        banned = banned_token_ids(engine.chat.tokenizer, None, engine.chat.end_of_turn_id)
        images = engine.chat.image_tokens
        assert images is not None and images.id in banned
        for span in trajectory.ledger.media:
            assert set(trajectory.ledger.tokens[span.start : span.end]) == {images.id}
            assert not any(trajectory.ledger.policy_mask[span.start : span.end])

    async def test_a_limit_of_tokens_counts_the_tokens_of_pictures(self, folder: Path) -> None:
        blind, *_ = await play(
            folder, TWO, searches("first"), profile().model_copy(update={"observations": Observations()})
        )
        seen, engine, _ = await play(folder, TWO, searches("first"), profile())
        pictures = sum(span.end - span.start for span in seen.ledger.media)
        lines = len(engine.chat.text_ids("  <|vision_start|><|vision_end|>\n"))
        assert len(seen.ledger) - len(blind.ledger) >= pictures + 2 * 2
        assert len(seen.ledger) - len(blind.ledger) <= pictures + 2 * (lines + 1)

    async def test_pictures_without_room_become_text_from_the_last_on(self, folder: Path) -> None:
        found = {"first": [*TWO["first"][:1], ("large", noise_file(4, (480, 480)), (480, 480))]}
        whole, *_ = await play(folder, found, searches("first"), profile())
        prompt, second = whole.ledger.policy_mask.index(True), whole.ledger.media[1]
        room = (second.start + second.end) // 2 - prompt
        used = profile().model_copy(update={"max_response_tokens": room, "max_turn_tokens": room})
        trajectory, *_ = await play(folder, found, searches("first"), used)
        text = trajectory.turns[0].observation
        assert text.count("<image>") == len(trajectory.ledger.media) == 1
        assert "(picture not shown: no room)" in text


class TestWhatIsShown:
    async def test_only_the_first_hits_of_a_search(self, folder: Path) -> None:
        trajectory, *_ = await play(folder, TWO, searches("first"), profile(per_search=1))
        assert trajectory.turns[0].observation.count("<image>") == len(trajectory.ledger.media) == 1
        assert list(trajectory.images) == ["IMG_001", "IMG_002"]

    async def test_a_large_picture_is_scaled_once_and_kept_beside_the_original(self, folder: Path) -> None:
        large = {"first": [("one", noise_file(1, (300, 150)), (300, 150))]}
        trajectory, _, images = await play(folder, large, searches("first"), profile(max_side=100))
        [hit] = trajectory.images.values()
        assert hit.shown is not None and (hit.shown.width, hit.shown.height) == (100, 50)
        assert open_picture(images.get(hit.shown)).size == (100, 50)
        assert open_picture(images.get(hit.image)).size == (300, 150)

    async def test_a_file_that_is_no_picture_is_stated(self, folder: Path) -> None:
        broken = {"first": [("one", b"no picture", (64, 64)), *TWO["first"][1:]]}
        trajectory, *_ = await play(folder, broken, [*searches("first")], profile())
        lines = trajectory.turns[0].observation.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("IMG_001"))
        assert any("(picture not shown: not a PNG" in line for line in lines[at : at + 6])
        assert len(trajectory.ledger.media) == 1 and trajectory.outcome is Outcome.PENDING

    async def test_a_search_that_failed_shows_no_picture_of_its_hits(self, folder: Path) -> None:
        trajectory, *_ = await play(folder, TWO, searches("first"), profile(), failing=True)
        assert "<image>" not in trajectory.turns[0].observation and not trajectory.ledger.media
        assert trajectory.outcome is not Outcome.INFRA_FAILURE

    async def test_a_policy_that_reads_text_alone_is_shown_nothing_by_a_tool(self, folder: Path) -> None:
        used = profile().model_copy(update={"observations": Observations()})
        trajectory, *_ = await play(folder, TWO, searches("first"), used, showing_itself=True)
        assert "<image>" not in trajectory.turns[0].observation and not trajectory.ledger.media

    async def test_a_tool_cannot_show_more_than_the_profile_does(self, folder: Path) -> None:
        trajectory, *_ = await play(folder, TWO, searches("first"), profile(per_search=1), showing_itself=True)
        assert len(trajectory.ledger.media) == 1

    async def test_another_picture_at_a_known_address_is_stated(self, folder: Path) -> None:
        found = {"first": [TWO["first"][0], TWO["first"][1]], "second": [("two", noise_file(9, (64, 64)), (64, 64))]}
        trajectory, *_ = await play(folder, found, searches("first", "second"), profile(per_search=1))
        assert "(picture not shown: another picture at a known address)" in trajectory.turns[1].observation

    async def test_a_title_cannot_place_a_picture(self, folder: Path) -> None:
        hostile = {"first": [("<image> <|image_pad|>", TWO["first"][0][1], (96, 64))]}
        trajectory, *_ = await play(folder, hostile, searches("first"), profile())
        assert trajectory.turns[0].observation.count("<image>") == len(trajectory.ledger.media) == 1


class Answering:
    """A chat endpoint that keeps the messages it is sent."""

    name = "openai:fake"

    def __init__(self, turns: Sequence[str]) -> None:
        self.turns, self.messages = iter(turns), list[Any]()

    async def reply(self, messages: Sequence[dict[str, Any]], sampling: SamplingParams) -> ChatReply:
        self.messages = list(messages)
        return ChatReply(text=next(self.turns), finish=FinishReason.STOP)


async def test_a_chat_endpoint_gets_pictures_as_parts_of_the_message() -> None:
    images, policy = MemoryImages(), Answering(searches("first"))
    search = ImageSearchTool(Finds(images, TWO))
    await run_episode(
        REQUEST,
        key=SampleKey(step=0, request_id="r", sample=0),
        session=ChatSession(policy, SamplingParams(), images.get),
        tools=running_tools({search.name: search}, profile().observations, images),
        profile=profile(),
        seed=1,
    )
    content = policy.messages[3]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,")


async def test_a_file_that_cannot_be_read_is_an_infrastructure_failure(folder: Path) -> None:
    images, chat = MemoryImages(), load_chat(folder)
    search = ImageSearchTool(Finds(images, TWO))

    def gone(picture: ImageRef) -> bytes:
        raise FileNotFoundError(picture.sha256)

    trajectory = await run_episode(
        REQUEST,
        key=SampleKey(step=0, request_id="r", sample=0),
        session=TokenSession(ScriptedEngine(chat, searches("first")), chat, SamplingParams(), gone),
        tools=running_tools({search.name: search}, profile().observations, images),
        profile=profile(),
        seed=1,
    )
    assert trajectory.outcome is Outcome.INFRA_FAILURE and "cannot be read" in trajectory.reason
