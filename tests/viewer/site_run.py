"""A stored run whose every text comes from one hand, and a client of the site over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from genevolve_ray.agent import wire
from genevolve_ray.evolution.store.lessons import lesson_state, redraw_state
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.components import Artefact, Component, OpenVerdict
from genevolve_ray.records.experience import Experience, Lesson, MovedToken
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit, QueryResult, TextHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.trajectory import GUIDED, Group, Trajectory, Turn, TurnKind
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.site.app import create_app
from genevolve_ray.viewer.site.index import RunIndex
from genevolve_ray.viewer.site.sources import RunSource, ViewSource

REQUEST = "train-1"


def speak(trajectory: Trajectory, text: str) -> None:
    """Put a text wherever somebody else's text stands in a trajectory."""
    hit = ImageHit(title=text, url=text, page_url=text, image=next(iter(trajectory.images.values())).image)
    results = [QueryResult(query=text, hits=(TextHit(title=text, url=text, snippet=text),))]
    found = wire.text_block(results, ("title", "url", "snippet"), 300)
    pictures = wire.image_block(text, [("IMG_001", hit, ""), ("IMG_002", hit, "")], ("title", "url"), 300)
    thought = f"<think>{text}</think>"

    def call(tool: str, observation: str, **arguments: Any) -> Turn:
        return Turn(
            kind=TurnKind.TOOL_CALL,
            text=f"{thought}<tool_call>{text}</tool_call>",
            tool=tool,
            arguments=arguments,
            observation=wire.wrap(observation),
        )

    trajectory.prompt = trajectory.reason = text
    trajectory.images = {"IMG_001": hit, "IMG_002": hit}
    trajectory.turns = [
        call("search", found, queries=[text]),
        call("image_search", pictures, query=text),
        call("query_knowledge", text, skill_name=text),
        call(text, text, anything={"deep": text}),
        Turn(kind=TurnKind.FORMAT_ERROR, text=text, error=text, observation=text),
        Turn(kind=TurnKind.ANSWER, text=f"{thought}<answer>{text}</answer>"),
    ]
    trajectory.program = Program(
        gen_prompt=f"The first reference image. {text}",
        reference_images=(ReferenceImage(img_id="IMG_001", note=text),),
    )
    trajectory.provenance = trajectory.provenance.model_copy(update={"engine": text, "renderer": text, "judge": text})
    assert trajectory.verdict is not None
    trajectory.verdict = trajectory.verdict.model_copy(
        update={"rationale": text, "text_rationale": text, "judge": text, "flags": (text,)}
    )
    component = Component(value=0.5, rationale=text, artefacts=(Artefact(kind=text, label=text),))
    trajectory.verdicts = {text: OpenVerdict(components={text: component}, judge=text, rationale=text, flags=(text,))}


def store_site_run(
    folder: Path,
    data: ReportData,
    change: Callable[[Trajectory], None] = lambda trajectory: None,
    *,
    request_id: str = REQUEST,
    guidance: str = "search the facts first",
    samples: int = 3,
    redraws: int = 0,
    lag: int = 0,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a run of two steps: in the first a group teaches a card, in the second its request recalls it.

    In the second step, `redraws` further attempts have this card in their prompts. Groups are of a round `lag` steps before
    that which trains on them.
    """
    judged = [t for t in (*data.after, *data.before) if t.verdict is not None and t.reward is not None]
    settings = {"reward": {}, "learner": {"advantage": {"ddof": 1}}, "policy": {"model": "elsewhere"}} | (config or {})
    with RunStore.open(str(folder), settings) as store:
        for step in (1, 2):
            members = judged[(step - 1) * samples : step * samples]
            for sample, trajectory in enumerate(members):
                key = {"step": step - lag, "request_id": request_id, "sample": sample, "attempt": 0}
                trajectory.key = trajectory.key.model_copy(update=key)
                for ref in (trajectory.rendered, *(hit.image for hit in trajectory.images.values())):
                    _keep(store, data, ref)
                change(trajectory)
            group = Group(request_id, step - lag, members)
            store.put_group(group, step - 1)
            card = Experience(
                trigger=guidance,
                summary=guidance,
                guidance={"search_strategy": (guidance,)},
                step=1,
                request_id=request_id,
                best=f"1/{request_id}/0/0",
                worst=f"1/{request_id}/1/0",
                gap=0.4,
            )
            lesson = Lesson(request_id=request_id, bundle=0, experience=card, similarity=0.9, own=step == 1)
            moved = MovedToken(trajectory=f"{step}/{request_id}/0/0", position=62, gap=4.0)
            state = lesson_state([lesson], [moved])
            if step == 2:  # The first is as a run of before truths were kept.
                state["truths"] = {request_id: truth_of(data).model_dump(mode="json")}
                drawn = [_guided(t, samples + place) for place, t in enumerate(members[:redraws])]
                state |= redraw_state(store, step, [Group(request_id, step - lag, drawn)] if drawn else [])
            store.commit_step(step, [group], {"reward_mean": 0.4 + step / 10}, f"s{step}", loop=state)
        kept = judged[2 * samples :]
        store.put_requests("heldout", data.requests)
        store.put_trajectories("heldout-final", kept)
        for request in data.requests:
            _keep(store, data, request.truth_image)
        for trajectory in kept:
            _keep(store, data, trajectory.rendered)
    return folder


def truth_of(data: ReportData) -> ImageRef:
    """Return the ground truth of the request that the second step of a run trained on."""
    return next(request.truth_image for request in data.requests if request.truth_image is not None)


def _guided(trajectory: Trajectory, sample: int) -> Trajectory:
    """Return a trajectory as a guided re-draw with another number."""
    return replace(
        trajectory,
        key=trajectory.key.model_copy(update={"sample": sample}),
        provenance=trajectory.provenance.model_copy(update={"split": f"{GUIDED}0"}),
    )


def _keep(store: RunStore, data: ReportData, ref: ImageRef | None) -> None:
    if ref is not None:
        store.images.put(data.load_image(ref), width=ref.width, height=ref.height)


@contextmanager
def open_run(folder: Path, scratch: Path) -> Iterator[RunSource]:
    """Open a run as the viewer does, with a complete index."""
    scratch.mkdir()
    source = RunSource(str(folder), scratch)
    try:
        while source.refresh():
            pass
        yield source
    finally:
        source.close()


def client_of(*sources: ViewSource) -> TestClient:
    """Return a client of the site over runs."""
    return TestClient(create_app(sources, hosts={"testserver"}), base_url="http://testserver")


def addresses(index: RunIndex) -> tuple[list[str], list[str]]:
    """Return the addresses of all groups and of all trajectories of the training, the first step first."""
    groups = sorted(index.groups().items, key=lambda group: (group.set != "train", group.step))
    return [g.address for g in groups], [m.address for g in groups for m in g.members]


def links_of(html: str, page: str) -> list[str]:
    """Return the addresses of links to a page, in order."""
    return re.findall(rf'href="(/[^"]*/{page}[^"]*)"', html)
