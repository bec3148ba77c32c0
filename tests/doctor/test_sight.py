"""The doctor and the start of a run check that a policy can see what its profile shows, and has room for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from zoo import CHATML, build

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor import limits
from genevolve_ray.doctor.machine import Check, Status
from genevolve_ray.doctor.preflight import check_policy
from genevolve_ray.doctor.run import examine
from genevolve_ray.doctor.sight import FRAME, check_sight, most_tokens
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.models.image_tokens import ImageTokens, load_image_tokens
from genevolve_ray.tools.showing import Observations

Filled = Callable[..., RunConfig]
SHOWS = (
    "{name: sees, extends: release, prompt: 'text:Look.', max_prompt_tokens: 900, max_response_tokens: 1100, "
    "max_turn_tokens: 500, observations: {images: true, "
)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("seeing") / "model")


def observed(filled: Filled, folder: Path, limits: str = "max_side: 64, per_search: 2}}", *more: str) -> RunConfig:
    return filled(f"policy.model={folder}", f"profile={SHOWS}{limits}", "engine.max_model_len=null", *more)


def tokens_of(folder: Path) -> ImageTokens:
    found = load_image_tokens(folder)
    assert found is not None
    return found


def named(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_a_policy_that_sees_what_it_is_shown_can_start(filled: Filled, seeing: Path, tmp_path: Path) -> None:
    config = observed(filled, seeing)
    check_policy(config)
    checks = examine(config, tmp_path / "run")
    assert not [check for check in checks if check.status is Status.PROBLEM]
    [check] = named(checks, "pictures")
    each = most_tokens(tokens_of(seeing), config.protocol.observations) + FRAME
    assert check.status is Status.OK
    assert check.detail == (
        f"2 a search, up to 64 pixels a side: at most {each} tokens each, {2 * each} a search, "
        f"{20 * each} of 1100 response tokens for 10 searches"
    )


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_blind_policy_is_named_with_the_remedy(filled: Filled, tmp_path: Path, engine: str) -> None:
    blind = build("qwen3", tmp_path / "blind")
    config = observed(filled, blind, "max_side: 64}}", f"engine.kind={engine}")
    said = f"profile 'sees' shows pictures (observations.images), but the model in {blind} does not see"
    with pytest.raises(UserFault) as fault:
        check_policy(config)
    assert str(fault.value) == f"policy.model: {said}"
    [check] = named(examine(config, tmp_path / "run"), "policy")
    assert (check.status, check.detail) == (Status.PROBLEM, said)
    assert "profile.observations.images=false" in check.remedy


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_missing_processor_is_named(filled: Filled, tmp_path: Path, engine: str) -> None:
    folder = build("qwen3-vl", tmp_path / "bare")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserFault, match=r"shows pictures .*, but .*bare has no image processor"):
        check_policy(observed(filled, folder, "max_side: 64}}", f"engine.kind={engine}"))


def test_a_template_that_shows_no_pictures_is_named(filled: Filled, tmp_path: Path) -> None:
    folder = build("qwen3-vl", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(UserFault, match=r"but in .*model the chat template shows 0 image tokens for 2 pictures"):
        check_policy(observed(filled, folder))


def test_an_engine_that_takes_fewer_pictures_than_an_episode_can_show_is_named(filled: Filled, seeing: Path) -> None:
    with pytest.raises(UserFault, match=r"up to 20 in an episode, but engine\.vllm\.max_images=19"):
        check_policy(observed(filled, seeing, "max_side: 64, per_search: 2}}", "engine.vllm.max_images=19"))
    check_policy(observed(filled, seeing, "max_side: 64, per_search: 2}}", "engine.vllm.max_images=20"))
    profile = observed(filled, seeing).protocol
    check_sight(seeing, profile, EngineConfig(kind="transformers"))


def test_pictures_of_one_search_must_fit_a_response(filled: Filled, seeing: Path) -> None:
    [check] = limits.pictures(observed(filled, seeing, "max_side: 512, per_search: 5}}"))
    assert check.status is Status.PROBLEM and "but a response has 1100 (profile.max_response_tokens)" in check.detail
    [check] = limits.pictures(observed(filled, seeing, "max_side: 256, per_search: 5}}"))
    assert check.status is Status.NOTE and "those without room are left out" in check.detail
    assert "profile.observations.max_side" in check.remedy


def test_a_policy_that_sees_and_is_shown_text_only_is_a_note(filled: Filled, seeing: Path) -> None:
    [check] = limits.pictures(filled(f"policy.model={seeing}"))
    assert check.status is Status.NOTE and "can see, but profile atlas shows it no pictures" in check.detail
    assert limits.pictures(filled()) == [], "the policy of the atlas does not see"


def test_a_side_without_bound_is_examined_at_once(seeing: Path) -> None:
    """No picture has more pixels than are ever opened."""
    images = tokens_of(seeing)
    large, larger = (most_tokens(images, Observations(images=True, max_side=side)) for side in (100_000, 10**12))
    assert large == larger >= most_tokens(images, Observations(images=True, max_side=4096))


def test_the_preset_costs_what_its_comment_says(tmp_path: Path, seeing: Path) -> None:
    """By the settings of Qwen3-VL's own image processor."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((seeing / "config.json").read_bytes())
    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    own = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "merge_size": 2, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    shown, images = Observations(images=True, max_side=640, max_pixels=262_144), tokens_of(folder)
    most = most_tokens(images, shown)
    assert most == 270, "as in benchmarks.scaling_pictures"
    for width, height in ((4000, 3000), (3000, 4000), (1000, 1000), (640, 400), (1920, 1080), (50, 40)):
        side = shown.side_for(width, height)
        picture = Image.new("RGB", (width, height))
        picture.thumbnail((side, side))
        assert images.count(images.grid(*picture.size)) <= most


def test_the_paper_preset_is_checked_against_the_policys_own_processor(seeing: Path) -> None:
    [waiting] = limits.pictures(load_config("paper"))
    assert (waiting.status, waiting.detail) == (Status.NOTE, "not checked until policy.model is filled in")
    [check] = limits.pictures(load_config("paper", [f"policy.model={seeing}"]))
    assert check.status is Status.OK
    assert check.detail.startswith(
        "5 a search, up to 640 pixels a side, 262144 in all: at most 272 tokens each, 1360 a"
    )
    assert check.detail.endswith("13600 of 30000 response tokens for 10 searches")
