"""What a judge and a summariser are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair
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


class Summariser(Protocol):
    """Says what a best-worst pair teaches. `identity` names it and its settings."""

    identity: str

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return a bundle that carries behaviour, not answers: `check_experience` passes for request and pair.

        Where the two attempts do not differ, the best one's behaviour is kept. Step, request id, both attempts and the
        gap are recorded in the bundle.

        Raises InfraFailure when the summariser gave up after bounded retries: the pair is then left out.
        """
        ...


@runtime_checkable
class LooksAtReferences(Protocol):
    """A judge that also looks at the pictures of references: its service hands it the run's image store once."""

    def use_images(self, images: ImageStore) -> None:
        """Take the store."""
        ...
