"""What a listener of an episode hears, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_fakes import CHATML, OPENING, SEARCH_IMAGES, ScriptedEngine, answer, byte_tokenizer, call, play

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.observer import EpisodeObserver
from genevolve_ray.agent.parser import ToolCall
from genevolve_ray.agent.policy_session import TextPieces
from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.engines.protocol import Generation, OnTokens, PromptImage, SamplingParams
from genevolve_ray.records.observation import ImageHit, Observation
from genevolve_ray.records.trajectory import Outcome, Turn, TurnKind

PROFILE = PROFILES["atlas"].model_copy(update={"max_turn_tokens": 1000, "max_response_tokens": 9000})
CHAT = ChatFormat(byte_tokenizer(CHATML))


class Listener(EpisodeObserver):
    """Records what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def turn_began(self, turn: int) -> None:
        self.heard.append(("began", turn))

    def text_sampled(self, piece: str) -> None:
        if self.heard[-1][0] == "text":
            piece = self.heard.pop()[1] + piece
        self.heard.append(("text", piece))

    def turn_sampled(self, text: str) -> None:
        self.heard.append(("sampled", text))

    def tool_answered(self, call: ToolCall, observation: Observation, hits: Sequence[tuple[str, ImageHit]]) -> None:
        self.heard.append(("answered", (call.name, [name for name, _ in hits])))

    def turn_ended(self, turn: Turn) -> None:
        self.heard.append(("ended", (turn.kind, turn.error)))


class Streaming(ScriptedEngine):
    """Plays back turns token by token."""

    streams = True

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        media: Sequence[PromptImage] = (),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        made = await super().generate(token_ids, sampling, request_id, media)
        for token in made.tokens if on_tokens else ():
            on_tokens((token,))
        return made


async def test_a_listener_hears_every_turn_in_order(tools: dict[str, Any]) -> None:
    listener = Listener()
    await play([SEARCH_IMAGES, answer()], PROFILE, tools, chat=CHAT, observer=listener)
    assert listener.heard == [
        ("began", 0),
        ("sampled", SEARCH_IMAGES),
        ("answered", ("image_search", ["IMG_001", "IMG_002"])),
        ("ended", (TurnKind.TOOL_CALL, "")),
        ("began", 1),
        ("sampled", answer()),
        ("ended", (TurnKind.ANSWER, "")),
    ]


async def test_an_engine_that_streams_tells_the_text_before_the_turn_ends(tools: dict[str, Any]) -> None:
    listener, said = Listener(), answer("ein Reiher wie im first reference image, größer 🪿")
    engine = Streaming(CHAT, [SEARCH_IMAGES, said])
    await play([], PROFILE, tools, chat=CHAT, engine=engine, observer=listener)
    told = [value for kind, value in listener.heard if kind == "text"]
    assert told == [value for kind, value in listener.heard if kind == "sampled"] == [SEARCH_IMAGES, said]


async def test_a_listener_changes_nothing(tools: dict[str, Any]) -> None:
    turns = [SEARCH_IMAGES, "oops", call("nothing"), answer()]
    alone = await play(turns, PROFILE, tools, chat=CHAT, engine=Streaming(CHAT, turns))
    heard = await play(turns, PROFILE, tools, chat=CHAT, engine=Streaming(CHAT, turns), observer=Listener())
    assert heard.ledger.tokens == alone.ledger.tokens and heard.ledger.logprobs == alone.ledger.logprobs
    assert (heard.program, heard.outcome) == (alone.program, Outcome.PENDING)


async def test_broken_turns_and_unusable_answers_are_heard_with_their_reason(tools: dict[str, Any]) -> None:
    listener = Listener()
    await play(["oops", SEARCH_IMAGES, answer(ids=("IMG_009",))], PROFILE, tools, chat=CHAT, observer=listener)
    ended = [value for kind, value in listener.heard if kind == "ended"]
    assert ended[0] == (TurnKind.FORMAT_ERROR, "no complete <tool_call> or <answer>")
    assert ended[2][0] is TurnKind.ANSWER and "IMG_009" in ended[2][1]


def test_pieces_hold_whole_characters_and_the_prefix_of_the_template() -> None:
    chat, heard = ChatFormat(byte_tokenizer(OPENING)), []
    pieces = TextPieces(chat, heard.append)
    for token in [*chat.text_ids("größer 🪿"), chat.end_of_turn_id]:
        pieces([token])
    assert heard[0] == chat.thinking_prefix and heard[1:] == list("größer 🪿")
