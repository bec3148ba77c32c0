"""Hypothesis strategies for records, shared by the tests of Arrow and of the run store."""

from __future__ import annotations

from hypothesis import strategies as st

from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormatName, Experience
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.ledger import POLICY_KINDS, MediaSpan, SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Termination, Trajectory, Turn, TurnKind
from genevolve_ray.records.usage import Usage
from genevolve_ray.records.verdict import BINS, ImageScores, Reward, ScoreFormula, Sufficiency, SufficiencyBin, Verdict

texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
unit = st.floats(min_value=0, max_value=1)
int32 = st.integers(min_value=0, max_value=2**31 - 1)
seeds = st.integers(min_value=0, max_value=2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
free_form = st.dictionaries(texts, json_values, max_size=2)
image_refs = st.builds(ImageRef, sha256=texts, width=int32, height=int32, media_type=texts)
image_hits = st.builds(
    ImageHit, title=texts, url=texts, page_url=texts, image=image_refs, shown=st.none() | image_refs, unseen=texts
)
image_ids = st.integers(min_value=1, max_value=1200).map(lambda n: f"IMG_{n:03d}")
requests = st.builds(
    Request,
    id=texts,
    prompt=texts,
    eval_type=st.sampled_from(EvalType),
    category=texts,
    difficulty=texts,
    truth_image=st.none() | image_refs,
    meta=free_form,
)


def _bundles(name: BundleFormatName) -> st.SearchStrategy[Experience]:
    guidance = st.fixed_dictionaries({s: st.lists(texts, max_size=2).map(tuple) for s in BUNDLE_FORMATS[name].slots})
    return st.builds(
        Experience,
        format=st.just(name),
        trigger=texts,
        summary=texts,
        guidance=guidance,
        step=st.integers(min_value=-1, max_value=2**40),
        request_id=texts,
        best=texts,
        worst=texts,
        gap=numbers,
    )


experiences = st.sampled_from(BundleFormatName).flatmap(_bundles)


@st.composite
def ledgers(draw: st.DrawFn) -> TokenLedger:
    """Any ledger that `TokenLedger.append_*` can make, with media."""
    ledger = TokenLedger()
    for kind in draw(st.lists(st.sampled_from(SpanKind), max_size=5)):
        tokens = draw(st.lists(int32, min_size=1, max_size=5))
        if kind in POLICY_KINDS:
            n = len(tokens)
            logprobs = draw(st.lists(st.floats(max_value=0, allow_nan=False), min_size=n, max_size=n))
            ledger.append_policy(tokens, logprobs, draw(st.lists(int32, min_size=n, max_size=n)), kind)
        else:
            ledger.append_context(tokens, kind, draw(media(len(tokens))))
    return ledger


@st.composite
def media(draw: st.DrawFn, tokens: int) -> list[MediaSpan]:
    """Pictures among so many tokens, in order."""
    cuts = sorted(draw(st.sets(st.integers(min_value=0, max_value=tokens), max_size=4)))
    places = zip(cuts[::2], cuts[1::2], strict=False)
    grids = st.tuples(int32, int32, int32)
    return [MediaSpan(start=a, end=b, sha256=draw(texts), grid=draw(grids)) for a, b in places]


trajectories = st.builds(
    Trajectory,
    key=st.builds(SampleKey, step=seeds, request_id=texts, sample=seeds, attempt=seeds),
    prompt=texts,
    ledger=ledgers(),
    provenance=st.builds(
        Provenance, profile=texts, engine=texts, renderer=texts, judge=texts, seed=seeds, render_seed=seeds, split=texts
    ),
    turns=st.lists(
        st.builds(
            Turn,
            kind=st.sampled_from(TurnKind),
            text=texts,
            tool=texts,
            arguments=free_form,
            observation=texts,
            error=texts,
            seconds_policy=numbers,
            seconds_tool=numbers,
        ),
        max_size=2,
    ),
    images=st.dictionaries(image_ids, image_hits, max_size=2),
    outcome=st.sampled_from(Outcome),
    termination=st.sampled_from(Termination),
    reason=texts,
    program=st.none()
    | st.builds(
        Program,
        gen_prompt=texts,
        reference_images=st.lists(st.builds(ReferenceImage, img_id=image_ids, note=texts), max_size=2).map(tuple),
    ),
    rendered=st.none() | image_refs,
    verdict=st.none()
    | st.builds(
        Verdict,
        image=st.builds(
            ImageScores,
            faithfulness=unit,
            visual_correctness=unit,
            text_accuracy=st.none() | unit,
            aesthetics=unit,
        ),
        text=st.builds(SufficiencyBin, score=st.sampled_from(BINS))
        | st.builds(
            Sufficiency,
            facts=st.booleans(),
            reference_binding=st.booleans(),
            skill_knowledge=st.booleans(),
            executable_constraints=st.booleans(),
        ),
        rationale=texts,
        text_rationale=texts,
        judge=texts,
        formula=st.sampled_from(ScoreFormula),
        flags=st.lists(texts, max_size=2).map(tuple),
    ),
    reward=st.none() | st.builds(Reward, total=numbers, image=numbers, text=numbers, cost=numbers),
    timings=st.dictionaries(texts, numbers, max_size=3),
    usage=st.dictionaries(
        texts,
        st.builds(
            Usage,
            calls=seeds,
            failed_calls=seeds,
            cached=seeds,
            prompt_tokens=seeds,
            completion_tokens=seeds,
            images=seeds,
            seconds=numbers,
            money=numbers,
        ),
        max_size=2,
    ),
)
