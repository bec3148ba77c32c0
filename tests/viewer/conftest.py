"""A made-up run with pictures, for the tests of the viewer and for looking at the page."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from bundle_helpers import make_bundle
from PIL import Image, ImageDraw

from genevolve_ray.records.experience import MovedToken, Use
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, Provenance, SampleKey, Termination, Trajectory, Turn, TurnKind
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.experience import Moved, RunExperience

COLOURS = {"red": "#d9463c", "teal": "#2b9c93", "blue": "#3c62d9", "purple": "#8448c4", "orange": "#e68a2e"}
SUBJECTS = ("Velloran lantern", "mask of Oru", "tower of Quessim", "Tarrow vessel", "idol of Brendt")
SKILLS = ("quantity_counting", "spatial_layout", "text_rendering", "attribute_binding")


def draw(store: MemoryImages, rng: random.Random, colour: str, count: int, noise: int = 0, size: int = 128) -> ImageRef:
    """Store a picture of `count` circles; `noise` spoils it with specks."""
    image = Image.new("RGB", (size, size), "#f4ead6")
    pen = ImageDraw.Draw(image)
    for i in range(count):
        x, y, r = size * (i + 0.5) / count, size * rng.uniform(0.35, 0.65), size * 0.42 / max(count, 2)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour], outline="#333333", width=2)
    for _ in range(noise):
        x, y = rng.randrange(size), rng.randrange(size)
        pen.rectangle((x, y, x + 4, y + 4), fill=rng.choice(sorted(COLOURS.values())))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return store.put(buffer.getvalue(), width=size, height=size)


def make_trajectory(
    request: Request, store: MemoryImages, rng: random.Random, skill: float, version: int, sample: int = 0
) -> Trajectory:
    """One attempt; `skill` in [0, 1] decides how good it is."""
    colour = rng.choice(sorted(COLOURS))
    hits = {
        f"IMG_{i:03d}": ImageHit(
            title=f"{request.meta['subject']}, {kind}",
            url=f"atlas://pictures/{i}",
            image=draw(store, rng, colour, 1, noise),
        )
        for i, (kind, noise) in enumerate((("museum picture", 0), ("drawing by a fan", 20), ("old postcard", 8)), 1)
    }
    prompt = f"The first reference image shows the subject. Draw {request.prompt} One clause per object; {SKILLS[0]}."
    answer = {"gen_prompt": prompt, "reference_images": [{"img_id": "IMG_001", "note": "the look"}]}
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("query_knowledge", {"skill_name": SKILLS[0]}, "# Counting\nSay the number, then place each object by itself."),
        (
            "search",
            {"queries": [request.meta["subject"]]},
            f"--- search result for [{request.meta['subject']}] ---\n1. title: Gazetteer\n  url: atlas://docs/12\n"
            "  snippet: Once it had two moons; since the flood it has three.\n--- end of search result ---",
        ),
        (
            "image_search",
            {"query": request.meta["subject"]},
            "\n".join(f"{k}: title: {h.title}" for k, h in hits.items()),
        ),
    ]
    turns, ledger = [], TokenLedger()
    ledger.append_context(range(60), SpanKind.PROMPT)

    def write(think: str, body: str, kind: SpanKind) -> str:
        for text, span in ((think, SpanKind.THINK), (body, kind)):
            ids = range(len(text) // 4)
            ledger.append_policy(ids, [-0.1] * len(ids), [version] * len(ids), span)
        return f"<think>{think}</think><{kind.value}>{body}</{kind.value}>"

    for name, arguments, observation in calls[0 if skill > 0.5 else 1 :]:
        body = json.dumps({"name": name, "arguments": arguments})
        text = write(f"The request names {request.meta['subject']}; I need {name}.", body, SpanKind.TOOL_CALL)
        turns.append(Turn(kind=TurnKind.TOOL_CALL, text=text, tool=name, arguments=arguments, observation=observation))
        ledger.append_context(range(len(observation) // 4), SpanKind.OBSERVATION)
    failed = skill < 0.08
    if failed:
        text = write("I am done.", "{broken", SpanKind.ANSWER)
        turns.append(Turn(kind=TurnKind.FORMAT_ERROR, text=text, error="answer is not a JSON object"))
    else:
        turns.append(Turn(kind=TurnKind.ANSWER, text=write("All is known.", json.dumps(answer), SpanKind.ANSWER)))
    trajectory = Trajectory(
        key=SampleKey(step=0, request_id=request.id, sample=sample),
        prompt=request.prompt,
        ledger=ledger,
        provenance=Provenance(profile="atlas", engine="vllm", renderer="atlas-renderer-1", judge="atlas-judge-1"),
        turns=turns,
        images=hits,
        termination=Termination.NO_ANSWER if failed else Termination.ANSWER,
        outcome=Outcome.POLICY_FAILURE if failed else Outcome.SCORED,
        reason="answer is not a JSON object" if failed else "",
    )
    if not failed:
        judge(trajectory, store, rng, request, skill)
    return trajectory


def judge(trajectory: Trajectory, store: MemoryImages, rng: random.Random, request: Request, skill: float) -> None:
    """Fill in the picture, the verdict and the reward."""
    trajectory.program = Program(
        gen_prompt=f"The first reference image shows the subject. {request.prompt}",
        reference_images=(ReferenceImage(img_id="IMG_001", note="the look"),),
    )
    count = request.meta["count"] if skill > 0.6 else rng.randint(1, 5)
    trajectory.rendered = draw(store, rng, request.meta["colour"], count, int(40 * (1 - skill)))
    checks = [rng.random() < 0.3 + 0.7 * skill for _ in range(4)]
    text = Sufficiency(
        facts=checks[0], reference_binding=checks[1], skill_knowledge=checks[2], executable_constraints=checks[3]
    )
    trajectory.verdict = Verdict(
        image=ImageScores(
            faithfulness=round(skill, 2), visual_correctness=round(skill, 2), text_accuracy=None, aesthetics=0.9
        ),
        text=text,
        rationale=f"{count} of {request.meta['count']} shapes; the look is {'kept' if skill > 0.5 else 'lost'}.",
        judge="atlas-judge-1",
        formula=ScoreFormula.RELEASE_SUMMARY,
    )
    cost = 0.01 * trajectory.tool_calls
    trajectory.reward = Reward(total=max(0.0, (skill + text.score) / 2 - cost), image=skill, text=text.score, cost=cost)


def make_metrics(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    """Metrics of a run that learns."""
    rows = []
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-step / 15)
        image, text = 0.5 + 0.2 * rise + rng.gauss(0, 0.03), 0.6 + 0.25 * rise + rng.gauss(0, 0.03)
        rollout, learn, sync, commit = 5 + rng.random(), 2.2 + 0.2 * rng.random(), 0.3, 0.12
        rows.append(
            {
                "step": step, "policy_version": step, "reward_mean": (image + text) / 2 - 0.03, "reward_image": image,
                "reward_text": text, "reward_cost": 0.03, "valid_fraction": min(1.0, 0.95 + 0.05 * rise),
                "policy_failures": rng.randint(0, 3), "infra_failures": 1 if step == 17 else 0,
                "tool_calls_mean": 3.4 - 0.5 * rise, "turns_mean": 4.4 - 0.5 * rise,
                "response_tokens_mean": 320 - 40 * rise + rng.gauss(0, 5), "tokens_total": 15000,
                "tokens_per_second": 2500 + rng.gauss(0, 120), "zero_variance_groups": rng.randint(0, 2), "loss": 0.01,
                "grad_norm": 0.4 + 0.1 * rng.random(), "entropy": 0.45 - 0.2 * rise, "clip_low": 0.001 * rise,
                "clip_high": 0.002 * rise, "kl": 0.02 * rise, "experience_own": 4.0,
                "experience_remembered": 2.0, "experience_hit_rate": 0.75, "experience_memory": 4.0 * step,
                "experience_pairs": 4.0, "experience_failures": 0.0, "ved_loss": 0.12, "ved_gap": 0.15 * rise,
                "ved_gap_abs": 0.18 * rise, "ved_gated": 0.1, "ved_gated_gap_abs": 0.15 * rise, "ved_rho_capped": 0.0,
                "ved_gap_clipped": 0.01, "taught_sequences": 36.0, "seconds_experience": 0.01, "parity": 10 ** rng.uniform(-6.4, -5.8),
                "probe_difference": 10 ** rng.uniform(-6.8, -6.2), "seconds_rollout": rollout, "seconds_learn": learn,
                "seconds_sync": sync, "seconds_commit": commit, "seconds_step": rollout + learn + sync + commit + 0.21,
                "peak_memory_bytes": 5.2e9 + step * 1e6,
            }
        )  # fmt: skip
    return rows


def make_experience(requests: list[Request], store: MemoryImages, rng: random.Random) -> RunExperience:
    """Two bundles: one taught its own request, one another request as well, and moved tokens of it."""
    bundles, trajectories = [], {}
    for number, request in enumerate(requests[:2]):
        step = number + 1
        attempts = [
            make_trajectory(request, store, rng, skill, number, sample) for sample, skill in ((0, 0.9), (1, 0.3))
        ]
        for trajectory in attempts:
            trajectory.key = trajectory.key.model_copy(update={"step": step})
            trajectories[str(trajectory.key)] = trajectory
        uses = [Use(step=step, request_id=request.id, similarity=1.0, own=True)]
        uses += [Use(step=5 + i, request_id=f"train-{i}", similarity=0.9, own=False) for i in range(number * 12)]
        bundle = make_bundle(number, step, 0.4 + number / 10, request.id, uses=uses)
        bundle.best, bundle.worst = attempts
        name = str(attempts[1].key)
        bundle.moved = [
            Moved(MovedToken(trajectory=name, position=62, gap=4.0), alike=2),
            Moved(MovedToken(trajectory=name, position=66, gap=-1.0)),
            Moved(MovedToken(trajectory=f"{step}/{request.id}/9/0", position=70, gap=0.5)),
        ]
        bundles.append(bundle)
    return RunExperience(
        bundles, written=31, own=20, remembered=12, trajectories=trajectories,
        decode=lambda ids: "".join(f" w{i}" for i in ids),
    )  # fmt: skip


def make_report_data(requests: int = 60, steps: int = 40, seed: int = 3) -> ReportData:
    """A whole run of `requests` held-out requests and `steps` steps."""
    rng, store = random.Random(seed), MemoryImages()
    asked, before, after = [], [], []
    for i in range(requests):
        subject, colour, count = rng.choice(SUBJECTS), rng.choice(sorted(COLOURS)), rng.randint(1, 5)
        request = Request(
            id=f"test-77-{i:05d}",
            prompt=f"Show {count} {colour} shapes beside the {subject}, now at dusk, the first on the left.",
            eval_type=rng.choice(list(EvalType)),
            category="+".join(rng.sample(SKILLS, 2)),
            difficulty=rng.choice(("medium", "hard")),
            truth_image=draw(store, rng, colour, count),
            meta={"subject": subject, "colour": colour, "count": count},
        )
        skill = rng.random()
        asked.append(request)
        before.append(make_trajectory(request, store, rng, skill, 0))
        after.append(make_trajectory(request, store, rng, min(1.0, max(0.0, skill + rng.uniform(-0.15, 0.5))), steps))
    means = [sum(t.score for t in side) / max(len(side), 1) for side in (before, after)]
    return ReportData(
        name="demo",
        config={
            "preset": "atlas", "seed": 7, "policy": {"model": "package:atlas/cold_start", "dtype": "float32"},
            "loop": {"steps": steps, "requests_per_step": 8, "group_size": 6, "parity_limit": 1e-4},
            "heldout": {"requests": requests, "confidence": 0.95},
            "tools": [{"name": "search", "corpus": None}, {"name": "image_search", "top_k": 3}],
        },
        run={
            "preset": "atlas", "created": "2026-05-04 10:12", "finished": "2026-05-04 10:24",
            "command": "genevolve demo",
            "versions": {"genevolve_ray": "0.1.0", "ray": "2.60.0", "vllm": "0.32.0", "torch": "2.13.0"},
        },
        metrics=make_metrics(steps, rng),
        validations=[{"step": s, "reward_mean": 0.55 + 0.004 * s} for s in range(0, steps + 1, 10)],
        summary={
            "heldout_reward_sft": means[0], "heldout_reward_final": means[1], "heldout_gain_interval": [0.101, 0.19],
            "valid_fraction_sft": 0.96, "valid_fraction_final": 0.995, "parity_max": 1.6e-6,
            "seconds": {"setup": 131.0, "evolve": 412.0, "total": 597.0}, "peak_memory_bytes": 5.9e9,
            "heldout_parts_sft": {"image": 0.51, "text": 0.58, "cost": 0.031},
            "heldout_parts_final": {"image": 0.69, "text": 0.81, "cost": 0.027},
        },
        requests=asked,
        before=before,
        after=after,
        experience=make_experience(asked, store, rng),
        training=[make_trajectory(r, store, rng, 0.7, steps - 1, sample=i) for i, r in enumerate(asked[:3])],
        load_image=store.get,
    )  # fmt: skip


@pytest.fixture
def report_data() -> ReportData:
    """A small finished run."""
    return make_report_data(requests=9, steps=8)


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    """What makes a run, for fixtures that live longer than one test."""
    return make_report_data
