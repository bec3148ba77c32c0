"""The contract of a renderer.

A renderer may declare two optional attributes. `deterministic`: the same prompt, references and seed give the same
bytes. `takes_references`: False for a generator that uses the prompt alone.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from genevolve_ray.contracts.running import (
    NotAsked,
    check_cancelled,
    check_identity,
    check_same_identity,
    raised_by,
    run_all,
)
from genevolve_ray.contracts.samples import NOT_A_PICTURE, picture
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.renderers.protocol import Renderer


@dataclass(frozen=True)
class RendererCase:
    """Hold the inputs of the renderer checks.

    Attributes:
        prompt: names the first reference image.
        max_references: most references that a program may have (2 in the released protocol).
        secrets: texts that must not appear anywhere, such as tokens.
    """

    prompt: str = "a lantern as the first reference image shows, in the middle, on a pale ground"
    max_references: int = 2
    secrets: Sequence[str] = ()


async def _render(renderer: Renderer, case: RendererCase, references: Sequence[bytes], seed: int) -> bytes:
    data: bytes = await checked("renderer", renderer, renderer.render(case.prompt, references, seed))
    return data


def _references(count: int) -> list[bytes]:
    return [picture("ellipse", "red"), picture("rectangle", "blue"), picture("ellipse", "green")][:count]


def _takes_references(renderer: Renderer) -> bool:
    return bool(getattr(renderer, "takes_references", True))


def _check_png(data: bytes, what: str) -> None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, size = image.format, image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise AssertionError(f"{what} gave {len(data)} bytes that are not an image: {error}") from error
    assert kind == "PNG", f"{what} gave a {kind}, not a PNG"
    assert min(size) >= 8, f"{what} gave an image of {size[0]} x {size[1]} pixels"


async def check_picture(renderer: Renderer, case: RendererCase) -> None:
    """Check that the result is a PNG that decodes."""
    _check_png(await _render(renderer, case, _references(1), 1), "one reference")


async def check_references(renderer: Renderer, case: RendererCase) -> None:
    """Check that the renderer accepts every number of references that a program may have."""
    if not _takes_references(renderer):
        raise NotAsked("it takes no references")
    for count in range(1, case.max_references + 1):
        references = (_references(3) * count)[:count]
        _check_png(await _render(renderer, case, references, 1), f"{count} references")


async def check_references_matter(renderer: Renderer, case: RendererCase) -> None:
    """Check that another reference gives another image."""
    if not _takes_references(renderer):
        raise NotAsked("it takes no references")
    if not getattr(renderer, "deterministic", False):
        raise NotAsked("only a deterministic renderer can be checked")
    one, other = [await _render(renderer, case, [reference], 1) for reference in _references(2)]
    assert one != other, "two different references gave the same image: they are not used"


async def check_seed(renderer: Renderer, case: RendererCase) -> None:
    """Check that the same seed gives the same bytes, if the renderer declares that it is deterministic."""
    if not getattr(renderer, "deterministic", False):
        raise NotAsked("it does not declare `deterministic = True`")
    first, second = [await _render(renderer, case, _references(1), 7) for _ in range(2)]
    assert first == second, "it declares to be deterministic, but one seed gave two images"


async def check_concurrent(renderer: Renderer, case: RendererCase) -> None:
    """Check that concurrent calls do not affect each other."""
    seeds = [1, 2, 3, 4]
    pictures = await asyncio.gather(*(_render(renderer, case, _references(1), seed) for seed in seeds))
    for data in pictures:
        _check_png(data, "one of four concurrent calls")
    if getattr(renderer, "deterministic", False):
        alone = [await _render(renderer, case, _references(1), seed) for seed in seeds]
        assert alone == list(pictures), "four concurrent calls gave other images than sequential calls"


async def check_names_itself(renderer: Renderer, case: RendererCase) -> None:
    """Check that the renderer has an identity that is stable and contains no secret."""
    check_identity(renderer, case.secrets)
    identity = renderer.identity
    await _render(renderer, case, _references(1), 1)
    check_same_identity(renderer, identity)


async def check_bad_reference(renderer: Renderer, case: RendererCase) -> None:
    """Check that a reference that is no image raises InfraFailure or ValueError, and that the next call works."""
    if not _takes_references(renderer):
        raise NotAsked("it takes no references")
    error = await raised_by(_render(renderer, case, [NOT_A_PICTURE], 1))
    assert error is not None, "a reference that is not an image caused no error"
    assert isinstance(error, InfraFailure | ValueError), f"a bad reference raised {type(error).__name__}: {error}"
    assert not any(secret in str(error) for secret in case.secrets), "the error contains a secret of the settings"
    _check_png(await _render(renderer, case, _references(1), 1), "the call after a bad reference")


async def check_cancellation(renderer: Renderer, case: RendererCase) -> None:
    """Check that a canceled call ends and leaves nothing running, and that the next call works."""
    await check_cancelled(lambda: _render(renderer, case, _references(1), 1))
    _check_png(await _render(renderer, case, _references(1), 1), "the call after a canceled one")


CHECKS = (
    check_picture,
    check_references,
    check_references_matter,
    check_seed,
    check_concurrent,
    check_names_itself,
    check_bad_reference,
    check_cancellation,
)


async def check_renderer(renderer: Renderer, case: RendererCase | None = None) -> None:
    """Run every check against one renderer. Raises AssertionError listing those that failed."""
    await run_all(CHECKS, renderer, case or RendererCase())
