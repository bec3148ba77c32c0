"""The OCR judge of `small` in an environment of its own on real Ray, as docs/small.md describes it."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from head_node import Head
from isolated_world import build_interpreter

from genevolve_ray.cluster.applications import delete, deploy, wait_running
from genevolve_ray.cluster.proxies import Caller, connect_judges
from genevolve_ray.cluster.services import services_of
from genevolve_ray.cluster.session import ray_session
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import check_plugin, check_reward
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.services import JudgeService
from genevolve_ray.records.images import FilesystemImages, ImageRef, ImageStore
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose
from genevolve_ray.small.training.image_text import assemble_image_text
from genevolve_ray.small.weights import prebuilt

ROOT = Path(__file__).parents[2]
ENGINES = ("onnxruntime", "rapidocr")
PROGRAM = Program(gen_prompt="three letters", reference_images=())
CAPTIONS = ("MNT", "OK", "")


def documented() -> str:
    """Return the YAML of the page that moves the judge out."""
    page = (ROOT / "docs" / "small.md").read_text("utf-8")
    [text] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "py_executable" in block]
    return text


@pytest.fixture
def config_with(tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a maker of the documented configuration with an interpreter and overrides."""

    def make(python: str, *overrides: str) -> RunConfig:
        text = re.sub(r"py_executable: [^}\n]+", f"py_executable: {python}", documented())
        (tmp_path / "apart.yaml").write_text(text, "utf-8")
        return load_config(str(tmp_path / "apart.yaml"), list(overrides))

    return make


@contextmanager
def lacking(*packages: str) -> Iterator[None]:
    """Let this process be without packages, whatever it has imported before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in sys.modules if each.partition(".")[0] in packages]:
            patch.delitem(sys.modules, name)
        for name in packages:
            patch.setitem(sys.modules, name, None)
        yield


def test_what_the_page_says_moves_the_judge_out_of_the_ensemble(config_with: Callable[..., RunConfig]) -> None:
    config, base = config_with("/opt/ocr/bin/python"), load_config("small")
    members = base.judge.config["members"]
    kind = config.judge.resolve()
    assert set(config.judge.settings(kind).members) == set(members) - {"letters"}
    moved = config.judges["letters"]
    assert moved.config == members["letters"]["config"]
    assert moved.runtime_env == {"py_executable": "/opt/ocr/bin/python"}
    assert config.reward == base.reward


def test_the_driver_starts_without_the_packages_of_the_judge(config_with: Callable[..., RunConfig]) -> None:
    config = config_with("/opt/ocr/bin/python")
    with lacking(*ENGINES):
        check_plugin("judges.letters", config.judges["letters"])
        check_reward(config)
        with pytest.raises(UserFault, match="needs rapidocr and onnxruntime"):
            check_plugin("judges.letters", config.judges["letters"].model_copy(update={"runtime_env": {}}))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_onnxruntime_is_loaded_by_the_judge_alone_and_the_verdicts_are_the_same(
    config_with: Callable[..., RunConfig],
    shared_cluster: Head,
    library: PictureLibrary,
    minilm: Path,
    rapidocr: Path,
    tmp_path: Path,
) -> None:
    python = build_interpreter(tmp_path / "ocr")
    model = assemble_image_text(prebuilt("image_text") / "weights.safetensors", minilm, tmp_path / "image_text")
    config = config_with(
        python,
        f"cluster.address={shared_cluster.address}",
        f"judge.config.members.near.config.model={model}",
        f"judge.config.members.fit.config.model={model}",
    )
    images = FilesystemImages(str(tmp_path / "images"))
    asked = [asking(caption, library, images) for caption in CAPTIONS]
    with lacking(*ENGINES), ray_session(config.cluster, namespace="apart"):
        services = [one for one in services_of(config, "apart") if one.role.startswith("judge")]
        try:
            handles = await deploy(services, images.uri)
            await wait_running(services)
            callers = {
                one.role: Caller.of(one.role, handle, one.config) for one, handle in zip(services, handles, strict=True)
            }
            letters = (await connect_judges(callers))["letters"]
            found = [await letters.judge(*one, PROGRAM, []) for one in asked]
            identity, running = letters.identity, shared_cluster.actors()
            readers = [one for one in running if maps(one, "onnxruntime")]
        finally:
            await delete(services)
    assert len(running) > 1 and len(readers) == 1
    here: Any = JudgeService(config.judges["letters"].model_copy(update={"runtime_env": {}}).build(), images)
    assert here.identity == identity
    assert [await here.judge(*one, PROGRAM, []) for one in asked] == found
    assert [one.components["text"].value for one in found[:2]] == [1.0, 1.0] and not found[2].components


def asking(caption: str, library: PictureLibrary, images: ImageStore) -> tuple[Request, ImageRef]:
    """Return a request that wants a caption, and a picture that has it."""
    buffer = io.BytesIO()
    compose(SmallScene(subject="1F408", caption=caption), library).save(buffer, "PNG")
    meta = {"caption": caption} if caption else {}
    request = Request(id=caption or "none", prompt="a cat", eval_type=EvalType.QUALITY, meta=meta)
    return request, images.put(buffer.getvalue(), width=64, height=64)


def maps(process: psutil.Process, library: str) -> bool:
    """Return whether a process has a shared library of a package in its memory."""
    try:
        return any(f"{os.sep}{library}{os.sep}" in one.path for one in process.memory_maps())
    except psutil.Error:
        return False
