"""Scripted teacher of the world `small`: it plays whole episodes with the real tools, and errs at set rates.

It takes what the request says from the request, and every fact from the observations: like a policy, it does not see the
scene. Its errors are those that reinforcement learning can remove.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator as Script
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import ChatSession
from genevolve_ray.agent.profile import PROFILES, ProtocolProfile, prompt_messages
from genevolve_ray.engines.protocol import ChatReply, FinishReason, SamplingParams
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.published.rejections import DataError, RejectionReport
from genevolve_ray.records.published.requests import read_rl
from genevolve_ray.records.published.writers import agent_row
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory
from genevolve_ray.small.clues import Clue
from genevolve_ray.small.corpus import Progress
from genevolve_ray.small.notices import write_notices
from genevolve_ray.small.requests import Wish
from genevolve_ray.small.scene import SmallScene
from genevolve_ray.small.wording import counted, names_of
from genevolve_ray.tools.protocol import Tool

PROFILE = "small"
ROWS = {"train": 600, "validation": 60}
"""Rows of each part."""
_TEXT_HIT = re.compile(r"^\d+\. title: (.+?): (.+)\n  snippet: (.*)$", re.MULTILINE)
_PICTURE_HIT = re.compile(r"^(IMG_\d+): title: (.+)$", re.MULTILINE)
_FACTS = {
    "internet": ("internet country code {}", "Internet country code", re.compile(r"\.([a-z]{2})\b")),
    "currency": ("currency {}", "Currency", re.compile(r"\(([A-Z]{3})\)")),
}
"""Query, section, and form of each fact that a caption may be."""


class SmallTeacherConfig(Config):
    """Configure the errors of the teacher: the probability of each in an episode where it can happen."""

    skip_search: float = Field(default=0.08, ge=0, le=1)
    """Searches for the flag in the words of the clue, without finding out the country."""
    wrong_picture: float = Field(default=0.12, ge=0, le=1)
    """Takes another picture of the results than the one with the right title."""
    wrong_count: float = Field(default=0.12, ge=0, le=1)
    """Asks for another number of subjects."""
    forget_caption: float = Field(default=0.15, ge=0, le=1)
    """Leaves the caption out of the prompt."""
    forget_style: float = Field(default=0.25, ge=0, le=1)
    """Leaves black and white out of the prompt."""
    poor_prompt: float = Field(default=0.1, ge=0, le=1)
    """Writes only the subject and the reference, without number, background, caption and style."""


class Slips(Record):
    """Hold the errors of one episode."""

    skip_search: bool = False
    wrong_picture: bool = False
    wrong_count: bool = False
    forget_caption: bool = False
    forget_style: bool = False
    poor_prompt: bool = False


def draw_slips(config: SmallTeacherConfig, rng: random.Random) -> Slips:
    """Return the errors of an episode, each drawn by its rate."""
    return Slips(**{name: rng.random() < getattr(config, name) for name in Slips.model_fields})


class ScriptedPolicy:
    """Play one episode behind the protocol of a chat endpoint: it reads messages and writes the next turn."""

    name = "small-teacher"

    def __init__(self, wish: Wish, slips: Slips, rng: random.Random) -> None:
        """Prepare one episode; `rng` chooses among wrong pictures and wrong counts."""
        self._wish, self._slips, self._rng = wish, slips, rng
        self._script = self._play()
        next(self._script)

    async def reply(self, messages: Sequence[dict[str, Any]], sampling: SamplingParams) -> ChatReply:
        """Return the next turn."""
        return ChatReply(text=self._script.send(str(messages[-1]["content"])), finish=FinishReason.STOP)

    def _play(self) -> Script[str, str, None]:
        """Run the episode as a coroutine: it yields turns and receives the last message."""
        wish, think = self._wish, ""
        yield ""
        country, caption = wish.country, wish.caption
        if wish.clue is not None and not self._slips.skip_search:
            seen = yield _call(think, "search", queries=[wish.clue.query])
            country = _country(seen, wish.clue)
            think = f"It is {country}."
        if wish.fact and country:
            query, section, form = _FACTS[wish.fact]
            seen = yield _call(think, "search", queries=[query.format(country)])
            caption = _fact(seen, country, section, form)
            think = f"The code is {caption}."
        subject = names_of(SmallScene(subject=wish.subject))[0]
        described = f"the country {wish.clue.words}" if wish.clue is not None else ""
        wanted = subject if wish.color else f"flag of {country or described}"
        seen = yield _call(think, "image_search", query=wanted)
        taken = self._take(_PICTURE_HIT.findall(seen), wanted)
        program = {
            "gen_prompt": self._prompt(caption),
            "reference_images": [{"img_id": taken, "note": subject if wish.color else "flag"}],
        }
        yield f"<think>Take {taken}.</think>\n<answer>{json.dumps(program)}</answer>"

    def _take(self, hits: Sequence[tuple[str, str]], wanted: str) -> str:
        """Return the id of the picture whose title is what was asked for, the first one where none is."""
        if not hits:
            return "IMG_001"
        right = next((id for id, title in hits if _words(title.split(" (")[0]) == _words(wanted)), hits[0][0])
        others = [id for id, _ in hits if id != right]
        return self._rng.choice(others) if self._slips.wrong_picture and others else right

    def _prompt(self, caption: str) -> str:
        """Return the prompt of the program, with the errors of this episode."""
        wish, slips = self._wish, self._slips
        singular, plural = names_of(SmallScene(subject=wish.subject))
        count = wish.count
        if slips.wrong_count:
            count = self._rng.choice([other for other in range(1, 5) if other != count])
        if slips.poor_prompt:
            shown = f"{counted(singular, plural, 1)} from" if wish.color else f"{counted(singular, plural, 1)} and"
            return f"{shown[0].upper()}{shown[1:]} the first reference image."
        shown = counted(singular, plural, count)
        if wish.color:
            text = f"{shown} from the first reference image on {counted(wish.color, '', 1)} background"
        else:
            text = f"{shown} in front of the flag from the first reference image"
        if caption and not slips.forget_caption:
            text += f", with the letters {caption} below"
        if wish.gray and not slips.forget_style:
            text += ", in black and white"
        return f"{text[0].upper()}{text[1:]}."


async def play_small(
    request: Request, tools: Mapping[str, Tool], slips: Slips, seed: int, profile: ProtocolProfile = PROFILES[PROFILE]
) -> Trajectory:
    """Let the teacher play one request through the real episode loop.

    Raises:
        KeyError: for a request without `wish` in its `meta`.
    """
    policy = ScriptedPolicy(Wish.model_validate(request.meta["wish"]), slips, random.Random(seed))
    return await run_episode(
        request,
        key=SampleKey(step=0, request_id=request.id, sample=0),
        session=ChatSession(policy, SamplingParams()),
        tools=tools,
        profile=profile,
        seed=seed,
        split="data",
    )


async def write_rows(
    requests: Path,
    tools: Mapping[str, Tool],
    out: Path,
    *,
    config: SmallTeacherConfig | None = None,
    seed: int = 1,
    sizes: Mapping[str, int] = ROWS,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Play the first requests of each part, and write the conversations as `PART.jsonl` for `genevolve sft`.

    Args:
        requests: the folder that `small.requests.write_requests` wrote.
        tools: those of a run, over the corpus.
        out: the folder of the rows.
        config: rates of the errors.
        seed: of the errors.
        sizes: rows of each part.
        progress: told after each episode.

    Returns:
        The number of rows written, by part. An episode without a valid program leaves none.

    Raises:
        DataError: when a part has too few requests.
        OSError: when a file cannot be written.
    """
    config, done, total, written = config or SmallTeacherConfig(), 0, sum(sizes.values()), {}
    for part, size in sizes.items():
        rows = list(read_rl([requests / f"{part}.jsonl"], RejectionReport()))
        if len(rows) < size:
            raise DataError(f"{requests / part}.jsonl has {len(rows)} requests, {size} are wanted")
        lines = []
        for request in (row.request() for row in rows[:size]):
            slips = draw_slips(config, random.Random(derive_seed(seed, "slips", request.id)))
            played = await play_small(request, tools, slips, derive_seed(seed, "teacher", request.id))
            if played.outcome is Outcome.PENDING:
                lines.append(json.dumps(sft_row(request, played, tools)))
            done += 1
            if progress is not None:
                progress("rows", done, total)
        write_bytes(out / f"{part}.jsonl", "".join(f"{line}\n" for line in lines).encode())
        written[part] = len(lines)
    write_notices(out, "rows")
    return written


def sft_row(request: Request, played: Trajectory, tools: Mapping[str, Tool]) -> dict[str, Any]:
    """Return an episode as a row of `genevolve sft`: what the policy read and wrote, under the system prompt of `small`."""
    opening = prompt_messages(request.prompt, PROFILES[PROFILE], tools)
    return {"id": f"sft-{request.id}", "messages": agent_row({}, played, opening=opening)["messages"], "images": []}


def _country(seen: str, clue: Clue) -> str:
    """Return the country whose result states a clue, and the least besides; the first one where none does, else ""."""
    hits = _TEXT_HIT.findall(seen)
    words = clue.value.lower().split()
    stating = [hit for hit in hits if hit[1] == clue.section and all(word in hit[2].lower() for word in words)]
    return min(stating or hits[:1], key=lambda hit: len(hit[2]), default=("",))[0]


def _fact(seen: str, country: str, section: str, form: re.Pattern[str]) -> str:
    """Return the letters that a country's result of a section states, "" where there is none."""
    for name, title, snippet in _TEXT_HIT.findall(seen):
        if title == section and _words(name) == _words(country) and (found := form.search(snippet)):
            return found[1].upper()
    return ""


def _words(text: str) -> str:
    """Return a name as titles of texts spell it."""
    return text.lower().replace("-", " ")


def _call(think: str, tool: str, **arguments: object) -> str:
    said = f"<think>{think}</think>\n" if think else ""
    return f"{said}<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"
