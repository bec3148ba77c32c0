"""Stage `truths`: a strong generator renders the teacher's program, and a grader decides whether the picture can be a truth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from genevolve_ray.data.build.audit import AuditRow, read_picture
from genevolve_ray.data.build.grading import ChatGrader, Grades, check_scales
from genevolve_ray.data.build.stage import PictureUnusable, RowInterrupted
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.renderers.protocol import Renderer

STAGE = "truths"
SCALES = ("compliance", "reference_use", "coherence", "quality")
"""The four grades of a truth, from 1 to 5 (third-party reading of the paper; the rubric is this project's)."""


class TruthsConfig(Config):
    """Configure the rendering of truths."""

    seed: int = Field(default=1, ge=0)
    """Seed of the renderings."""
    max_bytes: int = Field(default=64 << 20, ge=1024)
    """Largest encoded picture that is accepted."""


class TruthRow(AuditRow):
    """Hold an audited trajectory with the picture of its program, and the grades of that picture.

    `truth` is the JSON text of an `ImageRef`, "" before this stage.
    """

    truth: str = ""
    truth_grades: dict[str, Any] = Field(default_factory=dict)
    truth_rationale: str = ""
    truth_grader: str = ""
    renderer: str = ""
    render_seed: int = 0

    @property
    def truth_image(self) -> ImageRef:
        """The stored picture. Raises ValueError for a row without one."""
        return ImageRef.model_validate_json(self.truth)


class TruthGrader(Protocol):
    """Define a grader of truth pictures. `identity` names it in every row."""

    identity: str

    async def grade(self, row: TruthRow, image: bytes, references: Sequence[bytes]) -> Grades:
        """Return grades on all `SCALES`. Raises InfraFailure when it gave up after bounded retries."""
        ...


class TruthsStage:
    """Implement `data.build.stage.RowStage`."""

    def __init__(self, config: TruthsConfig, renderer: Renderer, grader: TruthGrader, images: ImageStore) -> None:
        """Render with `renderer`, grade with `grader`; pictures are read from and stored in `images`."""
        self._config, self._renderer, self._grader, self._images = config, renderer, grader, images
        self._limits = PictureLimits(output="PNG", max_bytes=config.max_bytes)

    async def do(self, row: TruthRow) -> TruthRow:
        """Return the row with its picture and grades; nothing is rejected here.

        Raises:
            PictureUnusable: when a reference is missing, or the drawn picture cannot be opened.
            InfraFailure: when renderer or grader gave up; a picture that was drawn is kept.
            UserFault: when the grader does not grade all scales.
        """
        references = [await asyncio.to_thread(read_picture, self._images, hit.image) for hit in row.references]
        if not row.truth:
            row = await self._drawn(row, references)
        picture = await asyncio.to_thread(read_picture, self._images, row.truth_image)
        try:
            grades = check_scales(await self._grader.grade(row, picture, references), SCALES)
        except InfraFailure as failure:
            raise RowInterrupted(row, failure) from failure
        return row.model_copy(
            update={
                "truth_grades": dict(grades.values),
                "truth_rationale": grades.rationale,
                "truth_grader": self._grader.identity,
            }
        )

    async def _drawn(self, row: TruthRow, references: Sequence[bytes]) -> TruthRow:
        seed = derive_seed(self._config.seed, STAGE, row.id) % (1 << 31)
        drawn = await self._renderer.render(row.program.gen_prompt, references, seed)
        try:
            picture = await asyncio.to_thread(clean_picture, drawn, self._limits)
        except ImageRefused as error:
            raise PictureUnusable(f"{self._renderer.identity} drew no usable picture of {row.id}: {error}") from error
        ref = await asyncio.to_thread(
            self._images.put, picture.data, width=picture.width, height=picture.height, media_type=picture.media_type
        )
        return row.model_copy(
            update={"truth": ref.model_dump_json(), "renderer": self._renderer.identity, "render_seed": seed}
        )


class ChatTruthGrader:
    """Grade truths through a vision model."""

    def __init__(self, grader: ChatGrader) -> None:
        """Grade with a `ChatGrader` over `SCALES`."""
        self._grader = grader
        self.identity = grader.identity

    async def grade(self, row: TruthRow, image: bytes, references: Sequence[bytes]) -> Grades:
        """Return the grades. Raises InfraFailure when a picture cannot be opened or the model gave up."""
        shown = {"Image 1, generated": image}
        shown |= {f"Image {n}, reference {n - 1}": data for n, data in enumerate(references, 2)}
        return await self._grader.grade({"request": row.prompt, "prompt": row.program.gen_prompt}, shown)

    async def aclose(self) -> None:
        """Release the resources of the model."""
        await self._grader.aclose()
