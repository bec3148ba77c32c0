"""Combinations of settings that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genevolve_ray.evolution.config import EvolutionConfig


def check_consistent(config: EvolutionConfig) -> None:
    """Check settings of different parts against each other. Raises ValueError naming keys and values."""
    if config.learner.temperature != config.sampling.temperature:
        raise ValueError(
            "learner and engine must use one temperature: "
            f"learner.temperature={config.learner.temperature}, sampling.temperature={config.sampling.temperature}"
        )
    if config.learner.ved.teaches and not config.experience.enabled:
        raise ValueError(
            "distillation needs experience: "
            f"learner.ved.coefficient={config.learner.ved.coefficient:g}, experience.enabled=false"
        )
    if config.engine.vllm.sleep and (config.loop.mode != "sync" or config.learns_early):
        raise ValueError(
            f"engine.vllm.sleep=true needs loop.mode=sync and loop.overlap=false, got {config.loop.mode} and "
            f"{str(config.loop.overlap).lower()}: engines would sample while the learner works"
        )
    if config.deterministic and config.engine.kind != "transformers":
        raise ValueError(f"deterministic=true needs engine.kind=transformers, got {config.engine.kind!r}")
    if config.deterministic and config.learner.compile:
        raise ValueError("deterministic=true needs learner.compile=false: compiled code is not bit-exact")
    timed = config.loop.sample_deadline is not None or config.loop.overlap
    if config.deterministic and (config.loop.mode == "async" or timed):
        raise ValueError(
            "deterministic=true needs loop.mode=sync without loop.sample_deadline and loop.overlap, because timing would "
            "affect the result"
        )
    pairs = config.experience.max_pairs
    if config.loop.overlap and config.experience.enabled and config.loop.requests_per_step > pairs:
        raise ValueError(
            f"loop.overlap=true compares every group as soon as it is complete, but experience.max_pairs={pairs} is "
            f"below loop.requests_per_step={config.loop.requests_per_step}: set one of them"
        )
