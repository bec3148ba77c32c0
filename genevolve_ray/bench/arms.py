"""The arms of an ablation: one configuration each, which differ only in the component that names them."""

from __future__ import annotations

from enum import StrEnum

from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.experience.config import AblationControl
from genevolve_ray.records.experience import Experience


class Arm(StrEnum):
    """Name the trained variant. All arms start from one policy and receive the same requests in the same order."""

    SFT = "sft"
    """No training: the initial policy."""
    GRPO = "grpo"
    """GRPO alone: no experience is written, no teacher is called."""
    FULL = "full"
    """GRPO and distillation from the teacher, which reads the experience recalled for each request."""
    SHUFFLED = "shuffled"
    """The full method, but the teacher reads another request's bundle."""
    CONSTANT = "constant"
    """The full method, but the teacher always reads one fixed generic bundle."""


def arm_config(base: EvolutionConfig, arm: Arm, *, seed: int, constant: Experience) -> EvolutionConfig:
    """Return the configuration of an arm under a seed.

    Args:
        base: the full method.
        arm: which arm.
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
    changes: dict[str, object] = {"name": f"{arm.value}-{seed}", "seed": seed}
    if arm in (Arm.SFT, Arm.GRPO):
        changes["experience"] = base.experience.model_copy(update={"enabled": False})
        quiet = base.learner.ved.model_copy(update={"coefficient": 0.0})
        changes["learner"] = base.learner.model_copy(update={"ved": quiet})
    elif arm is Arm.SHUFFLED:
        changes["experience"] = base.experience.model_copy(update={"control": AblationControl.SHUFFLED})
    elif arm is Arm.CONSTANT:
        changes["experience"] = base.experience.model_copy(
            update={"control": AblationControl.CONSTANT, "constant": constant}
        )
    return type(base).model_validate(base.model_copy(update=changes).model_dump())
