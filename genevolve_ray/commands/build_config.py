"""The configuration of a data build: that of a run, whose tools, renderer and protocol it uses, and the section `data`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from genevolve_ray.config import RunConfig, load_as
from genevolve_ray.data.build.audit import SCALES as AUDIT_SCALES
from genevolve_ray.data.build.audit import AuditConfig
from genevolve_ray.data.build.entities import EntitySelectionConfig
from genevolve_ray.data.build.filter import ThresholdConfig
from genevolve_ray.data.build.near_duplicates import EmbeddingDuplicatesConfig, MinHashConfig
from genevolve_ray.data.build.overlaps import OverlapLimits
from genevolve_ray.data.build.publishing import PublishConfig
from genevolve_ray.data.build.split import PAPER_PARTS, PartsConfig, PartSize
from genevolve_ray.data.build.stage import CapConfig
from genevolve_ray.data.build.trajectories import TrajectoriesConfig
from genevolve_ray.data.build.truths import SCALES as TRUTH_SCALES
from genevolve_ray.data.build.truths import TruthsConfig
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.records.base import Config

BUILDS = Path(__file__).parents[1] / "configs" / "data"
"""Folder of the builds that ship with the package."""


class BuildStage(StrEnum):
    """Name the stages of a build, in order."""

    RECIPES = "recipes"
    PROMPTS = "prompts"
    TRAJECTORIES = "trajectories"
    AUDIT = "audit"
    TRUTHS = "truths"
    FILTER = "filter"
    SPLIT = "split"
    CARD = "card"

    @property
    def begun(self) -> tuple[BuildStage, ...]:
        """The stages of a build that ends with this one."""
        every = tuple(BuildStage)
        return every[: every.index(self) + 1]


class EntityFileConfig(Config):
    """Configure a file of entities."""

    path: Path
    """One name a line (`.txt`), CSV, JSON lines, Parquet, or the saved JSON result of a SPARQL query."""
    kind: str = ""
    """Kind of the entities whose row states none."""
    license: str = ""
    """License of the entities whose row states none."""
    source: str = ""
    """Source of the entities whose row states none."""


class EntitiesConfig(Config):
    """Configure the subjects that prompts may name."""

    files: tuple[EntityFileConfig, ...] = ()
    """Files of entities."""
    source: PluginSpec | None = None
    """A class with `await entities() -> list[NamedEntity]`, built as `Class(config, context)`."""
    select: EntitySelectionConfig | None = EntitySelectionConfig()
    """Which of them are used, by popularity; null: all."""
    max_uses: int = Field(default=1, ge=1)
    """Prompts that may name one entity."""
    generic: tuple[str, ...] = ()
    """Kinds of entities that are no subjects of their own, such as common nouns: prompts of several parts may name them."""
    group: int | None = Field(default=None, ge=1)
    """Entities are divided into groups of this size, and a prompt names entities of one group; null: of all. Prompts that
    share an entity go to one part, so without groups entities of many pairs would tie all prompts together."""


class StageConfig(Config):
    """Configure where and how much a stage works."""

    in_flight: int = Field(default=8, ge=1)
    """Rows that one worker processes at once."""
    workers: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    """Least and greatest number of workers on a cluster. Rates of services are divided by the greatest number."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that one worker on a cluster reserves."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that one worker on a cluster reserves."""
    cap: CapConfig = CapConfig()
    """What the stage may use."""

    @model_validator(mode="after")
    def _ordered(self) -> StageConfig:
        if self.workers[0] > self.workers[1]:
            raise ValueError(f"workers={list(self.workers)}: the least number is above the greatest one")
        return self


class TrajectoryPartsConfig(PartsConfig):
    """Configure the parts that hold trajectories."""

    parts: tuple[PartSize, ...] = Field(default=PAPER_PARTS[:2], min_length=1)
    """Names and sizes. Rows beyond all sizes become requests with a truth."""


class RequestPartsConfig(PartsConfig):
    """Configure the parts that hold requests with a truth."""

    parts: tuple[PartSize, ...] = Field(default=PAPER_PARTS[2:], min_length=1)
    """Names and sizes. Rows beyond all sizes belong to no part, and are rejected."""


class StagesConfig(Config):
    """Configure the stages that call services."""

    prompts: StageConfig = StageConfig()
    """Writing of prompts."""
    trajectories: StageConfig = StageConfig()
    """Attempts of the teacher."""
    audit: StageConfig = StageConfig()
    """Grading of trajectories."""
    truths: StageConfig = StageConfig()
    """Rendering and grading of truths."""


class DataConfig(Config):
    """Configure a data set: what is asked, who answers, who grades, and what is kept."""

    title: str = "GenEvolve-Data"
    """Title of the data card."""
    about: str = ""
    """A paragraph of the card."""
    license: str = ""
    """Identifier of the license of the data set, for its card."""
    limits: tuple[str, ...] = ()
    """Known limits, a sentence each, for the card."""
    taxonomy: str = "genevolve"
    """Values of recipes and their numbers: `genevolve`, `atlas`, `small`, or a YAML file."""
    recipes: int | None = Field(default=None, ge=1)
    """Number of recipes; null: as many as the counts of the taxonomy sum to."""
    entities: EntitiesConfig = EntitiesConfig()
    """The subjects of the prompts."""
    writer: PluginSpec
    """Who writes prompts, `data.build.prompts.PromptWriter`."""
    similar_words: MinHashConfig | None = MinHashConfig()
    """Near-duplicates by words; null: not compared."""
    similar_meaning: EmbeddingDuplicatesConfig | None = None
    """Near-duplicates by the embeddings of `experience.embedder`; null: not compared."""
    teacher: PluginSpec | None = None
    """Who answers prompts, `data.build.trajectories.TrajectoryTeacher`; null: the policy that `policy.model` or `--policy` names."""
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    """Attempts, and what one must hold."""
    auditor: PluginSpec
    """Who grades trajectories, `data.build.audit.Auditor`."""
    second_auditor: PluginSpec | None = None
    """Who grades a sample of them again, to measure agreement."""
    audit: AuditConfig = AuditConfig()
    """The sample."""
    audit_thresholds: ThresholdConfig = ThresholdConfig(mean=3.5)
    """Least grades of a trajectory; the thresholds of the paper are not published."""
    truths: TruthsConfig = TruthsConfig()
    """The rendering of truths by `renderer`."""
    truth_grader: PluginSpec
    """Who grades truths, `data.build.truths.TruthGrader`."""
    truth_thresholds: ThresholdConfig = ThresholdConfig(mean=3.5)
    """Least grades of a truth; the thresholds of the paper are not published."""
    trajectory_parts: TrajectoryPartsConfig = TrajectoryPartsConfig()
    """Parts of the trajectories that passed the audit; shares are of all of these. Only the others are rendered."""
    request_parts: RequestPartsConfig = RequestPartsConfig()
    """Parts of the requests whose truth was kept; shares are of all of these. All parts of a build have the same
    `limits`: it is enough to set them at one of the two places."""
    publish: PublishConfig = PublishConfig()
    """How pictures are written."""
    stages: StagesConfig = StagesConfig()
    """Workers and caps of the stages."""

    SCALES: ClassVar[dict[str, tuple[str, ...]]] = {"audit_thresholds": AUDIT_SCALES, "truth_thresholds": TRUTH_SCALES}

    @model_validator(mode="after")
    def _parts_apart(self) -> DataConfig:
        names = {part.name for part in self.trajectory_parts.parts}
        if both := sorted(names & {part.name for part in self.request_parts.parts}):
            raise ValueError(f"trajectory_parts and request_parts both have {', '.join(both)}")
        return self

    @property
    def overlap_limits(self) -> OverlapLimits:
        """From which similarity on two rows overlap, in all parts."""
        placed = (self.trajectory_parts, self.request_parts)
        return next((parts.limits for parts in placed if "limits" in parts.model_fields_set), OverlapLimits())

    @model_validator(mode="after")
    def _one_limit(self) -> DataConfig:
        one, other = self.trajectory_parts, self.request_parts
        both = "limits" in one.model_fields_set and "limits" in other.model_fields_set
        if both and one.limits != other.limits:
            raise ValueError(
                f"trajectory_parts.limits ({one.limits}) and request_parts.limits ({other.limits}) differ: "
                "rows of all parts are compared with each other"
            )
        return self

    @model_validator(mode="after")
    def _known_scales(self) -> DataConfig:
        for key, scales in self.SCALES.items():
            for name in getattr(self, key).least:
                if name not in scales:
                    raise ValueError(f"{key}.least.{name}: the scales are {', '.join(scales)}")
        return self


class BuildConfig(RunConfig):
    """Configure a data build."""

    data: DataConfig
    """What the build makes of the run's parts."""


def load_build(name: str, overrides: tuple[str, ...] = ()) -> BuildConfig:
    """Load a build that ships with the package by its name, or a YAML file by its path, and validate it.

    Raises:
        ConfigError: naming each invalid key and its value.
    """
    shipped = BUILDS / f"{name}.yaml"
    return load_as(BuildConfig, str(shipped) if shipped.is_file() else name, overrides)
