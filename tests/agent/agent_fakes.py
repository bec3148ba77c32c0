"""A scripted engine, small tokenizers with chat templates, and one small world of tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.engines.protocol import FinishReason, Generation, PromptImage, PromptTooLong, SamplingParams
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import SampleKey, Trajectory

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in text and not loop.last %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: 256 bytes, a few merges' worth of nothing, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<|endoftext|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


class ScriptedEngine:
    """Plays back turns; an item is text (closed by the end-of-turn token) or raw token ids. Honours max_tokens."""

    name = "scripted"
    version = 3

    def __init__(self, chat: ChatFormat, turns: Sequence[str | list[int]], context: int = 10**9) -> None:
        self.chat, self.turns, self.context = chat, list(turns), context
        self.calls: list[tuple[list[int], SamplingParams, str]] = []

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Generation:
        if len(token_ids) >= self.context:
            raise PromptTooLong(f"{len(token_ids)} tokens, context {self.context}")
        self.calls.append((list(token_ids), sampling, request_id))
        turn = self.turns[min(len(self.calls), len(self.turns)) - 1]
        if isinstance(turn, str):
            tokens = [*self.chat.tokenizer.encode(turn, add_special_tokens=False), self.chat.end_of_turn_id]
        else:
            tokens = list(turn)
        cut = tokens[: sampling.max_tokens]
        stopped = bool(cut) and cut[-1] in sampling.stop_token_ids
        return Generation(
            tokens=tuple(cut),
            logprobs=tuple(-0.5 - i for i in range(len(cut))),
            versions=(self.version,) * len(cut),
            finish=FinishReason.STOP if stopped else FinishReason.LENGTH,
        )

    async def update(self, folder: str, version: int, probe: Any = None) -> float:
        return 0.0

    async def score(self, token_ids: Sequence[int], media: Sequence[PromptImage] = ()) -> list[float]:
        return [0.0] * (len(token_ids) - 1)

    async def close(self) -> None:
        return None


def image_hit(title: str, url: str = "", data: bytes | None = None) -> ImageHit:
    """Return a hit whose content derives from the title unless given."""
    return ImageHit(title=title, url=url, image=reference(data or title.encode(), width=8, height=8))


def call(name: str, think: str = "look it up", **arguments: Any) -> str:
    """Return a tool-call turn."""
    return f"<think>{think}</think>\n<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def answer(prompt: str = "a heron like the first reference image", ids: Sequence[str] = ("IMG_001",)) -> str:
    """Return an answer turn."""
    program = {"gen_prompt": prompt, "reference_images": [{"img_id": i, "note": "looks"} for i in ids]}
    return f"<think>done</think>\n<answer>{json.dumps(program)}</answer>"


SEARCH_IMAGES = call("image_search", query="heron")


async def play(
    turns: Sequence[str | list[int]], profile: ProtocolProfile, tools: dict[str, Any], **options: Any
) -> Trajectory:
    """Run one episode of a scripted policy and check its ledger; options override the arguments of `run_episode`."""
    chat = options.pop("chat", None) or ChatFormat(byte_tokenizer(CHATML))
    engine = options.pop("engine", None) or ScriptedEngine(chat, turns)
    session = TokenSession(engine, chat, options.pop("sampling", SamplingParams()))
    arguments: dict[str, Any] = {
        "request": Request(id="r1", prompt="a heron at dawn", eval_type=EvalType.KNOWLEDGE),
        "key": SampleKey(step=2, request_id="r1", sample=1),
        "session": session,
        "seed": 7,
    } | options
    trajectory = await run_episode(arguments.pop("request"), profile=profile, tools=tools, **arguments)
    trajectory.ledger.check()
    return trajectory
