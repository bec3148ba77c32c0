"""Renderer and judge over a picture store: a picture that is missing or damaged is a failure of the sample alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.services import GradeService, JudgeService, RenderService
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request


class Nobody:
    """A renderer and judge that must not be reached."""

    identity = "nobody"

    async def render(self, *_: object) -> bytes:
        raise AssertionError("called")

    judge = grade = render


@pytest.fixture
def images(tmp_path: Path) -> FilesystemImages:
    return FilesystemImages(str(tmp_path / "images"))


@pytest.fixture(params=["missing", "cut"])
def broken(images: FilesystemImages, tmp_path: Path, request: pytest.FixtureRequest) -> ImageRef:
    ref = images.put(b"some pixels", width=1, height=1)
    path = next((tmp_path / "images").rglob(ref.file_name))
    path.unlink() if request.param == "missing" else path.write_bytes(b"some")
    return ref


async def test_no_sample_ends_a_run_for_a_picture(images: FilesystemImages, broken: ImageRef) -> None:
    program = Program(gen_prompt="x", reference_images=())
    request = Request(id="r", prompt="x", eval_type=EvalType.QUALITY, truth_image=broken)
    nobody = Nobody()
    for work in (
        RenderService(nobody, images).render("x", [broken], 1),
        GradeService(nobody, images).grade("x", broken),
        JudgeService(nobody, images).judge(request, broken, program, []),  # type: ignore[arg-type]
    ):
        with pytest.raises(InfraFailure, match=f"a stored picture cannot be read: .*{broken.sha256}"):
            await work
