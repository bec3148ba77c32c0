"""What a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import Verdict


class Judge(Protocol):
    """Scores one rendered program. `identity` names it and its settings in every artefact."""

    identity: str

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return the verdict on an encoded image, beside the encoded truth image.

        The image dimensions come from request, image and truth alone; the sufficiency of the program may look at the
        program and at what its references stand for (in ordinal order).

        Raises InfraFailure when the judge gave up after bounded retries: a failed judgement is missing, never 0.
        """
        ...
