"""A trajectory as one story: request, thoughts, searches, candidates, skills, program, picture and verdict.

Everything here is plain data from the trajectory itself; templates escape it. Pictures stay references, so that a page
can inline them or name their addresses.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from genevolve_ray.records.components import AnyVerdict, Artefact, components_of
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import ORDINALS
from genevolve_ray.records.readable import FoundResults, found_results, without_response_tags
from genevolve_ray.records.request import Request
from genevolve_ray.records.seen import seen_pictures
from genevolve_ray.records.trajectory import Trajectory, Turn, TurnKind
from genevolve_ray.records.verdict import RewardConfig, Sufficiency, Verdict
from genevolve_ray.viewer.data import scored
from genevolve_ray.viewer.gallery import PagePicture, clip, parts, turn_tokens
from genevolve_ray.viewer.lessons import call_in_words

SKILL_TOOL, SEARCH_TOOL, PICTURE_TOOL = "query_knowledge", "search", "image_search"
_ORDINAL = re.compile(rf"\b({'|'.join(ORDINALS)})(\s+reference\s+image)\b", re.IGNORECASE)
_CHECKS = ("facts", "reference_binding", "skill_knowledge", "executable_constraints")
_MAX_CALL = 600
"""Characters of a tool call that stand in the head of its turn."""


class PictureSource(Protocol):
    """Give a page its pictures, inlined or by address."""

    def get(self, ref: ImageRef | None, side: int = ...) -> PagePicture | None:
        """Return a picture with neither side above `side` pixels, None where it is missing or cannot be read."""
        ...


@dataclass(frozen=True)
class Candidate:
    """Describe a picture that a search found.

    Attributes:
        img_id: its id in the trajectory.
        title: its title.
        url: its address as the search gave it; shown as text.
        image: the stored file, None for an id that the trajectory does not know.
        ordinal: `first`, `second`, ... for a reference of the program; empty for a picture that was not taken.
        note: the policy's reason for a reference.
        seen: whether the policy saw the pixels.
        unseen: the reason that the policy read in place of the picture.
    """

    img_id: str
    title: str
    url: str
    image: ImageRef | None
    ordinal: str = ""
    note: str = ""
    seen: bool = False
    unseen: str = ""


@dataclass(frozen=True)
class StoryTurn:
    """Describe one turn.

    Attributes:
        number: of the turn, from 1.
        kind: `search`, `pictures`, `skill`, `tool`, `answer` or `broken`.
        turn: the turn itself, for those who read every word.
        thoughts: what the policy thought.
        call: the request of a tool call in words.
        stray: text outside of thought and action.
        texts: results of text searches.
        candidates: pictures that the turn found, in order.
        observation: what the policy read after the turn, where it is no list of results.
        raw: the parts of the turn, with their kinds.
        tokens: (policy tokens, observation tokens), None where the ledger does not tell.
    """

    number: int
    kind: str
    turn: Turn
    thoughts: tuple[str, ...]
    call: str
    stray: tuple[str, ...]
    texts: tuple[FoundResults, ...]
    candidates: tuple[Candidate, ...]
    observation: str
    raw: tuple[tuple[str, str], ...]
    tokens: tuple[int, int] | None


@dataclass(frozen=True)
class Measure:
    """Hold one component of a verdict; `scaled` places it between 0 (worst) and 1 (best)."""

    name: str
    value: float
    low: float
    high: float
    scaled: float
    rationale: str
    artefacts: tuple[Artefact, ...]


@dataclass(frozen=True)
class Judgment:
    """Hold one judge's verdict for a page; `checks` are those of the program, where the judge examined them."""

    name: str
    judge: str
    measures: tuple[Measure, ...]
    checks: tuple[tuple[str, bool], ...]
    rationale: str
    program_rationale: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Formula:
    """Hold a reward as a sum that a reader can check.

    Attributes:
        total: the reward.
        terms: (weight, name, value) in order; the weight is None where the settings of the reward are not known.
        how: how the terms combine, in words.
        cost: subtracted for tool calls.
        closed: the gate that made the reward 0.
        compared: what the learner compares in place of the reward, None where it is the reward.
    """

    total: float
    terms: tuple[tuple[float | None, str, float], ...]
    how: str
    cost: float
    closed: str
    compared: float | None


@dataclass(frozen=True)
class Story:
    """Hold everything that a page tells of one trajectory, in the order in which it happened.

    Attributes:
        trajectory: the trajectory.
        request: its request, None where the run did not keep it.
        scenes: its turns.
        others: pictures that it found which no observation lists.
        program: the prompt of the program, cut at its ordinals: (text, ordinal or "").
        references: the pictures that the program takes, in the order of their ordinals.
        judgments: every verdict.
        formula: the reward, None where there is none.
        score: what the trajectory is worth: the reward, or 0 for a failure of the policy; None for neither.
        truth: the ground-truth picture, None where it is not known.
        versions: policy versions that sampled it.
    """

    trajectory: Trajectory
    request: Request | None
    scenes: tuple[StoryTurn, ...]
    others: tuple[Candidate, ...]
    program: tuple[tuple[str, str], ...]
    references: tuple[Candidate, ...]
    judgments: tuple[Judgment, ...]
    formula: Formula | None
    score: float | None
    truth: ImageRef | None
    versions: tuple[int, ...]

    @property
    def tools(self) -> dict[str, int]:
        """Number of calls of each tool, in the order of first use."""
        counts: dict[str, int] = {}
        for scene in self.scenes:
            if scene.turn.kind is TurnKind.TOOL_CALL:
                counts[scene.turn.tool] = counts.get(scene.turn.tool, 0) + 1
        return counts


def tell(
    trajectory: Trajectory,
    *,
    request: Request | None = None,
    truth: ImageRef | None = None,
    reward: RewardConfig | None = None,
) -> Story:
    """Return the story of a trajectory.

    Args:
        trajectory: the attempt.
        request: its request, for its labels and its ground-truth picture.
        truth: the ground-truth picture, where the request does not name it.
        reward: settings of the reward, for the weights of its terms.
    """
    counted = turn_tokens(trajectory.ledger)
    tokens = counted if len(counted) == len(trajectory.turns) else [None] * len(trajectory.turns)
    scenes = tuple(
        _scene(number, turn, trajectory, count)
        for number, (turn, count) in enumerate(zip(trajectory.turns, tokens, strict=True), 1)
    )
    listed = {candidate.img_id for scene in scenes for candidate in scene.candidates}
    program = trajectory.program
    return Story(
        trajectory=trajectory,
        request=request,
        scenes=scenes,
        others=tuple(_candidate(i, trajectory) for i in sorted(trajectory.images) if i not in listed),
        program=ordinal_pieces(clip(program.gen_prompt)) if program else (),
        references=tuple(_candidate(r.img_id, trajectory) for r in (program.reference_images if program else ())),
        judgments=_judgments(trajectory),
        formula=reward_formula(trajectory, reward),
        score=trajectory.score if scored(trajectory) else None,
        truth=request.truth_image if request is not None and request.truth_image is not None else truth,
        versions=tuple(sorted({version for version in trajectory.ledger.versions if version >= 0})),
    )


def whereabouts(story: Story) -> list[str]:
    """Return in words where a trajectory stands in its run, and what made it."""
    key, made_by = story.trajectory.key, story.trajectory.provenance
    attempt = f"attempt {key.attempt}" if key.attempt else ""
    step = f"step {key.step}" if key.step > 0 else ""
    policy = f"policy version {', '.join(map(str, story.versions))}" if story.versions else ""
    return [item for item in (step, f"sample {key.sample}", attempt, policy, made_by.profile, made_by.engine) if item]


def data_address(data: bytes, media_type: str = "application/json") -> str:
    """Return content as an address of its own, for a link that saves it as a file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _scene(number: int, turn: Turn, trajectory: Trajectory, tokens: tuple[int, int] | None) -> StoryTurn:
    raw = tuple(parts(turn.text))
    results = found_results(turn.observation)
    texts = tuple(found for found in results if not found.pictures)
    seen = {look.img_id: look for look in seen_pictures(turn.observation, trajectory.images)}
    candidates = []
    for hit in (hit for found in results if found.pictures for hit in found.hits):
        look = seen.get(hit.id)
        candidates.append(
            _candidate(
                hit.id,
                trajectory,
                title=hit.title,
                seen=look is not None and look.shown is not None,
                unseen=look.reason if look is not None else "",
            )
        )
    failed = tuple(found for found in results if found.pictures and found.error)
    return StoryTurn(
        number=number,
        kind=_kind(turn),
        turn=turn,
        thoughts=tuple(text for kind, text in raw if kind == "think"),
        call=call_in_words(turn.arguments, _MAX_CALL) if turn.kind is TurnKind.TOOL_CALL else "",
        stray=tuple(text for kind, text in raw if kind == "text"),
        texts=(*texts, *failed),
        candidates=tuple(candidates),
        observation="" if results else clip(without_response_tags(turn.observation)),
        raw=raw,
        tokens=tokens,
    )


def _kind(turn: Turn) -> str:
    if turn.kind is TurnKind.ANSWER:
        return "answer"
    if turn.kind is not TurnKind.TOOL_CALL:
        return "broken"
    return {SKILL_TOOL: "skill", SEARCH_TOOL: "search", PICTURE_TOOL: "pictures"}.get(turn.tool, "tool")


def _candidate(
    img_id: str, trajectory: Trajectory, *, title: str = "", seen: bool = False, unseen: str = ""
) -> Candidate:
    hit: ImageHit | None = trajectory.images.get(img_id)
    named = (
        {r.img_id: place for place, r in enumerate(trajectory.program.reference_images)} if trajectory.program else {}
    )
    place = named.get(img_id)
    note = trajectory.program.reference_images[place].note if trajectory.program and place is not None else ""
    return Candidate(
        img_id=img_id,
        title=(hit.title if hit else "") or title,
        url=hit.url if hit else "",
        image=hit.image if hit else None,
        ordinal="" if place is None else ordinal(place),
        note=note,
        seen=seen,
        unseen=unseen,
    )


def ordinal(place: int) -> str:
    """Return the word of a place that counts from 0: `first`, `second`, ...; `number 6` beyond the words."""
    return ORDINALS[place] if place < len(ORDINALS) else f"number {place + 1}"


def ordinal_pieces(prompt: str) -> tuple[tuple[str, str], ...]:
    """Cut a prompt at the phrases that name references: (text, ordinal), the ordinal empty between them."""
    pieces: list[tuple[str, str]] = []
    position = 0
    for match in _ORDINAL.finditer(prompt):
        pieces += [(prompt[position : match.start()], ""), (match.group(), match.group(1).lower())]
        position = match.end()
    pieces.append((prompt[position:], ""))
    return tuple(piece for piece in pieces if piece[0])


def _judgments(trajectory: Trajectory) -> tuple[Judgment, ...]:
    judged: dict[str, AnyVerdict] = {} if trajectory.verdict is None else {"judge": trajectory.verdict}
    return tuple(_judgment(name, verdict) for name, verdict in (judged | trajectory.verdicts).items())


def _judgment(name: str, verdict: AnyVerdict) -> Judgment:
    graded = verdict if isinstance(verdict, Verdict) else None
    measures = tuple(
        # The reasons of a KScore are those of the whole verdict, which stand below the measures.
        Measure(key, c.value, c.low, c.high, c.scaled, "" if graded else clip(c.rationale), c.artefacts)
        for key, c in components_of(verdict).items()
    )
    examined = graded is not None and graded.examined and isinstance(graded.text, Sufficiency)
    return Judgment(
        name=name,
        judge=verdict.judge,
        measures=measures,
        checks=tuple((check, getattr(graded.text, check)) for check in _CHECKS) if graded and examined else (),
        rationale=clip(verdict.rationale),
        program_rationale=clip(graded.text_rationale) if graded else "",
        flags=verdict.flags,
    )


def reward_formula(trajectory: Trajectory, config: RewardConfig | None = None) -> Formula | None:
    """Return the reward as a sum; its weights only where these settings give this very reward."""
    reward = trajectory.reward
    if reward is None:
        return None
    terms: Sequence[tuple[float | None, str, float]]
    how = ""
    if reward.parts:
        weights = config.components if config is not None and {*reward.parts} == {*config.components} else {}
        terms = [(weights.get(name), name, value) for name, value in reward.parts.items()]
        how = config.combine.replace("_", " ") if config is not None and config.components else ""
    else:
        fits = config is not None and not config.components and _fits(trajectory, config)
        image, text = (config.image_weight, config.text_weight) if config is not None and fits else (None, None)
        terms = [(image, "picture", reward.image), (text, "program", reward.text)]
    return Formula(reward.total, tuple(terms), how, reward.cost, reward.closed, reward.normalised)


def _fits(trajectory: Trajectory, config: RewardConfig) -> bool:
    assert trajectory.reward is not None
    reward = trajectory.reward
    total = max(0.0, config.image_weight * reward.image + config.text_weight * reward.text - reward.cost)
    return abs(total - reward.total) < 1e-6
