"""Settings of the loop itself; `genevolve_ray.config` combines them with all other settings."""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from genevolve_ray.agent.profile import PROFILES, ProtocolProfile
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.alarms import AlarmsConfig
from genevolve_ray.evolution.consistency import check_consistent
from genevolve_ray.evolution.loop_config import LoopConfig
from genevolve_ray.evolution.plugins import (
    EmbedderSpec,
    JudgeSpec,
    PluginSpec,
    RendererSpec,
    RequestsSpec,
    SummariserSpec,
    ToolsSpec,
)
from genevolve_ray.evolution.store.manifest import CheckpointConfig
from genevolve_ray.experience.config import ExperienceConfig
from genevolve_ray.judges.protocol import needs_truth
from genevolve_ray.learning.config import LearnerConfig, LearningRateSchedule
from genevolve_ray.records.base import Config
from genevolve_ray.records.verdict import RewardConfig, ScoreFormula

_LEAST_CONCURRENT, _MOST_CONCURRENT = 48, 256
"""Bounds of `engine.max_concurrent` where it is not given; evaluations play up to 64 samples at once."""


class HeldoutConfig(Config):
    """Configure the comparison before and after a run."""

    requests: int = Field(default=200, ge=0)
    """How many held-out requests; 0 switches the comparison off."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples behind the interval of the gain."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of that interval."""


class SamplingConfig(Config):
    """Configure the sampling of training rollouts."""

    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature; `learner.temperature` is the same, where it is not given."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling: least probability mass that is kept; 1 keeps all tokens."""


class InferenceConfig(Config):
    """Configure the processing of rows outside training: `genevolve rollout`, `render`, `judge` and `bench`."""

    temperature: float = Field(default=0.7, ge=0)
    """Of the policy's sampling; 0 is greedy. By default that of `profile.sampling`, where the profile has one."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling: least probability mass that is kept; 1 keeps all tokens. Its default is found likewise."""
    in_flight: int = Field(default=32, ge=1)
    """Rows that are worked on at once."""
    tries: int = Field(default=3, ge=1)
    """How often an episode is played, a picture rendered or judged, before the row is failed; calls have tries of their own."""
    row_cost: float = Field(default=0.0, ge=0)
    """Money to set aside for a row under --max-cost before any row has cost more; 0: rows go one at a time until one has."""


class PolicyConfig(Config):
    """Configure the policy to evolve."""

    model: str
    """A model folder in HF layout, `package:FOLDER` for one that ships inside the installed package, or a hub id:
    `owner/name` or `owner/name@REVISION`. A run records the commit."""


class RehearsalConfig(Config):
    """Configure a run without its model: placement, services, store and loop are real, the policy plays a script.

    It tests the capacity of a cluster, its tools, renderers and judges before GPUs are spent on a policy.
    """

    turn_seconds: float = Field(default=0.02, ge=0)
    """How long the engine takes for a turn, independent of its load."""
    tool_calls: int = Field(default=4, ge=1)
    """Tool calls of every episode, the first of which is an image search."""
    step_seconds: float = Field(default=0.0, ge=0)
    """How long a learner step takes."""
    weights_mib: float = Field(default=0.0, ge=0)
    """Size of a version's weights."""


class EvolutionConfig(Config):
    """Configure everything that determines the results of a run."""

    name: str = Field(default="run", pattern=r"^[\w.-]+$")
    """Name of the run; by default its folder is `runs/NAME`."""
    seed: int = Field(default=1, ge=0)
    """Root of the seeds of sampling and rendering."""
    deterministic: bool = False
    """Bit-equal runs: one process, reference engine, one thread, turns in lock-step, every request seeded."""
    profile: str | ProtocolProfile = "release"
    """Protocol of an episode: `release`, `paper-eval`, `atlas`, `atlas-sight` or `small`, a YAML file, or keys that differ from
    those of another profile, which `extends` names. `texts_from` takes the words of a copy of the published program.
    """
    date: str = ""
    """Day, as YYYY-MM-DD, that chat templates and profiles with a date show the policy; by default that of the start."""
    policy: PolicyConfig
    """The policy to evolve."""
    engine: EngineConfig = EngineConfig()
    """What samples tokens."""
    sampling: SamplingConfig = SamplingConfig()
    """How training rollouts are sampled."""
    loop: LoopConfig = LoopConfig()
    """How the run proceeds."""
    reward: RewardConfig = RewardConfig()
    """How a verdict becomes a reward."""
    learner: LearnerConfig = LearnerConfig()
    """What trains the policy, and by which losses."""
    heldout: HeldoutConfig = HeldoutConfig()
    """The comparison before and after the run."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """Which checkpoints are kept."""
    alarms: AlarmsConfig = AlarmsConfig()
    """Signs of a collapse that the run watches for."""
    requests: RequestsSpec
    """Plug-in that poses the requests."""
    tools: ToolsSpec
    """Plug-in that holds the policy's tools."""
    renderer: RendererSpec
    """Plug-in that draws programs."""
    judge: JudgeSpec
    """Plug-in that scores pictures and programs."""
    judges: dict[str, JudgeSpec] = Field(default_factory=dict)
    """Further judges by name, which judge the same pictures at the same time; `reward.components` names what they measure
    as `NAME.COMPONENT`, and what `judge` measures as `judge.COMPONENT`."""
    experience: ExperienceConfig = ExperienceConfig()
    """The experience memory and its retrieval."""
    summariser: SummariserSpec = SummariserSpec(type="genevolve_ray.judges.summariser:RuleSummariser")
    """What compares best and worst attempts; used where `experience.enabled`."""
    rehearsal: RehearsalConfig | None = None
    """With it neither engine nor learner computes anything."""

    @field_validator("profile", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> Any:
        """Read a file or an object; a name stays, so that a run's settings are short."""
        return value if isinstance(value, str) and value in PROFILES else read_profile(value)

    @property
    def protocol(self) -> ProtocolProfile:
        """The profile itself."""
        return PROFILES[self.profile] if isinstance(self.profile, str) else self.profile

    @property
    def judge_specs(self) -> dict[str, JudgeSpec]:
        """The judges of the run by role: `judge`, and `judges.NAME` for each further one."""
        return {"judge": self.judge, **{f"judges.{name}": spec for name, spec in self.judges.items()}}

    @property
    def plugins(self) -> dict[str, PluginSpec]:
        """Every plug-in that the run uses, by the key of its settings: its role, or where it is nested."""
        found: dict[str, PluginSpec] = {"requests": self.requests, "tools": self.tools, "renderer": self.renderer}
        found |= self.judge_specs
        if self.experience.enabled:
            found["summariser"] = self.summariser
            if self.experience.embedder.type:
                found[EmbedderSpec.place] = EmbedderSpec.of(self.experience.embedder, self.summariser)
        return found

    def plugin(self, role: str) -> PluginSpec:
        """Return the plug-in of a role that the run uses; see `plugins`."""
        return self.plugins[role]

    @property
    def truth_roles(self) -> list[str]:
        """The judges that need ground-truth images, by role; those whose class is not importable here count."""
        return [role for role, spec in self.judge_specs.items() if _needs_truth(spec)]

    @field_validator("judges")
    @classmethod
    def _judge_names(cls, value: dict[str, JudgeSpec]) -> dict[str, JudgeSpec]:
        if wrong := [name for name in value if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "judge"]:
            raise ValueError(f"judges.{wrong[0]}: a name has lower-case letters, digits and _, and is not `judge`")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        """Accept a day in the form of ISO 8601, which YAML reads as a date of its own."""
        if isinstance(value, datetime.date):
            return value.isoformat()[:10]
        if isinstance(value, str) and value:
            try:
                return datetime.date.fromisoformat(value).isoformat()
            except ValueError as error:
                raise ValueError(f"date={value!r}: write a day as YYYY-MM-DD ({error})") from error
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_temperature(cls, values: Any) -> Any:
        """Give sampling and learner one temperature where at most one of them is given."""
        if not isinstance(values, dict):
            return values
        groups = {key: group for key in ("sampling", "learner") if isinstance(group := values.get(key, {}), dict)}
        given = {key: group["temperature"] for key, group in groups.items() if "temperature" in group}
        if len(groups) < 2 or len(given) > 1:
            return values
        [temperature] = given.values() or [SamplingConfig().temperature]
        return values | {key: group | {"temperature": temperature} for key, group in groups.items()}

    @model_validator(mode="after")
    def _consistent(self) -> EvolutionConfig:
        check_consistent(self)
        self._follow()
        if self.deterministic:
            self._lock_step()
        if self.learner.schedule is LearningRateSchedule.COSINE:
            self._fix_schedule()
        return self

    def _fix_schedule(self) -> None:
        """Write the length of the schedule into the resolved configuration, where a resumed run must find it again."""
        steps = self.learner.schedule_steps or self.loop.steps
        if steps < self.loop.steps:
            raise ValueError(
                f"learner.schedule_steps={steps} ends before loop.steps={self.loop.steps}: the steps after it would have "
                "learning rate 0"
            )
        if self.learner.warmup_steps >= steps:
            raise ValueError(f"learner.warmup_steps={self.learner.warmup_steps} leaves nothing of loop.steps={steps}")
        object.__setattr__(self, "learner", self.learner.model_copy(update={"schedule_steps": steps}))

    @property
    def longest_episode(self) -> int:
        """Tokens of the longest episode that the profile allows."""
        profile = self.protocol
        return profile.max_prompt_tokens + profile.max_response_tokens

    @property
    def samples_per_engine(self) -> int:
        """Samples that one engine plays at once, at most."""
        loop = self.loop
        leased = loop.requests_per_step * loop.group_size * (loop.max_staleness + 1)
        return min(leased, loop.max_running or leased)

    @property
    def learns_early(self) -> bool:
        """True when the learner begins with complete groups while others are still played.

        The loss of a teacher divides by the number of all sequences that recall experience, and a request may recall what
        another group of the step has taught. Both are known only when the last group is complete.
        """
        return self.loop.overlap and not self.experience.enabled

    @property
    def compares_early(self) -> bool:
        """True when attempts of complete groups are compared while others are still played."""
        return self.loop.overlap and self.experience.enabled

    @property
    def part_tokens(self) -> int:
        """Least number of tokens with which the learner begins early: a micro-batch."""
        return self.learner.token_budget

    def engine_for(self, positions: int | None) -> EngineConfig:
        """Return the engine's settings for a model of so many positions, None where it states none.

        Without `max_model_len`, the engine holds the longest episode, or all that the model supports.
        """
        if self.engine.max_model_len is not None:
            return self.engine
        length = min(positions or self.longest_episode, self.longest_episode)
        return self.engine.model_copy(update={"max_model_len": length})

    def _follow(self) -> None:
        """Derive the limits that are not given from the values that they depend on; the resolved configuration has them."""
        if "parity_limit" not in self.loop.model_fields_set:
            exact = self.engine.dtype == "float32" and self.learner.dtype in ("float32", "float64")
            limit = (1e-4 if exact else 0.03) + round(-math.log(self.sampling.top_p), 4)
            object.__setattr__(self, "loop", self.loop.model_copy(update={"parity_limit": limit}))
        if "token_budget" not in self.learner.model_fields_set:
            budget = max(self.learner.token_budget, self.longest_episode)
            object.__setattr__(self, "learner", self.learner.model_copy(update={"token_budget": budget}))
        if self.learner.publish_dtype is None and self.engine.dtype == "bfloat16":
            object.__setattr__(self, "learner", self.learner.model_copy(update={"publish_dtype": "bfloat16"}))
        if "max_images" not in self.engine.vllm.model_fields_set and (images := self.protocol.most_images):
            sampler = self.engine.vllm.model_copy(update={"max_images": images})
            object.__setattr__(self, "engine", self.engine.model_copy(update={"vllm": sampler}))
        if "max_concurrent" not in self.engine.model_fields_set:
            places = min(max(self.samples_per_engine, _LEAST_CONCURRENT), _MOST_CONCURRENT)
            object.__setattr__(self, "engine", self.engine.model_copy(update={"max_concurrent": places}))
        if "truths" not in self.requests.config and not self.truth_roles and self._poses_without_truths():
            without = self.requests.model_copy(update={"config": {**self.requests.config, "truths": "optional"}})
            object.__setattr__(self, "requests", without)
        if "formula" not in self.reward.model_fields_set and (formula := self._judged()) is not None:
            object.__setattr__(self, "reward", self.reward.model_copy(update={"formula": formula}))

    def _poses_without_truths(self) -> bool:
        """Return whether the request source has the setting `truths`."""
        try:
            return "truths" in self.requests.resolve().Config.model_fields
        except (UserFault, ValueError):  # Checks before the start report it.
            return False

    def _judged(self) -> ScoreFormula | None:
        """Return the formula that the judge writes into its verdicts, None where its settings do not name one."""
        if self.judge.isolated:
            return None
        try:
            return getattr(self.judge.settings(self.judge.resolve()), "formula", None)
        except (UserFault, ValueError, OSError, AttributeError):  # Checks before the start report it.
            return None

    def _lock_step(self) -> None:
        """Set the values that `deterministic` requires of engine and learner.

        The resolved configuration then shows the values in effect.
        """
        sampler = self.engine.transformers.model_copy(update={"deterministic": True, "threads": 1})
        # Frozen from the end of construction.
        object.__setattr__(self, "engine", self.engine.model_copy(update={"transformers": sampler}))
        object.__setattr__(self, "learner", self.learner.model_copy(update={"threads": 1}))


def _needs_truth(spec: JudgeSpec) -> bool:
    if spec.isolated:
        return True
    try:
        kind = spec.resolve()
        return needs_truth(kind, spec.settings(kind))
    except (UserFault, ValueError, OSError, AttributeError):  # Checks before the start report it.
        return True
