"""The three stages of a benchmark: the agent answers, a generator renders, a judge scores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genevolve_ray.bench.jobs.job import RowEnd
from genevolve_ray.bench.jobs.pictures import STORE, take_picture
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.inference import AgentPort
from genevolve_ray.evolution.ports import JudgePort, RenderPort, RolloutTask
from genevolve_ray.records.components import graded
from genevolve_ray.records.images import ImageRef, ImageStore, reference
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.records.program import IMAGE_ID, Program, ReferenceImage
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.published.names import locate
from genevolve_ray.records.published.rejections import RowFault
from genevolve_ray.records.published.results import AgentRow, EvaluatedRow, RenderedRow
from genevolve_ray.records.published.writers import agent_row, evaluated_row, rendered_row
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, SampleKey
from genevolve_ray.records.verdict import UNEXAMINED, ScoreFormula
from genevolve_ray.remote.client import ServiceRefusal

SPLIT = "inference"
T = TypeVar("T")
Made = tuple[dict[str, Any], RowEnd]


async def bounded(work: Callable[[], Awaitable[T]], tries: int) -> T:
    """Retry work that the outside world may fail, at most `tries` times. Raises the last InfraFailure."""
    for attempt in range(1, tries + 1):
        try:
            return await work()
        except ServiceRefusal:
            raise  # A retry would be refused as well.
        except InfraFailure:
            if attempt == tries:
                raise
    raise AssertionError("tries must be at least 1")


class DirectStage:
    """Skip the agent: the generator receives the request itself, as a baseline. Rows have no fields of an agent."""

    name, kind, results = "agent", ResultRow, "results.json"

    async def do(self, row: ResultRow) -> Made:
        """Return the row unchanged but marked."""
        return {**row.values, PROVENANCE: {**row.provenance, "policy": "direct"}}, RowEnd.DONE

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether no agent processed the row."""
        return ResultRow.read(kept).is_direct


class AgentStage:
    """Let the policy answer each request. An episode that failed for external reasons is repeated with other seeds."""

    name, kind, results = "agent", AgentRow, "results.json"

    def __init__(self, agent: AgentPort, sampling: SamplingParams, *, policy: str, seed: int, tries: int) -> None:
        """Run episodes with `agent`; `policy` is its identity, and seeds derive from `seed` and the request's id."""
        self._agent, self._sampling, self._policy = agent, sampling, policy
        self._seed, self._tries = seed, tries

    async def do(self, row: ResultRow) -> Made:
        """Return the row with the agent's answer to its request."""
        request = row.request()
        for attempt in range(self._tries):
            task = RolloutTask(
                request=request,
                key=SampleKey(step=0, request_id=row.id, sample=0, attempt=attempt),
                seed=derive_seed(self._seed, SPLIT, row.id, attempt),
                render_seed=render_seed(self._seed, row.id),
                sampling=self._sampling,
                split=SPLIT,
            )
            trajectory = await self._agent.rollout(task)
            if not trajectory.repeatable:
                break
        ends = {Outcome.INFRA_FAILURE: RowEnd.FAILED, Outcome.POLICY_FAILURE: RowEnd.MISSED}
        values = agent_row(
            row.values,
            trajectory,
            opening=self._agent.opening(request),
            local_path=lambda img_id, hit: _stored(hit.image),
            shown_path=_stored,
            provenance={"policy": self._policy, "attempt": trajectory.key.attempt},
        )
        return values, ends.get(trajectory.outcome, RowEnd.DONE)

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return True: a finished episode needs no further file."""
        return True


class RenderStage:
    """Render each program with a generator into `images/{id}.png`. Rows without a program are failed."""

    name, kind, results = "render", RenderedRow, "results.json"

    def __init__(
        self,
        renderer: RenderPort,
        images: ImageStore,
        folder: Path,
        *,
        roots: Sequence[Path],
        seed: int,
        tries: int,
    ) -> None:
        """Render into `folder` through the image store; references are read from below `roots`."""
        self._renderer, self._images, self._folder, self._roots = renderer, images, folder, tuple(roots)
        self._seed, self._tries = seed, tries

    async def do(self, row: ResultRow) -> Made:
        """Return the row with its image."""
        seed = render_seed(self._seed, row.id)

        def result(error: str = "") -> dict[str, Any]:
            ignored = not row.is_direct and not getattr(self._renderer, "takes_references", True)
            return rendered_row(
                row.values,
                renderer=self._renderer.identity,
                render_seed=seed,
                error=error,
                references_ignored=ignored,
            )

        if not row.is_direct and not row.has_program:
            told = row.values.get("error")
            reason = f": {told}" if isinstance(told, str) and told else ""
            return result(f"the row has no program{reason}"), RowEnd.MISSED
        try:
            agent = AgentRow.read(row.values)
            pictures = [await self._reference(r.local_path) for r in agent.references]
            prompt = row.prompt if row.is_direct else agent.gen_prompt
            made = await bounded(lambda: self._renderer.render(prompt, pictures, seed), self._tries)
            await asyncio.to_thread(write_bytes, self._folder / row.picture, self._images.get(made))
        except (InfraFailure, RowFault, ImageRefused) as error:
            return result(str(error)), RowEnd.FAILED
        return result(), RowEnd.DONE

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the image still exists."""
        return (self._folder / ResultRow.read(kept).picture).is_file()

    async def _reference(self, path: str) -> ImageRef:
        return await take_picture(locate(path, self._roots, "local_path"), self._images)


class JudgeStage:
    """Judge each image against the ground truth. A row that cannot be judged has no scores, which is not 0."""

    name, kind, results = "judge", EvaluatedRow, "results_eval.json"

    def __init__(
        self,
        judge: JudgePort,
        images: ImageStore,
        *,
        roots: Sequence[Path],
        formula: ScoreFormula,
        tries: int,
    ) -> None:
        """Judge through the image store; images and ground truths are read from below `roots`."""
        self._judge, self._images, self._roots = judge, images, tuple(roots)
        self._formula, self._tries = formula, tries

    async def do(self, row: ResultRow) -> Made:
        """Return the row with its scores."""
        rendered = RenderedRow.read(row.values)
        if not rendered.success:
            return self._result(row), RowEnd.MISSED
        try:
            inputs = await self.inputs(row)
            verdict = graded(await bounded(lambda: self._judge.judge(*inputs), self._tries))
        except (InfraFailure, RowFault, ImageRefused) as error:
            return self._result(row, error=str(error)), RowEnd.FAILED
        flags = [flag.partition(":") for flag in verdict.flags]
        ours: dict[str, Any] = {}
        if verdict.examined:
            ours["sufficiency"] = verdict.text.model_dump()
        if verdict.text_rationale:
            ours["sufficiency_rationale"] = verdict.text_rationale
        if told := [flag for flag in verdict.flags if flag != UNEXAMINED]:
            ours["flags"] = told
        values = evaluated_row(
            row.values,
            judge=verdict.judge,
            formula=self._formula,
            scores=verdict.image,
            rationale=verdict.rationale,
            off_grid=[name for code, _, name in flags if code in ("off-grid", "clipped") and name],
            provenance=ours,
        )
        return values, RowEnd.DONE

    async def inputs(self, row: ResultRow, *, truth: bool = True) -> tuple[Request, ImageRef, Program, list[ImageHit]]:
        """Return what a judge is asked about a rendered row: request, picture, program and the hits of its references.

        Raises:
            RowFault, ImageRefused: for a picture that is missing or unusable.
        """
        rendered = RenderedRow.read(row.values)
        image = await take_picture(rendered.picture_file(self._roots), self._images)
        compared = await take_picture(rendered.truth_file(self._roots), self._images) if truth else None
        program, hits = await self._program(row)
        return row.request(compared), image, program, hits

    def intact(self, kept: Mapping[str, Any]) -> bool:
        """Return True: scores need no further file."""
        return True

    def _result(self, row: ResultRow, error: str = "") -> dict[str, Any]:
        return evaluated_row(row.values, judge=self._judge.identity, formula=self._formula, error=error)

    async def _program(self, row: ResultRow) -> tuple[Program, list[ImageHit]]:
        """Return the program that was rendered; without an agent, the request itself without references."""
        if row.is_direct:
            return Program(gen_prompt=row.prompt, reference_images=()), []
        agent = AgentRow.read(row.values)
        # Other tools have ids of other forms, or none.
        ids = [r.img_id if IMAGE_ID.fullmatch(r.img_id) else f"IMG_{n:03d}" for n, r in enumerate(agent.references, 1)]
        listed = tuple(ReferenceImage(img_id=i, note=r.note) for i, r in zip(ids, agent.references, strict=True))
        hits = [
            ImageHit(title=r.title, url=r.url, page_url=r.page_url, image=await self._seen(r.local_path))
            for r in agent.references
        ]
        return Program(gen_prompt=agent.gen_prompt, reference_images=listed), hits

    async def _seen(self, path: str) -> ImageRef:
        """Return a reference's image, or an empty one: judges read the metadata of references, not their pixels."""
        try:
            return await take_picture(locate(path, self._roots, "local_path"), self._images)
        except (RowFault, ImageRefused):
            return reference(b"", width=0, height=0)


def _stored(ref: ImageRef) -> str:
    """Return the path of a picture relative to the output folder."""
    return f"{STORE}/{ref.sha256[:2]}/{ref.file_name}"


def render_seed(seed: int, row_id: str) -> int:
    """Return the seed that a request is rendered with, the same for every policy, so that differences are paired."""
    return derive_seed(seed, "render", SPLIT, row_id)
