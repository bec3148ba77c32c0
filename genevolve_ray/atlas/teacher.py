"""Scripted teacher of the cold start: it plays the whole protocol and makes errors at set rates."""

from __future__ import annotations

import json
import re
from collections.abc import Generator as Script
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.habits import (
    ORDER,
    REFERENCE,
    WORDINGS,
    HabitsConfig,
    preferred_wordings,
    structures_of,
    worded,
)
from genevolve_ray.atlas.pixels import recognise
from genevolve_ray.atlas.scene import COUNT_WORDS, SIGHT_SOURCES, SKILLS, SOURCES, Part, Truth
from genevolve_ray.atlas.tokenizer import VISION
from genevolve_ray.engines.protocol import FinishReason, Generation, PromptImage, SamplingParams
from genevolve_ray.records.base import Config, Record
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.program import ORDINALS

_OBSERVATION = "<tool_response>"
_LOOK = re.compile(r"look of (\w+) (now|once) (\w+ \w+ \w+)\.")
_LOOK_WORDS = 3
_WHEN = {"described": "now", "outdated": "once"}
"""The word in texts about a picture to take; none is about the other wrong picture."""
_SHOWN = re.compile(rf"(IMG_\d+): title: [^\n]*\n(?:  \w+: [^\n]*\n)*  {re.escape(VISION[0])}")
"""An entry of an image search whose picture the policy sees."""

MAX_SKILLS = 5
"""Maximum number of skills read: with a search and two image searches they fill the eight calls of the atlas
profile.
"""


class TeacherConfig(Config):
    """Configure the errors of the teacher: probabilities of its decisions when nothing in the context states them."""

    skill_recall: float = Field(default=0.5, ge=0, le=1)
    """Probability of reading a skill that the request needs."""
    needless_skill: float = Field(default=0.05, ge=0, le=1)
    """Probability of reading a skill that the request does not need."""
    search: float = Field(default=0.9, ge=0, le=1)
    """Probability of searching when a fact must be found."""
    official: float = Field(default=0.55, ge=0, le=1)
    """Probability of taking the right picture (the official or the described one); the two wrong ones share the rest."""
    current: float = Field(default=0.6, ge=0, le=1)
    """Probability of believing the present value rather than the past one."""
    slip: float = Field(default=0.04, ge=0, le=1)
    """Probability of failing to apply a skill that was read."""


class Decisions(Record):
    """Hold all decisions of the teacher about one request; `applied` are the skills whose structure it writes."""

    skills: tuple[str, ...]
    search: bool
    source: str
    current: bool
    applied: tuple[str, ...]
    wordings: dict[str, str] = Field(default_factory=dict)
    """Names of the wordings by structure (`atlas/habits.py`), where they are a decision; by default the first ones."""

    def wording(self, structure: str) -> str:
        """Return the name of the wording of a structure."""
        return self.wordings.get(structure) or next(iter(WORDINGS[structure]))


def decide(truth: Truth, rng: np.random.Generator, config: TeacherConfig, *, wordings: bool = False) -> Decisions:
    """Draw the decisions of the imperfect teacher; with `wordings` also those, each with equal probability."""
    needed = truth.scene.demands()
    read = tuple(s for s in SKILLS if rng.random() < (config.skill_recall if s in needed else config.needless_skill))
    read = read[:MAX_SKILLS]
    source = truth.sources[0] if rng.random() < config.official else str(rng.choice(truth.sources[1:]))
    decisions = Decisions(
        skills=read,
        search=_asks(truth) and bool(rng.random() < config.search),
        source=source,
        current=bool(rng.random() < config.current),
        applied=tuple(s for s in read if s in needed and rng.random() >= config.slip),
    )
    if not wordings:
        return decisions
    drawn = {s: str(rng.choice(list(WORDINGS[s]))) for s in _worded(truth, decisions.applied)}
    return decisions.model_copy(update={"wordings": drawn})


def _worded(truth: Truth, applied: Sequence[str]) -> tuple[str, ...]:
    """Return the structures that a program words, where it applies these skills."""
    return tuple(s for s in structures_of(truth.scene) if s == REFERENCE or s in applied)


def _asks(truth: Truth) -> bool:
    """Return whether the corpus holds something that the request needs."""
    return truth.fact_count or truth.fact_text or truth.sight


def ideal(truth: Truth, habits: HabitsConfig | None = None) -> Decisions:
    """Return the decisions that earn the full reward, of a generator with these habits."""
    needed = truth.scene.demands()
    return Decisions(
        skills=needed,
        search=_asks(truth),
        source=truth.sources[0],
        current=True,
        applied=needed,
        wordings={} if habits is None else preferred_wordings(habits, truth.scene),
    )


def misleading(truth: Truth, rng: np.random.Generator, habits: HabitsConfig | None = None) -> Decisions:
    """Return decisions that are wrong throughout: needless skills, a wrong picture, outdated facts, other wordings."""
    needed = truth.scene.demands()
    wrong = tuple(s for s in SKILLS if s not in needed)
    picked = set(rng.choice(wrong, size=min(2, len(wrong)), replace=False))
    return Decisions(
        skills=tuple(s for s in SKILLS if s in picked),
        search=_asks(truth),
        source=str(rng.choice(truth.sources[1:])),
        current=False,
        applied=(),
        wordings={} if habits is None else _others(preferred_wordings(habits, truth.scene), rng),
    )


def _others(wordings: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Return other wordings than these."""
    return {s: str(rng.choice([name for name in WORDINGS[s] if name != said])) for s, said in wordings.items()}


def as_experience(decisions: Decisions) -> Experience:
    """State decisions as an experience bundle: behavior only, no names, ids, counts or texts of the request."""
    return Experience(
        guidance={
            "search_strategy": ("search facts" if decisions.search else "skip facts",),
            "knowledge_activation": tuple(f"read {s}" for s in decisions.skills) or ("read nothing",),
            "reference_selection": (f"take {decisions.source}",),
            "prompt_construction": (
                "write now" if decisions.current else "write once",
                *(f"say {name}" for name in decisions.wordings.values()),
            ),
        }
    )


GENERIC = {
    preset: as_experience(
        Decisions(skills=("attribute_binding",), search=True, source=source, current=True, applied=())
    )
    for preset, source in (("atlas", SOURCES[0]), ("atlas-sight", SIGHT_SOURCES[0]), ("atlas-long", SOURCES[0]))
}
"""One bundle for every request of a preset: the decisions that are most often right in its world (see docs/log.md)."""


class Teacher:
    """Play one episode: read each observation as text and write the next turn as text."""

    def __init__(self, truth: Truth, decisions: Decisions) -> None:
        """Prepare one episode."""
        self._truth, self._scene, self._plan = truth, truth.scene, decisions
        self._facts: dict[str, str] = {}
        self._looks: dict[str, dict[str, str]] = {}
        self._picked: dict[str, str] = {}
        self._seen: Sequence[bytes] = ()
        self._script = self._play()
        next(self._script)

    def turn(self, observation: str, pictures: Sequence[bytes] = ()) -> str:
        """Return the next turn, given the observation since the last one ("" at the start) and its pictures."""
        self._seen = pictures
        return self._script.send(observation)

    def _play(self) -> Script[str, str, None]:
        """Run the episode as a coroutine: it yields turns and receives observations."""
        plan, subject = self._plan, self._scene.parts[0].name
        yield ""
        think = f"Plan: {', '.join([*(['facts'] if plan.search else []), *plan.skills, 'draw'])}."
        if plan.search:
            topics = [t for t, asked in (("moon", self._truth.fact_count), ("motto", self._truth.fact_text)) if asked]
            looks = [f"look of {part.name}" for part in self._scene.parts if part.found and self._truth.sight]
            seen = yield _call(think, "search", queries=[*looks, *(f"{t} of {subject}" for t in topics)])
            self._read_looks(seen)
            notes = self._note_looks() + self._note_facts(seen, topics, subject)
            think = ", ".join(notes) + "." if notes else "Go on."
        for part in self._scene.parts:
            if part.found:
                seen = yield _call(think, "image_search", query=f"look of {part.name}")
                think = self._note_picture(seen, part.name)
        for skill in plan.skills:
            yield _call(think, "query_knowledge", skill_name=skill)
            think = "Go on."
        yield f"<think>{think}</think>\n<answer>{json.dumps(self._program())}</answer>"

    def _note_facts(self, seen: str, topics: list[str], name: str) -> list[str]:
        when, notes = "now" if self._plan.current else "once", []
        for topic in topics:
            if found := re.search(rf"{topic} of {name} {when} '?(\w+)'?\.", seen):
                self._facts[topic] = found.group(1)
                notes.append(found.group(0).rstrip("."))
        return notes

    def _read_looks(self, seen: str) -> None:
        for name, when, words in _LOOK.findall(seen):
            self._looks.setdefault(name, {})[when] = words

    def _look(self, name: str) -> str | None:
        """Return the text about the picture to take, where one was read."""
        when = _WHEN.get(self._plan.source, "")
        words = self._looks.get(name, {}).get(when)
        return f"look of {name} {when} {words}" if words else None

    def _note_looks(self) -> list[str]:
        """Repeat what was read while it is near: later the choice among pictures repeats this note."""
        return [note for part in self._scene.parts if part.found and (note := self._look(part.name))]

    def _note_picture(self, seen: str, name: str) -> str:
        if self._truth.sight:
            return self._look_for(seen, name)
        titled = re.search(rf"(IMG_\d+): title: {self._plan.source} picture of {name}\n", seen)
        img_id = titled.group(1) if titled else re.findall(r"IMG_\d+", seen)[0]
        self._picked[name] = img_id
        return f"Take {self._plan.source} {img_id}."

    def _look_for(self, seen: str, name: str) -> str:
        """Take the picture of a subject that looks as the decision says, by its pixels."""
        ids = _SHOWN.findall(seen)
        shown = {found.words: i for i, data in zip(ids, self._seen, strict=True) if (found := recognise(data))}
        # First it says what each picture shows: to name one is easier to learn than to find one by its look.
        think = ", ".join(f"{img_id} {words} {img_id}" for words, img_id in shown.items())
        known = self._looks.get(name, {})
        source, said = self._plan.source, self._look(name)
        other = next((words for words in shown if words not in known.values()), "")
        words = " ".join(said.split()[-_LOOK_WORDS:]) if said else other
        if not known or words not in shown:  # Nothing was read about it: any picture will do.
            self._picked[name] = re.findall(r"IMG_\d+", seen)[0]
            return f"{think}. Take any {self._picked[name]}."
        self._picked[name] = shown[words]
        return f"{think}. Take {source} {said or words} {shown[words]}."

    def _program(self) -> dict[str, object]:
        scene, applied = self._scene, self._plan.applied
        ids = sorted(set(self._picked.values()))
        parts = [self._part(part, ids) for part in scene.parts]
        things = parts if ORDER in applied else [" and ".join(parts)]
        clauses = []
        text = self._facts.get("motto") if self._truth.fact_text else scene.text
        if text:
            place = self._worded("text_rendering")
            clauses.append(f"the text '{text}' {place}" if place else f"saying '{text}'")
        if scene.mood:
            clauses.append(_spaced(scene.mood, self._worded("aesthetic_drawing")))
        if scene.medium:
            clauses.append(_spaced(scene.medium, self._worded("creative_drawing")))
        clauses = [*clauses, *things] if self._plan.wording(ORDER) == "things last" else [*things, *clauses]
        note = {img_id: name for name, img_id in self._picked.items()}
        references = [{"img_id": i, "note": f"look of {note[i]}"} for i in ids]
        return {"gen_prompt": "draw " + "; ".join(clauses), "reference_images": references}

    def _worded(self, skill: str, **values: str) -> str:
        """Return the phrase of a skill's structure, "" where it is not applied."""
        return worded(skill, self._plan.wording(skill), **values) if skill in self._plan.applied else ""

    def _part(self, part: Part, ids: list[str]) -> str:
        asked = self._truth.fact_count and part.name == "moon"
        count = self._facts.get("moon", "") if asked else COUNT_WORDS[part.count] if part.count > 1 else ""
        words = [count, part.colour or "", part.name]
        if part.found:
            ordinal = ORDINALS[ids.index(self._picked[part.name])]
            words.append(worded(REFERENCE, self._plan.wording(REFERENCE), ordinal=ordinal))
        if part.material:
            words.append(_spaced(f"of {part.material}", self._worded("physical_material_consistency")))
        if part.legs:
            words.append(_spaced(f"on {COUNT_WORDS[part.legs]} legs", self._worded("anatomy_body_coherence")))
        words.append(self._worded("quantity_counting") if count else "")
        if part.side:
            words.append(self._worded("spatial_layout", side=part.side) or part.side)
        return " ".join(w for w in words if w)


class TeacherEngine:
    """Serve the teacher through the engine protocol, for one episode: contexts and turns are tokens."""

    name = "atlas-teacher"
    version = 0

    def __init__(self, teacher: Teacher, chat: ChatFormat) -> None:
        """Wrap the teacher of one episode."""
        self._teacher, self._chat = teacher, chat

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, request_id: str, media: Sequence[PromptImage] = ()
    ) -> Generation:
        """Generate the next turn; log-probs are 0 (the teacher is certain)."""
        observation = self._chat.decode(token_ids).rsplit(_OBSERVATION, 1)[-1]
        seen = observation.count(VISION[0])
        text = self._teacher.turn(observation, [image.data for image in media[len(media) - seen :]])
        tokens = (*self._chat.tokenizer.encode(text, add_special_tokens=False), self._chat.end_of_turn_id)
        zeros = (0,) * len(tokens)
        return Generation(tokens=tokens, logprobs=zeros, versions=zeros, finish=FinishReason.STOP)


def _spaced(*texts: str) -> str:
    return " ".join(text for text in texts if text)


def _call(think: str, tool: str, **arguments: object) -> str:
    return f"<think>{think}</think>\n<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"
