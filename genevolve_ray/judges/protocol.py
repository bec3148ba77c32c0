"""Interfaces of judges and summarizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from genevolve_ray.engines.protocol import ChatModel
from genevolve_ray.records.components import KSCORE_SCALES, AnyVerdict, ComponentRange, OpenVerdict
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair


class Judge(Protocol):
    """Define a judge of rendered programs. `identity` names it and its settings in every artifact.

    A judge may declare `deterministic = True`: the same arguments give the same verdict, so equal pictures of equal
    programs are judged once. A model behind a server is rarely deterministic, even at temperature 0.

    It may declare `components`, a `ComponentRange` by the name of each component of its verdicts; by default these are those of
    a KScore verdict. With `needs_truth = False` it is never given a ground-truth image, and requests may lack one. With
    `gives_kscore = False` its verdicts are open ones, though they have a component `kscore`. Where one of these depends on
    the settings, it is a class method that gets them, and the judge keeps them as `config`.

    A class method `check_request(settings, request)`, if there is one, raises UserFault for a request that lacks what the
    judge needs. The start and `genevolve doctor` ask it of the first request of each part.
    """

    identity: str

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Return the verdict on an encoded image, compared with the encoded truth image.

        The image dimensions come from request, image and truth alone. The sufficiency of the program may use the
        program and the hits of its references (in ordinal order). `truth` is b"" for a judge without need of it.

        Raises InfraFailure when the judge gave up after bounded retries: a failed judgment is missing, never 0.
        """
        ...


@dataclass(frozen=True)
class Attempt:
    """Hold one attempt of a group as its judges see it: the encoded picture, the program, and the program's references."""

    image: bytes
    program: Program
    references: Sequence[ImageHit] = ()


@runtime_checkable
class GroupJudge(Protocol):
    """Define a judge that needs the attempts of a whole group, to compare them; one of the further judges of a run.

    `identity`, `components`, `needs_truth` and `config` are those of a `Judge`. An evaluation plays each request once, and
    policies fail, so a group may have a single attempt. A component that an attempt without rivals lacks is declared with
    `sometimes`.
    """

    identity: str

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> Sequence[OpenVerdict]:
        """Return a verdict on each attempt at a request, in their order; `truth` is as in `Judge.judge`.

        Raises InfraFailure when the judge gave up after bounded retries: the whole judgment is then missing, never 0.
        """
        ...


def judges_groups(judge: Any) -> bool:
    """Return whether a judge, or the class of one, judges groups."""
    return hasattr(judge, "judge_group")


def declared_components(judge: Any, settings: Any = None) -> Mapping[str, ComponentRange]:
    """Return the components that a judge declares; for a class, give its settings."""
    said = getattr(judge, "components", KSCORE_SCALES)
    found: Mapping[str, ComponentRange] = said(settings or judge.config) if callable(said) else said
    return found


def needs_truth(judge: Any, settings: Any = None) -> bool:
    """Return whether a judge compares with a ground-truth image; for a class, give its settings."""
    said = getattr(judge, "needs_truth", True)
    return bool(said(settings or judge.config) if callable(said) else said)


def gives_kscore(judge: Any, settings: Any = None) -> bool:
    """Return whether the verdicts of a judge have the four grades of a KScore; for a class, give its settings."""
    said = getattr(judge, "gives_kscore", None)
    if said is None:
        return "kscore" in declared_components(judge, settings)
    return bool(said(settings or judge.config) if callable(said) else said)


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
