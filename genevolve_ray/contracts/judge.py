"""The contract of a judge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genevolve_ray.contracts.running import (
    NotAsked,
    check_cancelled,
    check_identity,
    check_same_identity,
    raised_by,
    run_all,
)
from genevolve_ray.contracts.samples import NOT_A_PICTURE, REQUEST, picture
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.protocol import Judge, declared_components, needs_truth
from genevolve_ray.records.components import AnyVerdict, Component, ComponentRange, components_of
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import ScoreFormula


def _program() -> Program:
    prompt = "three lanterns from the first reference image in one row at the left; the text 'SOL RIM' on a sign"
    return Program(gen_prompt=prompt, reference_images=(ReferenceImage(img_id="IMG_001", note="looks"),))


def _hit() -> ImageHit:
    image = reference(picture(), width=128, height=128)
    return ImageHit(title="official photo", url="https://example.org/1.png", image=image)


@dataclass(frozen=True)
class JudgeCase:
    """Hold the inputs of the judge checks.

    Attributes:
        request: the request; a judge that reads its `meta` needs one from its own source.
        truth: the encoded ground-truth image of the request.
        program: the program that was rendered.
        references: the images that the references of the program name.
        secrets: texts that must not appear anywhere, such as tokens.
    """

    request: Request = REQUEST
    truth: bytes = field(default_factory=picture)
    program: Program = field(default_factory=_program)
    references: tuple[ImageHit, ...] = field(default_factory=lambda: (_hit(),))
    secrets: Sequence[str] = ()


async def _judge(judge: Judge, case: JudgeCase, image: bytes, truth: bytes | None = None) -> AnyVerdict:
    given = (case.truth if truth is None else truth) if needs_truth(judge) else b""
    judged = judge.judge(case.request, image, given, case.program, case.references)
    verdict: AnyVerdict = await checked("judge", judge, judged)
    return verdict


async def check_verdict(judge: Judge, case: JudgeCase) -> None:
    """Check that a verdict has every score in its declared range, and names the judge."""
    verdict = await _judge(judge, case, picture("rectangle", "blue"))
    # A verdict may have been built without validation.
    try:
        type(verdict).model_validate(verdict.model_dump())
    except ValueError as error:
        raise AssertionError(f"the verdict is out of range: {error}") from error
    check_declared(components_of(verdict), declared_components(judge))
    assert verdict.judge == judge.identity, f"the verdict names {verdict.judge!r}, but the judge is {judge.identity!r}"


def check_declared(found: Mapping[str, Component], declared: Mapping[str, ComponentRange]) -> None:
    """Check the components of a verdict against those that the judge declares (attribute `components`)."""
    unknown = sorted(set(found) - set(declared))
    assert not unknown, f"the verdict has {', '.join(unknown)}, but `components` declares {', '.join(declared)}"
    lacking = [name for name, scale in declared.items() if name not in found and not scale.sometimes]
    assert not lacking, f"the verdict lacks {', '.join(lacking)}, which `components` declares without `sometimes`"
    for name, one in found.items():
        wanted = declared[name]
        assert (one.low, one.high) == (wanted.low, wanted.high), (
            f"{name} is in [{one.low:g}, {one.high:g}], but `components` declares [{wanted.low:g}, {wanted.high:g}]"
        )


async def check_truth_scores_best(judge: Judge, case: JudgeCase) -> None:
    """Check that the ground-truth image itself scores no worse than another image, where a judge compares with it."""
    if not needs_truth(judge) or "kscore" not in declared_components(judge):
        raise NotAsked("it gives no KScore against a ground-truth image")
    pictures = (case.truth, picture("rectangle", "black"))
    same, other = [
        components_of(await _judge(judge, case, image), ScoreFormula.PAPER)["kscore"].value for image in pictures
    ]
    assert same >= other, f"the ground-truth image scores {same:g}, another image {other:g}"


async def check_deterministic(judge: Judge, case: JudgeCase) -> None:
    """Check that the same arguments give the same verdict, if the judge declares that it is deterministic."""
    if not getattr(judge, "deterministic", False):
        raise NotAsked("it does not declare `deterministic = True`")
    first, second = [await _judge(judge, case, picture("rectangle", "blue")) for _ in range(2)]
    assert first == second, "it declares to be deterministic, but one picture received two verdicts"


async def check_unreadable(judge: Judge, case: JudgeCase) -> None:
    """Check that an unreadable image or ground-truth image is an InfraFailure, never a score.

    "Unreadable" means empty data, or data that is not an image.
    """
    pictures = [("a rendered file that is not an image", NOT_A_PICTURE, case.truth)]
    if needs_truth(judge):
        pictures += [
            ("a ground-truth file that is not an image", picture(), NOT_A_PICTURE),
            ("an empty ground-truth image", picture(), b""),
        ]
    for what, image, truth in pictures:
        error = await raised_by(_judge(judge, case, image, truth))
        assert error is not None, f"{what} received a verdict"
        assert isinstance(error, InfraFailure), f"{what} raised {type(error).__name__}: {error}"
        assert not any(secret in str(error) for secret in case.secrets), "the error contains a secret of the settings"


async def check_concurrent(judge: Judge, case: JudgeCase) -> None:
    """Check that four concurrent judgments each give a verdict of this judge."""
    images = [picture(shape, colour) for shape in ("ellipse", "rectangle") for colour in ("red", "blue")]
    verdicts = await asyncio.gather(*(_judge(judge, case, image) for image in images))
    makers = {verdict.judge for verdict in verdicts}
    assert makers == {judge.identity}, f"verdicts of four concurrent calls name {makers}"


async def check_names_itself(judge: Judge, case: JudgeCase) -> None:
    """Check that the judge has an identity that is stable and contains no secret."""
    check_identity(judge, case.secrets)
    identity = judge.identity
    await _judge(judge, case, picture())
    check_same_identity(judge, identity)


async def check_cancellation(judge: Judge, case: JudgeCase) -> None:
    """Check that a canceled judgment ends and leaves nothing running."""
    await check_cancelled(lambda: _judge(judge, case, picture()))


CHECKS = (
    check_verdict,
    check_truth_scores_best,
    check_deterministic,
    check_unreadable,
    check_concurrent,
    check_names_itself,
    check_cancellation,
)


async def check_judge(judge: Judge, case: JudgeCase | None = None) -> None:
    """Run every check against one judge. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, judge, case or JudgeCase())
