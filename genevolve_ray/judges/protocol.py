"""Interfaces of judges and summarizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from genevolve_ray.engines.protocol import ChatModel
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair
from genevolve_ray.records.verdict import Verdict


class Judge(Protocol):
    """Define a judge of rendered programs. `identity` names it and its settings in every artifact.

    A judge may declare `deterministic = True`: the same arguments give the same verdict, so equal pictures of equal
    programs are judged once. A model behind a server is rarely deterministic, even at temperature 0.
    """

    identity: str

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return the verdict on an encoded image, compared with the encoded truth image.

        The image dimensions come from request, image and truth alone. The sufficiency of the program may use the
        program and the hits of its references (in ordinal order).

        Raises InfraFailure when the judge gave up after bounded retries: a failed judgment is missing, never 0.
        """
        ...


class Summariser(Protocol):
    """Define a summarizer of best-worst pairs. `identity` names it and its settings."""

    identity: str

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return a bundle that carries behavior, not answers: `check_experience` passes for request and pair.

        Where the two attempts do not differ, the best one's behavior is kept. Step, request id, both attempts and the
        gap are recorded in the bundle.

        Raises InfraFailure when the summarizer gave up after bounded retries: the pair is then left out.
        """
        ...


@runtime_checkable
class LooksAtReferences(Protocol):
    """Define a judge that also uses the pictures of references.

    Its service passes the run's image store to it once.
    """

    def use_images(self, images: ImageStore) -> None:
        """Keep the store."""
        ...


@runtime_checkable
class AsksChatModels(Protocol):
    """Define a judge that asks chat models, which `genevolve serve judge` can put behind HTTP."""

    def chat_models(self) -> Sequence[ChatModel]:
        """Return the models, each once."""
        ...
