"""The summarizer without a model: it compares two attempts by rules and writes short imperative bullets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from genevolve_ray.judges.behaviour import Behaviour, behaviour_of
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience
from genevolve_ray.records.leaks import mask, without_leaks
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair

STANDARD = "Standard: "
"""Marks the best attempt's behavior where the worst one did the same."""


class RuleSummariserConfig(Config):
    """Configure the bullets that the summarizer's rules write."""

    standards: bool = True
    """State what both attempts did as well, marked as standard."""
    format: BundleFormatName = BundleFormatName.FIVE_SLOTS
    """Slots of the bundles: `five-slots` or `decision-guide`."""


class RuleSummariser:
    """Compare decisions, not pictures: tools and queries, skills, references by their titles, the prompt's form.

    A bullet comes from a rule that fits the pair, so the same pair always gives the same bundle. Where the attempts do
    not differ, the best one's behavior is kept and marked as standard. The rules cannot determine which of the
    differences earned the reward.
    """

    Config = RuleSummariserConfig

    def __init__(self, config: RuleSummariserConfig | None = None) -> None:
        """Keep the config."""
        self.config = config or RuleSummariserConfig()
        self.identity = f"rule-summariser/1{format_suffix(self.config.format)}"

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return the bundle of a pair; a bullet that would reveal an answer (by a specific title) is left out."""
        best, worst = behaviour_of(pair.best), behaviour_of(pair.worst)
        layout = BUNDLE_FORMATS[self.config.format]
        slots = {
            slot: [b for b in _RULES[slot](best, worst) if self.config.standards or not b.startswith(STANDARD)]
            for slot in layout.slots
        }
        bundle = Experience(format=self.config.format, **bundle_head(request, pair)).guided(slots)
        return without_leaks(bundle, request, (pair.best, pair.worst))


def format_suffix(name: BundleFormatName) -> str:
    """Return the part of a summarizer's identity that names its format; "" for the first one, as it always was."""
    return "" if name is BundleFormatName.FIVE_SLOTS else f":{name.value}"


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


def _focus(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    parts = {
        "searching": (best.searches, best.image_searches) != (worst.searches, worst.image_searches),
        "skill guides": best.skills != worst.skills,
        "references": (best.references, best.chosen) != (worst.references, worst.chosen),
        "prompt form": _form(best) != _form(worst),
    }
    if differing := [name for name, differs in parts.items() if differs]:
        yield f"Look first at {_listed(differing)}: there the better attempt decided otherwise than the weaker one did."
    else:
        yield "Standard: keep the usual course and carry it out with care, since both attempts decided alike everywhere."


def _form(attempt: Behaviour) -> tuple[bool, ...]:
    return (attempt.ordinals, attempt.clauses > 1, attempt.quoted, attempt.placed)


def _plan(best: Behaviour, worst: Behaviour) -> Iterator[str]:
    yield _told(
        _steps(best),
        _steps(worst),
        f"Plan the calls in this order: {', then '.join(_steps(best))}, then write the answer.",
    )


def _steps(attempt: Behaviour) -> list[str]:
    """Return the kinds of call of an attempt, in the order in which such calls usually come."""
    steps = {
        "search facts": attempt.searches > 0,
        "read skill guides": bool(attempt.skills),
        "search images": attempt.image_searches > 0,
    }
    return [name for name, taken in steps.items() if taken] or ["settle what to draw"]


_RULES: dict[str, Callable[[Behaviour, Behaviour], Iterator[str]]] = {
    "search_strategy": _search,
    "knowledge_activation": _knowledge,
    "reference_selection": _reference,
    "prompt_construction": _prompt,
    "failure_avoidance": _failures,
    "focus": _focus,
    "recommended_tool_plan": _plan,
    "search_query_guidance": _search,
    "skill_routing_guidance": _knowledge,
    "reference_selection_guidance": _reference,
    "prompt_program_guidance": _prompt,
    "failure_guards": _failures,
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
