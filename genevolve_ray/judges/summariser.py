"""The summarizer without a model: it compares two attempts by rules and writes short imperative bullets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genevolve_ray.judges.behaviour import Behaviour, behaviour_of
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import SLOTS, Experience
from genevolve_ray.records.leaks import mask, without_leaks
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair

STANDARD = "Standard: "
"""Marks the best attempt's behavior where the worst one did the same."""


class RuleSummariserConfig(Config):
    """Configure the bullets that the summarizer's rules write."""

    standards: bool = True
    """State what both attempts did as well, marked as standard."""


class RuleSummariser:
    """Compare decisions, not pictures: tools and queries, skills, references by their titles, the prompt's form.

    A bullet comes from a rule that fits the pair, so the same pair always gives the same bundle. Where the attempts do
    not differ, the best one's behavior is kept and marked as standard. The rules cannot determine which of the
    differences earned the reward.
    """

    Config = RuleSummariserConfig
    identity = "rule-summariser/1"

    def __init__(self, config: RuleSummariserConfig | None = None) -> None:
        """Keep the config."""
        self.config = config or RuleSummariserConfig()

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return the bundle of a pair; a bullet that would reveal an answer (by a specific title) is left out."""
        best, worst = behaviour_of(pair.best), behaviour_of(pair.worst)
        slots: dict[str, tuple[str, ...]] = {}
        for slot in SLOTS:
            bullets = _RULES[slot](best, worst)
            slots[slot] = tuple(b for b in bullets if self.config.standards or not b.startswith(STANDARD))
        bundle = Experience(**bundle_head(request, pair)).model_copy(update=slots)
        return without_leaks(bundle, request, (pair.best, pair.worst))


def _told(best: object, worst: object, text: str) -> str:
    """Return a bullet about an action of the best attempt, marked where the worst one did the same."""
    return STANDARD + text[0].lower() + text[1:] if best == worst else text


def _search(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    does, did = best.searches > 0, worst.searches > 0
    if does:
        yield _told(
            does, did, "Search for the facts that the request leaves open before you look for pictures or write."
        )
        if best.queries > best.searches:
            both = worst.queries > worst.searches
            yield _told(True, both, "Ask several short queries in a single search call, each about a single open fact.")
    else:
        yield _told(
            does, did, "Skip the text search when the request already states every fact that the picture needs."
        )
    if best.image_searches > worst.image_searches:
        yield "Search images separately for every thing whose look is unknown instead of hoping that a single search covers all."
    elif best.image_searches < worst.image_searches:
        yield "Stop searching images as soon as a fitting picture is found; further image searches brought nothing here."
    else:
        yield "Standard: search images for the things whose look must be found, as both attempts did here."


def _knowledge(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    only, both = [s for s in best.skills if s not in worst.skills], [s for s in best.skills if s in worst.skills]
    if only:
        yield f"Read {_listed(only)} before writing, as only the better attempt did, and then apply what it says."
    if both:
        yield f"Standard: read {_listed(both)} before writing the prompt, as both attempts did for this sort of request."
    if needless := [s for s in worst.skills if s not in best.skills]:
        yield f"Leave {_listed(needless)} unread for this sort of request; the better attempt wrote its prompt without."
    if not best.skills:
        yield _told(
            (), worst.skills, "Write without reading any skill when the request asks for nothing that one explains."
        )


def _reference(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    if best.chosen:
        text = (
            f"Choose pictures whose titles say {_listed(best.chosen)} over the other pictures that the search returns."
        )
        yield _told(best.chosen, worst.chosen, text)
    else:
        yield "Compare all titles that an image search returns, and take the picture that fits the request best."
    if best.references > worst.references:
        yield "Give every thing whose look must be right its own reference picture rather than sharing a single picture."
    elif best.references < worst.references:
        yield "Leave out references that no part of the request needs; every further picture pulls the result its way."


def _prompt(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    if best.ordinals:
        text = "Bind each reference by its ordinal phrase to the thing it shows, in the clause about that thing."
        yield _told(True, worst.ordinals, text)
    if best.clauses > 1:
        text = "Describe every thing in a clause of its own, with all its attributes beside its noun, and separate clauses."
        yield _told(True, worst.clauses > 1, text)
    if best.quoted:
        yield _told(
            True,
            worst.quoted,
            "Quote the text that must appear letter by letter, and say where in the picture it stands.",
        )
    if best.placed:
        yield _told(
            True,
            worst.placed,
            "State the place of things with full phrases of position rather than leaving it to the generator.",
        )
    if worst.words > 2 * best.words > 0:
        yield "Keep the prompt short: say what must be seen, and leave out decoration that the request never mentions."
    elif best.words > 2 * worst.words > 0:
        yield "Write the prompt out in full: every constraint of the request must appear in it as a visible instruction."


def _failures(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    if worst.broken > best.broken:
        yield "Avoid turns that break the protocol: think briefly, then write exactly one tool call or the answer."
    if worst.searches == 0 < best.searches:
        yield "Avoid writing facts from memory: the weaker attempt never searched and had to guess what holds."
    if worst.chosen and best.chosen and worst.chosen != best.chosen:
        yield f"Avoid pictures whose titles say {_listed(worst.chosen)}; the weaker attempt took such a picture and came out worse."
    if best.placed and not worst.placed:
        yield "Avoid prompts that never say where things are; the weaker attempt left the layout to chance."
    if best.quoted and not worst.quoted:
        yield "Avoid asking for lettering without quoting it; the weaker attempt described the text and never quoted it."
    if worst.repeated and not best.repeated:
        yield "Avoid asking the same query again: change its words or its scope, or go on with what you have."
    if worst.looked_late and not best.looked_late:
        yield "Avoid returning to text search after choosing pictures; settle the open facts first, then look for references."
    if worst.tool_calls > 1.5 * best.tool_calls:
        yield "Avoid tool calls that change nothing in the prompt; the weaker attempt spent many more calls for less."


_RULES = {
    "search_strategy": _search,
    "knowledge_activation": _knowledge,
    "reference_selection": _reference,
    "prompt_construction": _prompt,
    "failure_avoidance": _failures,
}


def _listed(words: tuple[str, ...] | list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def bundle_head(request: Request, pair: Pair) -> dict[str, Any]:
    """Return the fields of a bundle besides its guidance: its subject, without the answers, and its provenance."""
    category = " ".join(request.category.replace("+", " ").split())
    return {
        "trigger": ", ".join(part for part in (request.eval_type.value, category) if part),
        "summary": mask(request.prompt),
        "step": pair.step,
        "request_id": pair.request_id,
        "best": str(pair.best.key),
        "worst": str(pair.worst.key),
        "gap": pair.gap,
    }
