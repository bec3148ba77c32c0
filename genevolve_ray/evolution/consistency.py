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
    _check_redraws(config)
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


def _check_redraws(config: EvolutionConfig) -> None:
    """Check what guided re-draws need. Raises ValueError naming keys and values."""
    draws = config.experience.redraws.draws
    if not draws:
        return
    if not config.experience.enabled:
        raise ValueError(f"experience.redraws.draws={draws} recalls guides, but experience.enabled=false")
    if config.loop.mode != "sync":
        raise ValueError(
            f"experience.redraws.draws={draws} needs loop.mode=sync, got {config.loop.mode}: whether a group is stuck is "
            "known when its step begins, so that the learner would wait for re-draws of a newer policy"
        )
    if config.reward.normalise != "none":
        raise ValueError(
            f"experience.redraws.draws={draws} needs reward.normalise=none, got {config.reward.normalise}: it compares "
            "attempts of one group, and re-draws belong to none"
        )
