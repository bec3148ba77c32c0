"""Requests without ground-truth images: kept where no judge needs one, and named where one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.data.requests import PublishedRequests, PublishedRequestsConfig
from genevolve_ray.doctor.parts import data
from genevolve_ray.doctor.preflight import check_kscore, check_reward, check_truths
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.services import JudgeService
from genevolve_ray.evolution.sources import check_request, check_truth, open_source
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import AnyVerdict, Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.request import EvalType, Request

REQUEST = Request(id="r-7", prompt="draw", eval_type=EvalType.QUALITY)
PROGRAM = Program(gen_prompt="a heron", reference_images=())


class Length:
    """Scores the size of a picture's file, and needs no truth."""

    Config = Config
    identity = "length/1"
    needs_truth: bool = False
    components = {"length": ComponentRange(high=100)}

    def __init__(self, config: Config | None = None) -> None:
        self.truths: list[bytes] = []

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        self.truths.append(truth)
        return OpenVerdict(components={"length": Component(value=len(image), high=100)}, judge=self.identity)


class Captioned(Length):
    """The same, for requests with a caption."""

    @classmethod
    def check_request(cls, config: Config, request: Request) -> None:
        if "caption" not in request.meta:
            raise UserFault(f"request {request.id} has no caption")


class Lengthy(Captioned):
    """The same, with a component of its own."""

    components = {"width": ComponentRange(high=100)}


class OneBareConfig(Config):
    """Name the part whose first request has no caption."""

    bare: str


class OneBare:
    """Poses requests with captions, but for the first of one part."""

    Config = OneBareConfig

    def __init__(self, config: OneBareConfig, images: MemoryImages) -> None:
        self._bare = config.bare

    def _posed(self, part: str, index: int) -> Request:
        meta = {} if part == self._bare and index == 0 else {"caption": "AB"}
        return Request(id=f"{part}-{index}", prompt="draw", eval_type=EvalType.QUALITY, meta=meta)

    def train(self, index: int) -> Request:
        return self._posed("train", index)

    def validation(self, count: int) -> list[Request]:
        return [self._posed("validation", index) for index in range(count)]

    def heldout(self, count: int) -> list[Request]:
        return [self._posed("heldout", index) for index in range(count)]


class Comparing(Length):
    """The same with a truth."""

    needs_truth = True


def config_of(folder: Path, judge: str, *settings: str) -> RunConfig:
    rows = [{"prompt": f"draw {n}", "meta": {"category": "animal"}} for n in range(6)]
    rows[0]["gt_image"] = "lost.png"
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    requests = f"{{type: published, config: {{paths: [{path}], split: {{validation: 0.2, test: 0.2}}}}}}"
    return load_config("atlas", [f"requests={requests}", f"judge={{type: 'test_truthless:{judge}'}}", *settings])


def test_a_judge_without_need_of_a_truth_gets_none() -> None:
    judge, images = Length(), MemoryImages()
    picture = images.put(b"0123456789", width=1, height=1)
    verdict = asyncio.run(JudgeService(judge, images).judge(REQUEST, picture, PROGRAM, ()))
    assert isinstance(verdict, OpenVerdict) and verdict.components["length"].scaled == 0.1
    assert judge.truths == [b""]
    with pytest.raises(InfraFailure, match="request r-7 has no ground-truth image, which length/1 needs"):
        asyncio.run(JudgeService(Comparing(), images).judge(REQUEST, picture, PROGRAM, ()))


def test_rows_without_images_are_requests_where_no_judge_needs_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Length", "reward.components={length: 1.0}")
    assert (config.truth_roles, config.requests.config["truths"]) == ([], "optional")
    check_reward(config)
    check_truths(config)
    source = config.requests.build(MemoryImages())
    posed = [source.train(n) for n in range(len(source))] + source.validation(9) + source.heldout(9)
    assert sorted(request.prompt for request in posed) == [f"draw {n}" for n in range(6)]
    assert all(request.truth_image is None for request in posed)
    check_truth(posed[0], config)


def test_one_judge_that_compares_is_named_with_the_request_and_the_key(tmp_path: Path) -> None:
    spec = "judges={near: {type: 'test_truthless:Comparing'}}"
    config = config_of(tmp_path, "Length", "reward.components={judge.length: 1.0}", spec)
    assert (config.truth_roles, "truths" in config.requests.config) == (["judges.near"], False)
    said = r"request r-7 .* which judges\.near \(judges\.near\.type=test_truthless:Comparing\) needs"
    with pytest.raises(UserFault, match=said):
        check_truth(REQUEST, config)
    with pytest.raises(DataError, match="requests left"):
        config.requests.build(MemoryImages())


def test_a_judge_that_checks_requests_is_asked_with_those_inside_an_ensemble(tmp_path: Path) -> None:
    members = "{one: {type: 'test_truthless:Captioned'}, two: {type: 'test_truthless:Length'}}"
    spec = f"judges={{near: {{type: 'test_truthless:Captioned'}}, all: {{type: ensemble, config: {{members: {members}}}}}}}"
    alone = config_of(tmp_path, "Length", "reward.components={judge.length: 1.0}", spec)
    with pytest.raises(
        UserFault, match=r"judges\.near \(judges\.near\.type=test_truthless:Captioned\): request r-7 has"
    ):
        check_request(REQUEST, alone)
    within = alone.model_copy(update={"judges": {"all": alone.judges["all"]}})
    with pytest.raises(
        UserFault, match=r"judges\.all \(judges\.all\.type=ensemble\): members\.one: request r-7 has no"
    ):
        check_request(REQUEST, within)
    captioned = REQUEST.model_copy(update={"meta": {"caption": "AB"}})
    check_request(captioned, alone)


def opened(tmp_path: Path, bare: str, *settings: str) -> list[str]:
    """Open the source of a run whose judge needs captions, and return what is said."""
    source = f"requests={{type: 'test_truthless:OneBare', config: {{bare: {bare}}}}}"
    config = config_of(tmp_path, "Captioned", "reward.components={length: 1.0}", source, *settings)
    said: list[str] = []
    open_source(config, SimpleNamespace(images=MemoryImages()), said.append)  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize("part", ["train", "validation", "heldout"])
def test_a_run_does_not_start_when_the_first_request_of_a_part_cannot_be_judged(tmp_path: Path, part: str) -> None:
    with pytest.raises(UserFault, match=rf"{part} requests: judge \(judge\.type=.*\): request {part}-0 has no caption"):
        opened(tmp_path, part)


def test_a_part_that_a_run_does_not_use_is_not_looked_at(tmp_path: Path) -> None:
    assert opened(tmp_path, "validation", "loop.validate_every=0") == []
    assert opened(tmp_path, "heldout", "heldout.requests=0") == []


def test_a_run_starts_where_the_reward_does_without_what_a_judge_lacks(tmp_path: Path) -> None:
    other = "judges={near: {type: 'test_truthless:Lengthy'}}"
    both = "reward.components={length: 0.5, width: 0.5}"
    missing = "reward.missing={value: 0.5}"
    members = "{one: {type: 'test_truthless:Length'}, two: {type: 'test_truthless:Lengthy'}}"
    free = "judge={type: ensemble, config: {form: open, min_members: 1, members: " + members + "}}"
    leaves = "reward.missing=leave_out"
    with pytest.raises(UserFault, match="request train-0 has no caption"):
        opened(tmp_path, "train", other, both, missing)  # Both judges lack it, so that nothing is measured.
    plain = "judge={type: 'test_truthless:Length'}"
    said = opened(tmp_path, "heldout", other, both, missing, plain)
    assert said == [
        "heldout requests: judges.near (judges.near.type=test_truthless:Lengthy): request heldout-0 has no caption; "
        "reward.missing applies to such requests"
    ]
    assert len(opened(tmp_path, "train", other, both, leaves, plain)) == 1
    with pytest.raises(UserFault, match="request train-0 has no caption"):
        opened(tmp_path, "train", other, both, leaves, plain, "reward.gates={width: 1.0}")
    assert opened(tmp_path, "train", "reward.components={length: 0.5, width: 0.5}", missing, free) == []


def test_doctor_names_the_request_that_a_judge_cannot_judge(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Captioned", "reward.components={length: 1.0}")
    said = [check for check in data(config, tmp_path / "run") if "has no caption" in check.detail]
    assert [check.detail.partition(":")[0] for check in said] == ["train", "validation", "heldout"]


def test_rows_without_images_are_not_kept_for_a_judge_that_compares(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Comparing", "reward.components={length: 1.0}", "requests.config.truths=optional")
    with pytest.raises(UserFault, match=r"requests\.config\.truths=optional .* judge \(judge\.type=test_truthless"):
        check_truths(config)


def test_a_truth_that_is_there_stays_with_its_request(tmp_path: Path) -> None:
    from genevolve_ray.contracts.samples import picture

    (tmp_path / "there.png").write_bytes(picture())
    rows = [{"prompt": f"draw {n}", "gt_image": "there.png"} for n in range(8)] + [{"prompt": "bare"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"paths": [path], "split": {"validation": 0.33, "test": 0.33}, "truths": "optional"}
    source = PublishedRequests(PublishedRequestsConfig.model_validate(values), MemoryImages())
    posed = [source.train(n) for n in range(len(source))] + source.validation(9) + source.heldout(9)
    assert {r.prompt for r in posed if r.truth_image is None} == {"bare"}
    assert len({r.prompt for r in posed}) == 9


def test_a_reward_without_a_kscore_is_refused_before_a_run_starts(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="judge gives no KScore: set reward.components, from length"):
        check_reward(config_of(tmp_path, "Length"))
    with pytest.raises(UserFault, match="no judge has 'kscore'; components are judge.length"):
        check_reward(config_of(tmp_path, "Length", "reward.components={kscore: 1.0}"))


def test_a_command_that_writes_kscores_refuses_a_judge_without_one(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"judge\.type=test_truthless:Length gives no KScore, only length"):
        check_kscore(config_of(tmp_path, "Length", "reward.components={length: 1.0}").judge)
    check_kscore(load_config("atlas").judge)
