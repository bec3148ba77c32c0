"""Renderer and judge as services over the image store: pixels travel by reference, never through the driver."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.ports import GroupJudgePort, JudgePort, RenderedAttempt
from genevolve_ray.evolution.sharing import SharedWork
from genevolve_ray.judges.protocol import (
    Attempt,
    GroupJudge,
    Judge,
    LooksAtReferences,
    declared_components,
    gives_kscore,
    judges_groups,
    needs_truth,
)
from genevolve_ray.records.components import AnyVerdict, OpenVerdict
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.plugin_results import checked, checked_group
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import EXAMINATION_FAILED
from genevolve_ray.renderers.protocol import Renderer


def _pixels(images: ImageStore, ref: ImageRef) -> bytes:
    """Return the bytes of a stored picture.

    Raises InfraFailure when they are missing or damaged: the next attempt fetches or renders the picture again.
    """
    try:
        return images.get(ref)
    except OSError as error:
        raise InfraFailure(f"a stored picture cannot be read: {error}") from error


def _truth_of(request: Request, judge: str, images: ImageStore) -> bytes:
    if request.truth_image is None:
        raise InfraFailure(f"request {request.id} has no ground-truth image, which {judge} needs")
    return _pixels(images, request.truth_image)


def _deterministic(plugin: object) -> bool:
    return bool(getattr(plugin, "deterministic", False))


def _examined(verdict: AnyVerdict) -> bool:
    """Return whether a verdict is whole: a sample without a part of it is drawn and judged again."""
    return EXAMINATION_FAILED not in verdict.flags


class RenderService:
    """Render with image references as input and output; a deterministic renderer draws equal programs once."""

    def __init__(self, renderer: Renderer, images: ImageStore) -> None:
        """Serve `renderer` over `images`."""
        self.identity = renderer.identity
        self.takes_references: bool = getattr(renderer, "takes_references", True)
        self._renderer, self._images = renderer, images
        self._drawn: SharedWork[ImageRef] | None = SharedWork() if _deterministic(renderer) else None

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        """Render a program and store the picture.

        Raises InfraFailure when the generator gave up, PluginResultFault when it returns no bytes.
        """
        if self._drawn is None:
            return await self._draw(prompt, references, seed)
        arguments = prompt, tuple(reference.sha256 for reference in references), seed
        return await self._drawn.result(arguments, lambda: self._draw(prompt, references, seed), self._readable)

    def _readable(self, picture: ImageRef) -> bool:
        try:
            self._images.get(picture)
        except OSError:
            return False
        return True

    async def _draw(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        pictures = [_pixels(self._images, r) for r in references]
        data: bytes = await checked("renderer", self._renderer, self._renderer.render(prompt, pictures, seed))
        try:
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
        except Exception as error:
            # Pillow raises anything on bytes that are no picture.
            raise InfraFailure(f"{self.identity} returned {len(data)} bytes that are no picture") from error
        return self._images.put(data, width=width, height=height)


class GradeService:
    """Grade image references on the scale of another benchmark."""

    def __init__(self, judge: Any, images: ImageStore) -> None:
        """Serve `judge` over `images`."""
        self.identity: str = judge.identity
        self._judge, self._images = judge, images

    async def grade(self, prompt: Any, image: ImageRef) -> Any:
        """Grade a picture. Raises InfraFailure when it cannot be graded."""
        return await self._judge.grade(prompt, _pixels(self._images, image))


class JudgeService:
    """Judge image references; a deterministic judge judges equal pictures of equal programs once."""

    def __init__(self, judge: Judge, images: ImageStore) -> None:
        """Serve `judge` over `images`. Raises UserFault for a judge of groups."""
        if judges_groups(judge):
            raise UserFault(f"{judge.identity} judges groups, which only a run's further judges (`judges`) may do")
        self.identity = judge.identity
        self.components, self.gives_kscore = declared_components(judge), gives_kscore(judge)
        self._needs_truth = needs_truth(judge)
        if isinstance(judge, LooksAtReferences):
            judge.use_images(images)
        self._judge, self._images = judge, images
        self._judged: SharedWork[AnyVerdict] | None = SharedWork() if _deterministic(judge) else None

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Judge a picture, against its truth where the judge needs it.

        Raises InfraFailure when it cannot be judged, PluginResultFault when the judge returns no verdict.
        """
        if self._judged is None:
            return await self._look(request, image, program, references)
        arguments = request.model_dump_json(), image.sha256, program, tuple(references)
        return await self._judged.result(arguments, lambda: self._look(request, image, program, references), _examined)

    async def _look(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        truth = _truth_of(request, self.identity, self._images) if self._needs_truth else b""
        pixels = _pixels(self._images, image)
        judged = self._judge.judge(request, pixels, truth, program, references)
        verdict: AnyVerdict = await checked("judge", self._judge, judged)
        return verdict


class GroupJudgeService:
    """Judge groups of image references."""

    gives_kscore = False

    def __init__(self, judge: GroupJudge, images: ImageStore) -> None:
        """Serve `judge` over `images`."""
        self.identity = judge.identity
        self.components = declared_components(judge)
        self._needs_truth = needs_truth(judge)
        if isinstance(judge, LooksAtReferences):
            judge.use_images(images)
        self._judge, self._images = judge, images

    async def judge_group(self, request: Request, attempts: Sequence[RenderedAttempt]) -> Sequence[OpenVerdict]:
        """Judge the pictures of a group, against their truth where the judge needs it.

        Raises:
            InfraFailure: when they cannot be judged.
            PluginResultFault: when the judge returns no list of as many open verdicts.
        """
        truth = _truth_of(request, self.identity, self._images) if self._needs_truth else b""
        seen = [Attempt(_pixels(self._images, one.image), one.program, one.references) for one in attempts]
        return await checked_group(self._judge, self._judge.judge_group(request, truth, seen), len(seen))


def judge_service(judge: Judge | GroupJudge, images: ImageStore) -> JudgeService | GroupJudgeService:
    """Return the service of a judge, of pictures or of groups."""
    return GroupJudgeService(judge, images) if isinstance(judge, GroupJudge) else JudgeService(judge, images)


def kscore_judge(judge: JudgePort) -> JudgePort:
    """Return a judge whose KScores a command writes.

    Raises:
        UserFault: for one that gives none. Of a judge with an environment of its own, this is known once it runs.
    """
    if not gives_kscore(judge):
        named = ", ".join(declared_components(judge))
        raise UserFault(f"{judge.identity} gives no KScore, only {named}: name another judge")
    return judge


def judges_of_pictures(judges: Mapping[str, JudgePort | GroupJudgePort]) -> dict[str, JudgePort]:
    """Return judges by name, all of which judge pictures one by one.

    Raises:
        UserFault: naming one that judges groups: outside of a run there are none.
    """
    found: dict[str, JudgePort] = {}
    for name, judge in judges.items():
        if isinstance(judge, GroupJudgePort):
            raise UserFault(f"judges.{name} judges groups, which only a run has: leave it out here")
        found[name] = judge
    return found
