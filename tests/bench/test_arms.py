"""The arms differ in nothing but what they are named for."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.bench.ablation import AblationPlan, area
from genevolve_ray.bench.arms import Arm, arm_config
from genevolve_ray.config import RunConfig, load_config
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


def test_an_arm_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'grpo', 'grpo'"):
        AblationPlan(arms=(Arm.GRPO, Arm.GRPO), constant=GENERIC)


def test_the_area_is_the_mean_height() -> None:
    assert area([(5, 0.2), (10, 0.4), (20, 0.4)]) == pytest.approx((0.3 * 5 + 0.4 * 10) / 15)
    assert area([(5, 0.2)]) is None
