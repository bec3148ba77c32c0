"""Summarizer of the atlas: the decisions of the best attempt, in the words that the cold start learned to read.

It reads everything from the attempts themselves: their tool calls, the titles of the selected pictures (or, where these
say nothing, the stated choice), and the prompt compared with the snippets. It never uses the hidden truth of the request.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from genevolve_ray.atlas.habits import REFERENCE, WORDINGS, wordings_in
from genevolve_ray.atlas.reading import Reading, read_prompt
from genevolve_ray.atlas.scene import COUNT_WORDS, SIGHT_SOURCES, SKILLS, SOURCES
from genevolve_ray.atlas.teacher import MAX_SKILLS, Decisions, as_experience
from genevolve_ray.judges.summariser import bundle_head
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.leaks import check_experience
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair, Trajectory, Turn, TurnKind

_TITLE = re.compile(rf"({'|'.join(SOURCES)}) picture of\b")
_TAKEN = re.compile(rf"\bTake ({'|'.join(SIGHT_SOURCES)})\b")
_FACT = re.compile(r"\b(moon|motto) of (\w+) (now|once) '?(\w+)'?\.")


class AtlasSummariserConfig(Config):
    """Configure how decisions become guidance."""

    correct: bool = True
    """A decision of the best attempt that its verdict faults is replaced where the worst attempt passed the same
    check.
    """
    drop_needless: bool = True
    """A skill is not recommended if it was read but left no trace in a prompt that the judge found complete."""
    state_applied: bool = False
    """Also recommend a skill whose structure is in the prompt although this attempt did not read it."""
    wordings: bool = False
    """Also recommend how a structure was worded where the picture came out right, for a generator with habits."""


class AtlasSummariser:
    """State the decisions of the best attempt, corrected by the worst one where their verdicts justify it.

    A decision belongs to one check of the verdict. Skills belong to `skill_knowledge`, the picture's source to
    `reference_binding`, and searching and the choice of facts to `facts`. The decision is taken from the best attempt,
    unless that attempt failed the check and the worst one passed it. Guidance has the phrases of `as_experience` and
    nothing else, because the policy has learned to read nothing else. No experience is marked as standard, and no
    failure is described.
    """

    Config = AtlasSummariserConfig
    identity = "atlas-summariser/1"

    def __init__(self, config: AtlasSummariserConfig | None = None) -> None:
        """Keep the config."""
        self.config = config or AtlasSummariserConfig()

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return the bundle of a pair.

        Raises:
            LeakError: the guidance would give an answer away.
        """
        decisions = self._decide(pair)
        bundle = as_experience(decisions).model_copy(update=bundle_head(request, pair))
        check_experience(bundle, request, (pair.best, pair.worst))
        return bundle

    def _decide(self, pair: Pair) -> Decisions:
        best, worst = self.decisions(pair.best), self.decisions(pair.worst)
        if not self.config.correct:
            return best
        owner = {check: self._trusted(pair, check, best, worst) for check in _CHECKS}
        return Decisions(
            skills=owner["skill_knowledge"].skills,
            applied=owner["skill_knowledge"].applied,
            source=owner["reference_binding"].source,
            search=owner["facts"].search,
            current=owner["facts"].current,
            # The worst attempt may have been drawn right where the best one was not.
            wordings=worst.wordings | best.wordings,
        )

    def _trusted(self, pair: Pair, check: str, best: Decisions, worst: Decisions) -> Decisions:
        """Return the decisions to follow where this check judges them."""
        failed, passed = _passed(pair.best, check) is False, _passed(pair.worst, check) is True
        return worst if failed and passed else best

    def decisions(self, trajectory: Trajectory) -> Decisions:
        """Return the decisions of one attempt, as far as they can be inferred.

        Sometimes they cannot: no fact was searched, or no picture has an informative title. Then the sensible decision
        is returned. It makes no difference to this request and is sound guidance for the next.
        """
        reading = read_prompt(trajectory.program.gen_prompt) if trajectory.program else Reading()
        applied = _structure(reading)
        read = _skills_read(trajectory)
        complete = _passed(trajectory, "skill_knowledge") is True
        if self.config.drop_needless and complete:
            read &= applied
        if self.config.state_applied:
            read |= applied
        return Decisions(
            skills=tuple(s for s in SKILLS if s in read)[:MAX_SKILLS],
            applied=tuple(s for s in SKILLS if s in applied),
            search=any(_calls(trajectory, "search")),
            source=_source(trajectory),
            current=_current(trajectory, reading),
            wordings=_wordings(trajectory, applied) if self.config.wordings else {},
        )


_CHECKS = ("skill_knowledge", "reference_binding", "facts")
_SHOWN_BY = {
    "quantity_counting": "faithfulness",
    "spatial_layout": "faithfulness",
    "text_rendering": "text_accuracy",
    "aesthetic_drawing": "aesthetics",
    "creative_drawing": "aesthetics",
}
"""The dimension of a picture in which a structure shows; that of every other one is the visual correctness."""


def _passed(trajectory: Trajectory, check: str) -> bool | None:
    """Return whether an attempt passed a check, None where its verdict has no checks."""
    return None if trajectory.verdict is None else getattr(trajectory.verdict.text, check, None)


def _calls(trajectory: Trajectory, tool: str) -> Iterator[Turn]:
    """Yield the turns that called this tool successfully."""
    return (turn for turn in trajectory.turns if turn.kind is TurnKind.TOOL_CALL and turn.tool == tool)


def _wordings(trajectory: Trajectory, applied: set[str]) -> dict[str, str]:
    """Return how a prompt words its structures, those alone whose dimension of the picture came out right."""
    if trajectory.verdict is None or trajectory.program is None:
        return {}
    scores, said = trajectory.verdict.image, wordings_in(trajectory.program.gen_prompt)
    right = [s for s in WORDINGS if getattr(scores, _SHOWN_BY.get(s, "visual_correctness")) == 1]
    return {s: said[s] for s in right if s in said and (s == REFERENCE or s in applied)}


def _skills_read(trajectory: Trajectory) -> set[str]:
    return {str(turn.arguments.get("skill_name")) for turn in _calls(trajectory, "query_knowledge")} & {*SKILLS}


def _structure(reading: Reading) -> set[str]:
    """Return the skills whose structure is in a prompt, also those that the request does not need."""
    parts = reading.parts
    present = {
        "spatial_layout": any(part.placed for part in parts),
        "aesthetic_drawing": reading.lit,
        "text_rendering": reading.quoted and reading.text_place,
        "creative_drawing": reading.applied,
        "anatomy_body_coherence": any(part.joined for part in parts),
        "attribute_binding": len(parts) > 1 and not any(part.shares_clause for part in parts),
        "physical_material_consistency": any(part.material and part.lit for part in parts),
        "quantity_counting": any(part.arranged for part in parts),
    }
    return {skill for skill in SKILLS if present[skill]}


def _source(trajectory: Trajectory) -> str:
    """Return the source of most of the chosen pictures; the first picture's source among equals.

    Where the policy sees the pictures, their titles say nothing. Then it is what the attempt itself said it takes.
    """
    if any(hit.shown is not None for hit in trajectory.images.values()):
        said = Counter(found for turn in trajectory.turns for found in _TAKEN.findall(turn.text))
        return max(said, key=said.__getitem__) if said else SIGHT_SOURCES[0]
    chosen = trajectory.program.reference_images if trajectory.program else ()
    titles = (trajectory.images[r.img_id].title for r in chosen if r.img_id in trajectory.images)
    sources = Counter(match.group(1) for title in titles if (match := _TITLE.match(title)))
    return max(sources, key=sources.__getitem__) if sources else SOURCES[0]


def _current(trajectory: Trajectory, reading: Reading) -> bool:
    """Return whether the prompt states what the snippets give as the present value rather than the past one.

    Only snippets about a subject that the request names count, because searches also find namesakes.
    """
    asked = set(re.findall(r"\w+", trajectory.prompt))
    written = {"moon": {COUNT_WORDS[p.count] for p in reading.parts if p.name == "moon" and p.count < len(COUNT_WORDS)}}
    written["motto"] = {reading.text.upper()} if reading.text else set()
    votes = Counter(
        when
        for turn in _calls(trajectory, "search")
        for topic, name, when, value in _FACT.findall(turn.observation)
        if name in asked and (value if topic == "moon" else value.upper()) in written[topic]
    )
    return votes["now"] >= votes["once"]
