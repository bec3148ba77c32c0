"""The arms differ in nothing but what they are named for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.bench.ablation import AblationPlan
from genevolve_ray.bench.arm_results import area, differences_of
from genevolve_ray.bench.arms import Arm, arm_config, arm_of, check_comparable
from genevolve_ray.commands.ablation import ablate_run
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.records.experience import Experience

GENERIC = Experience(search_strategy=("search facts",))


def full() -> RunConfig:
    return load_config("atlas", ["experience.enabled=true", "learner.ved.coefficient=0.5"])


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}").items()}
    return {path.removeprefix("."): tree}


def differing(arm: Arm) -> set[str]:
    one, other = (flat(arm_config(full(), a, seed=3, constant=GENERIC).model_dump()) for a in (Arm.FULL, arm))
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


@pytest.mark.parametrize(
    ("arm", "keys"),
    [
        (Arm.GRPO, {"experience.enabled", "learner.ved.coefficient"}),
        (Arm.SHUFFLED, {"experience.control"}),
        (Arm.CONSTANT, {"experience.control"}),
        (Arm.PLACEBO, {"experience.control"}),
        (Arm.REDRAWS, {"experience.redraws.draws", "learner.ved.coefficient"}),
        (Arm.MERGED, {f"experience.merge.{key}" for key in ("nearest", "alike", "own")}),
    ],
)
def test_an_arm_differs_from_the_full_method_in_what_it_is_named_for(arm: Arm, keys: set[str]) -> None:
    assert {key for key in differing(arm) if not key.startswith("experience.constant")} == keys | {"name"}


def test_a_seed_changes_the_dice_and_not_the_requests() -> None:
    one, other = (arm_config(full(), Arm.FULL, seed=s, constant=GENERIC) for s in (1, 2))
    assert (one.seed, other.seed) == (1, 2)
    assert one.requests == other.requests


def test_an_ablation_starts_from_the_full_method() -> None:
    plain = load_config("atlas", ["learner.ved.coefficient=0"])
    with pytest.raises(ValueError, match=r"learner.ved.coefficient=0"):
        arm_config(plain, Arm.GRPO, seed=1, constant=GENERIC)


def test_what_the_full_method_sets_of_an_arm_stays() -> None:
    base = load_config("atlas", ["experience.merge.nearest=3"])
    merge = arm_config(base, Arm.MERGED, seed=1, constant=GENERIC).experience.merge
    assert merge is not None and merge.nearest == 3


def test_a_variant_is_its_arm_with_another_name() -> None:
    plain, variant = (arm_config(full(), label, seed=2, constant=GENERIC) for label in ("grpo", "grpo.fast"))
    assert variant.name == "grpo.fast-2"
    assert variant.model_copy(update={"name": plain.name}) == plain


@pytest.mark.parametrize("label", ["ful", "full.", "full.a b", ".full", "full.x.y", ""])
def test_a_label_that_names_no_arm_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match=f"unknown arm '{label}'; known: sft, grpo"):
        arm_of(label)


def test_methods_are_compared_with_grpo_and_the_full_one_with_its_controls() -> None:
    labels = ["sft", "grpo", "placebo", "merged", "full", "full.exact"]
    assert differences_of(labels) == [
        ("full", "grpo"),
        ("merged", "grpo"),
        ("full.exact", "grpo"),
        ("full", "placebo"),
        ("merged", "full"),
        ("full.exact", "full"),
        ("grpo", "sft"),
    ]


def test_variants_of_grpo_are_baselines() -> None:
    assert differences_of(["grpo", "grpo.dynamic", "redraws", "full"]) == [
        ("full", "grpo"),
        ("redraws", "grpo"),
        ("full", "grpo.dynamic"),
        ("redraws", "grpo.dynamic"),
        ("redraws", "full"),
        ("grpo.dynamic", "grpo"),
    ]


def test_redraws_stay_as_the_base_sets_them_and_leave_grpo_alone() -> None:
    base = load_config("atlas", ["experience.redraws.draws=3", "experience.redraws.correction=winners"])
    redraws = arm_config(base, Arm.REDRAWS, seed=1, constant=GENERIC).experience.redraws
    assert (redraws.draws, redraws.correction) == (3, "winners")
    assert arm_config(base, Arm.GRPO, seed=1, constant=GENERIC).experience.redraws.draws == 0


@pytest.mark.parametrize(
    "setting",
    [
        "policy.model=elsewhere",
        "engine.max_concurrent=2",
        "requests.config.seed=9",
        "reward.image_weight=1",
        "loop.steps=9",
        "loop.validation_requests=9",
        "seed=9",
        "name=other",
    ],
)
def test_what_all_arms_share_is_no_setting_of_one(setting: str) -> None:
    tuned = load_config("atlas", ["experience.enabled=true", "learner.ved.coefficient=0.5", setting])
    key, _, value = setting.partition("=")
    with pytest.raises(
        ValueError, match=rf"arm 'full.b' cannot be compared: {key} is {value}(\.0)?, and .* for the others"
    ):
        check_comparable(full(), "full.b", tuned)


def test_the_command_refuses_arms_that_cannot_be_compared(tmp_path: Path) -> None:
    plan = {"seeds": 1, "steps": None, "world_seed": 1, "requests": 1, "settings": []}
    with pytest.raises(UserFault, match=r"genevolve ablate: arm 'grpo' cannot be compared: loop.steps is 3, and 40"):
        ablate_run("atlas", "grpo,full", tmp_path / "a.json", arm_settings=["grpo:loop.steps=3"], **plan)


def test_settings_of_the_method_are_free() -> None:
    method = ["learner.ved={form: jsd, coefficient: {ratio_to_grpo: 0.5}}", "experience.memory.threshold=auto"]
    loop = ["loop.dynamic_sampling.rounds=2", "loop.curriculum.pool=128"]
    check_comparable(full(), "full", load_config("atlas", ["experience.enabled=true", *method, *loop]))


def test_worlds_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"test worlds \[3, 3\]"):
        AblationPlan(test_worlds=(3, 3), constant=GENERIC)


def test_an_arm_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'grpo', 'grpo'"):
        AblationPlan(arms=(Arm.GRPO, Arm.GRPO), constant=GENERIC)


def test_the_area_is_the_mean_height() -> None:
    assert area([(5, 0.2), (10, 0.4), (20, 0.4)]) == pytest.approx((0.3 * 5 + 0.4 * 10) / 15)
    assert area([(5, 0.2)]) is None
