"""The atlas summariser reads decisions off attempts, and says them in the words of the cold start."""

from __future__ import annotations

import asyncio
import dataclasses
import re

import pytest
from atlas_worlds import episodes, misled, posed

from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.summariser import AtlasSummariser, AtlasSummariserConfig
from genevolve_ray.atlas.teacher import Decisions, as_experience, ideal
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.leaks import check_experience
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Pair, Trajectory
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, SufficiencyBin, Verdict

RIGHT = Sufficiency(facts=True, reference_binding=True, skill_knowledge=True, executable_constraints=True)
WRONG = Sufficiency(facts=False, reference_binding=False, skill_knowledge=False, executable_constraints=False)


def judged(trajectory: Trajectory, score: float, text: Sufficiency | SufficiencyBin | None = None) -> Trajectory:
    scores = ImageScores(faithfulness=score, visual_correctness=score, text_accuracy=None, aesthetics=score)
    verdict = text and Verdict(image=scores, text=text, judge="test", formula=ScoreFormula.PAPER)
    reward = Reward(total=score, image=score, text=score)
    return dataclasses.replace(trajectory, outcome=Outcome.SCORED, reward=reward, verdict=verdict)


def pair_of(best: Trajectory, worst: Trajectory) -> Pair:
    return Pair(best.key.request_id, best.key.step, best, worst, best.score - worst.score)


def summarise(request: Request, pair: Pair, **config: bool) -> Experience:
    return asyncio.run(AtlasSummariser(AtlasSummariserConfig(**config)).compare(request, pair))


def seen_of(truth: Truth, decisions: Decisions) -> Decisions:
    """Decisions as far as an attempt can show them: without a fact to believe, today's is the sensible one."""
    shows = decisions.search and (truth.fact_count or truth.fact_text)
    return decisions if shows else decisions.model_copy(update={"current": True})


@pytest.mark.parametrize("decide", [ideal, misled])
def test_decisions_are_read_off_the_attempt(decide: object) -> None:
    """Whatever the teacher was told to do comes back as the same guidance."""
    for (request, truth), played in zip(posed(), episodes(decide), strict=True):
        pair = pair_of(judged(played, 0.9), judged(played, 0.1))
        stated = as_experience(seen_of(truth, decide(truth)))  # type: ignore[operator]
        assert summarise(request, pair).guidance == stated.guidance, request.prompt


def test_the_hidden_truth_plays_no_part() -> None:
    for (request, _), best, worst in zip(posed(), episodes(), episodes(misled), strict=True):
        pair = pair_of(judged(best, 0.9), judged(worst, 0.1))
        blind = request.model_copy(update={"meta": {}, "truth_image": None})
        assert summarise(blind, pair) == summarise(request, pair)


def test_a_bundle_says_where_it_came_from() -> None:
    request, best, worst = posed()[0][0], episodes()[0], episodes(misled)[0]
    bundle = summarise(request, pair_of(judged(best, 0.9), judged(worst, 0.25)))
    assert (bundle.step, bundle.request_id, bundle.gap) == (0, request.id, pytest.approx(0.65))
    assert (bundle.best, bundle.worst) == (str(best.key), str(worst.key))
    assert request.eval_type.value in bundle.trigger


def test_bundles_give_no_answers_away() -> None:
    for (request, truth), best, worst in zip(posed(), episodes(), episodes(misled), strict=True):
        bundle = summarise(request, pair_of(judged(best, 0.9), judged(worst, 0.1)))
        check_experience(bundle, request, (best, worst))
        words = set(re.findall(r"\w+", bundle.summary))
        assert not words & {p.name for p in truth.scene.parts if p.name[0].isupper()}
        assert truth.scene.text not in words


@pytest.mark.parametrize(
    ("check", "slots"),
    [
        ("skill_knowledge", {"knowledge_activation"}),
        ("reference_binding", {"reference_selection"}),
        ("facts", {"search_strategy", "prompt_construction"}),
    ],
)
def test_a_faulted_decision_is_taken_from_the_attempt_that_passed_the_check(check: str, slots: set[str]) -> None:
    """The higher reward may sit on the worse decision; the verdicts tell which part was whose merit."""
    for (request, truth), good, bad in zip(posed(), episodes(), episodes(misled), strict=True):
        best = judged(bad, 0.9, WRONG)
        worst = judged(good, 0.1, WRONG.model_copy(update={check: True}))
        bundle = summarise(request, pair_of(best, worst), drop_needless=False)
        kept, corrected = (as_experience(seen_of(truth, d)).guidance for d in (misled(truth), ideal(truth)))
        assert bundle.guidance == {s: (corrected if s in slots else kept)[s] for s in kept}
        plain = summarise(request, pair_of(best, worst), correct=False, drop_needless=False)
        assert plain.guidance == kept


@pytest.mark.parametrize("texts", [(RIGHT, RIGHT), (WRONG, WRONG), (RIGHT, WRONG)])
def test_without_such_evidence_the_best_is_followed(texts: tuple[Sufficiency, Sufficiency]) -> None:
    for (request, truth), good, bad in zip(posed()[:20], episodes(), episodes(misled), strict=False):
        bundle = summarise(request, pair_of(judged(good, 0.9, texts[0]), judged(bad, 0.1, texts[1])))
        assert bundle.guidance == as_experience(seen_of(truth, ideal(truth))).guidance


def test_a_skill_without_trace_in_a_complete_prompt_is_needless() -> None:
    for (request, _), bad in zip(posed()[:20], episodes(misled), strict=False):
        bundle = summarise(request, pair_of(judged(bad, 0.9, RIGHT), judged(bad, 0.1, RIGHT)))
        assert bundle.guidance["knowledge_activation"] == ("read nothing",)
        kept = summarise(request, pair_of(judged(bad, 0.9, RIGHT), judged(bad, 0.1, RIGHT)), drop_needless=False)
        assert kept.guidance["knowledge_activation"] != ("read nothing",)


def test_a_verdict_without_checks_corrects_nothing() -> None:
    """A judge that gives one grade says nothing about single decisions: those of the better attempt are stated."""
    for (request, truth), good, bad in zip(posed()[:20], episodes(), episodes(misled), strict=False):
        pair = pair_of(judged(bad, 0.9, SufficiencyBin(score=0.25)), judged(good, 0.1, SufficiencyBin(score=1.0)))
        assert summarise(request, pair).guidance == as_experience(seen_of(truth, misled(truth))).guidance


def test_applied_skills_are_stated_on_request() -> None:
    for (request, truth), good in zip(posed()[:20], episodes(), strict=False):
        unread = dataclasses.replace(good, turns=[t for t in good.turns if t.tool != "query_knowledge"])
        pair = pair_of(judged(unread, 0.9, RIGHT), judged(unread, 0.1, RIGHT))
        assert summarise(request, pair).guidance["knowledge_activation"] == ("read nothing",)
        stated = summarise(request, pair, state_applied=True)
        assert stated.guidance == as_experience(seen_of(truth, ideal(truth))).guidance


def test_calls_that_were_not_carried_out_decide_nothing() -> None:
    from genevolve_ray.records.trajectory import TurnKind

    played = episodes()[0]
    turns = [t.model_copy(update={"kind": TurnKind.FORMAT_ERROR}) for t in played.turns]
    decisions = AtlasSummariser().decisions(dataclasses.replace(played, turns=turns))
    assert (decisions.skills, decisions.search) == ((), False)


def test_titles_that_tell_nothing_leave_the_sensible_choice() -> None:
    played = episodes(misled)[0]
    images = {n: ImageHit(title="a picture", url=h.url, image=h.image) for n, h in played.images.items()}
    assert AtlasSummariser().decisions(dataclasses.replace(played, images=images)).source == "official"


def test_it_is_a_plug_in() -> None:
    spec = PluginSpec(type="genevolve_ray.atlas.summariser:AtlasSummariser", config={"correct": False})
    assert spec.build().config == AtlasSummariserConfig(correct=False)
