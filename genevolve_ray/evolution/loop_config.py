"""Settings of the course of a run: steps, groups, the order of requests, and how long the run waits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from genevolve_ray.evolution.curriculum import RequestCurriculumConfig
from genevolve_ray.evolution.flow import DynamicSamplingConfig
from genevolve_ray.records.base import Config


class LoopConfig(Config):
    """Configure the course of a run (PAPER section 3 for the paper's figures)."""

    steps: int = Field(default=40, ge=1)
    """Optimization steps of the whole run."""
    requests_per_step: int = Field(default=8, ge=1)
    """Requests (groups) that one step learns from."""
    group_size: int = Field(default=6, ge=2)
    """K rollouts of each request; at least two, or nothing can be compared."""
    mode: Literal["sync", "async"] = "sync"
    """`async`: rollouts continue while the learner works. `sync` is the same loop with `max_staleness` 0."""
    max_staleness: int = Field(default=0, ge=0)
    """Policy versions that a token may lag behind the policy that learns from it: 0 in sync mode, by default 1 in async."""
    max_running: int | None = Field(default=None, ge=1)
    """Samples that are played, rendered and judged at once; None: all that are leased."""
    sample_deadline: float | None = Field(default=None, gt=0)
    """Seconds after which a sample is given up and counted as discarded; None: never."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a sample is drawn again after an infrastructure failure."""
    outage_limit: float = Field(default=3600, ge=0)
    """Seconds that a run waits, with back-off up to 60, while whole steps fail from outside; then it stops with exit
    code 75. 0 stops at the first such step."""
    overlap: bool = False
    """Work on complete groups while the last rollouts of a synchronous step still run. Without experience the learner adds
    their gradient: the result differs by rounding alone, and gradients take memory during the rollouts. With experience
    the summarizer compares their attempts, where `experience.max_pairs` leaves no group out. It pays where rollouts wait
    for services or have devices of their own."""
    validate_every: int = Field(default=10, ge=0)
    """Steps between validations; 0 switches them off."""
    validation_requests: int = Field(default=32, ge=1)
    """Requests of a validation."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Whether groups without variance give way to further requests; `rounds` switches it on."""
    curriculum: RequestCurriculumConfig = RequestCurriculumConfig()
    """Whether requests are drawn by how well the policy does on them; `pool` switches it on."""
    parity_limit: float = Field(default=1e-4, gt=0)
    """Largest mean |engine - learner| log-prob at equal version before the run stops. Where it is not given: 1e-4 for
    float32, 0.03 for 16 bits, and with `sampling.top_p` below 1 the shift -log top_p of the truncated distribution."""

    @model_validator(mode="before")
    @classmethod
    def _async_is_stale(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mode") == "async" and "max_staleness" not in values:
            return values | {"max_staleness": 1}
        return values

    @model_validator(mode="after")
    def _mode(self) -> LoopConfig:
        if (self.mode == "async") != (self.max_staleness > 0):
            raise ValueError(
                f"loop.mode={self.mode} and loop.max_staleness={self.max_staleness} disagree: sync means 0, async at least 1"
            )
        if 0 < self.curriculum.pool < self.requests_per_step:
            raise ValueError(
                f"loop.curriculum.pool={self.curriculum.pool} is below loop.requests_per_step={self.requests_per_step}: a "
                "step takes different requests"
            )
        if self.overlap and self.mode == "async":
            raise ValueError("loop.overlap=true needs loop.mode=sync: in async mode rollouts continue all the time")
        return self
