"""The arms of an ablation: one configuration each, which differ only in the component that names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.records.differences import differences
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.secrets import masked

_CONSTANT: Any = object()
"""Stands for the constant bundle among the settings of an arm."""
_VARIANT = re.compile(r"[\w-]+")
_KEPT = ("experience.redraws.draws",)
"""Settings of arms that stay where the base sets them."""
_ALONE: Mapping[str, Any] = {
    "experience.enabled": False,
    "experience.redraws.draws": 0,
    "learner.ved.coefficient": 0.0,
}
_MERGED: Mapping[str, Any] = {"experience.merge": {}}
_REDRAWS: Mapping[str, Any] = {"learner.ved.coefficient": 0.0, "experience.redraws.draws": 2}


class Arm(StrEnum):
    """Name the trained variant. All arms start from one policy and receive the same requests in the same order.

    A member is its name, what distinguishes it in one phrase, and the settings by which it differs from the full method,
    by key.
    """

    about: str
    settings: Mapping[str, Any]

    def __new__(cls, value: str, about: str = "", settings: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """Keep phrase and settings with the member."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.about, member.settings = about, MappingProxyType(dict(settings))
        return member

    @property
    def is_control(self) -> bool:
        """True where the teacher reads another text than the experience of the request."""
        return "experience.control" in self.settings

    SFT = "sft", "the initial policy", _ALONE
    """No training."""
    GRPO = "grpo", "GRPO alone", _ALONE
    """No experience is written, no teacher is called."""
    FULL = "full", "GRPO and distillation from experience"
    """GRPO and distillation from the teacher, which reads the experience recalled for each request."""
    SHUFFLED = "shuffled", "as full, but the teacher reads another request's bundle", {"experience.control": "shuffled"}
    """The full method, but the teacher reads another request's bundle."""
    CONSTANT = (
        "constant",
        "as full, but the teacher reads one fixed bundle",
        {"experience.control": "constant", "experience.constant": _CONSTANT},
    )
    """The full method, but the teacher always reads one fixed generic bundle."""
    PLACEBO = "placebo", "as full, but the bundle has neutral words of equal length", {"experience.control": "placebo"}
    """The full method, but the teacher reads neutral words in a guide of as many tokens."""
    MERGED = "merged", "as full, but lessons are the majority of near bundles", _MERGED
    """The full method, but a lesson is the majority of the nearest five bundles (`experience.merge`)."""
    REDRAWS = "redraws", "GRPO and guided re-draws of stuck groups, without a teacher", _REDRAWS
    """Experience is used in sampling instead of distillation (`experience.redraws`)."""


SHARED = (
    "name",
    "seed",
    "policy",
    "engine",
    "requests",
    "reward",
    "loop.steps",
    "loop.validate_every",
    "loop.validation_requests",
)
"""Settings that all arms have from their base: those that tell runs apart, the one policy and engine that all arms start
from, and what makes rewards and curves comparable."""
DEFAULT_ARMS = (Arm.SFT, Arm.GRPO, Arm.FULL, Arm.SHUFFLED, Arm.CONSTANT)
"""Arms that are run where none is named."""


def arm_of(label: str) -> Arm:
    """Return the arm of a label: its name, or its name, a point and a name of a variant, such as `full.exact`.

    Raises:
        ValueError: naming the label.
    """
    name, point, variant = label.partition(".")
    if name not in list(Arm) or bool(point) != bool(_VARIANT.fullmatch(variant)):
        raise ValueError(f"unknown arm {label!r}; known: {', '.join(Arm)}, and variants such as full.NAME")
    return Arm(name)


def check_comparable(base: EvolutionConfig, label: str, tuned: EvolutionConfig) -> None:
    """Check that the settings of an arm leave alone what all arms share. Raises ValueError naming the arm and the keys."""
    found = differences(*(masked(config.model_dump(mode="json")) for config in (base, tuned)))
    changed = [difference for difference in found if _shared(difference.key)]
    if changed:
        listed = "; ".join(f"{d.key} is {d.after}, and {d.before} for the others" for d in changed)
        raise ValueError(f"arm {label!r} cannot be compared: {listed}. Set it for all arms")


def _shared(key: str) -> bool:
    return any(key == shared or key.startswith(f"{shared}.") for shared in SHARED)


def arm_config(base: EvolutionConfig, label: str, *, seed: int, constant: Experience) -> EvolutionConfig:
    """Return the configuration of an arm under a seed.

    Args:
        base: the full method. What it sets of a setting of the arm itself stays, such as `experience.merge.nearest`.
        label: the arm, or a variant of it, which differs by the settings of its `base`.
        seed: seed of the run. It determines the random numbers of sampling and rendering, not the requests.
        constant: the bundle of the arm `constant`.

    Raises:
        ValueError: when the base has no distillation to remove.
    """
    if not base.experience.enabled or not base.learner.ved.teaches:
        raise ValueError(
            "an ablation needs the full method: "
            f"experience.enabled={base.experience.enabled}, learner.ved.coefficient={base.learner.ved.coefficient:g}"
        )
    settings = base.model_dump() | {"name": f"{label}-{seed}", "seed": seed}
    for key, value in arm_of(label).settings.items():
        *path, last = key.split(".")
        place = settings
        for name in path:
            place = place[name]
        if value is _CONSTANT:
            value = constant.model_dump()
        if not ((value == {} or (value and key in _KEPT)) and place.get(last)):
            place[last] = value
    return type(base).model_validate(settings)
