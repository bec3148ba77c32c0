"""The roles of a data build in the embedded world: entities, writer, teacher, and graders that measure from hidden truths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.parser import ToolCall, parse_turn
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.atlas.coldstart import play
from genevolve_ray.atlas.drawing import draw_scene, encode_png
from genevolve_ray.atlas.judge import AtlasJudge, AtlasJudgeConfig
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.reading import read_prompt
from genevolve_ray.atlas.recipe_prompts import AtlasPromptWriter, atlas_entities
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.sources import MOST_ENTITIES
from genevolve_ray.atlas.sufficiency import check, missing_structure
from genevolve_ray.atlas.teacher import TeacherConfig, decide
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.atlas.world import World, build_world
from genevolve_ray.data.build.audit import SCALES
from genevolve_ray.data.build.endpoints import BuildContext
from genevolve_ray.data.build.grading import HIGHEST, LOWEST, Grades
from genevolve_ray.data.build.rows import NamedEntity
from genevolve_ray.data.build.trajectories import TrajectoryRow
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory


class AtlasBuildConfig(Config):
    """Configure the world of a data build."""

    seed: int = Field(default=1, ge=0)
    """Seed of the world; the tools of the build need the same."""
    entities: int = Field(default=48, ge=2, le=MOST_ENTITIES)
    """Named subjects of the world; the tools of the build need the same."""

    def world(self, images: ImageStore | None) -> World:
        """Build the world for training; its pictures are drawn into `images`, if any."""
        return build_world(self.seed, Partition.TRAIN, images, self.entities)


class AtlasEntities:
    """List the subjects of a world as entities of a data build."""

    Config = AtlasBuildConfig

    def __init__(self, config: AtlasBuildConfig, context: BuildContext) -> None:
        """Keep the settings."""
        self._config = config

    async def entities(self) -> list[NamedEntity]:
        """Return the named subjects and the kinds."""
        return atlas_entities(self._config.world(None))


class AtlasWriter(AtlasPromptWriter):
    """Write requests about the world of a data build."""

    Config = AtlasBuildConfig

    def __init__(self, config: AtlasBuildConfig, context: BuildContext) -> None:
        """Build the world. Its pictures are drawn, because truths name them by their content."""
        super().__init__(config.world(context.images), context.seed)


class AtlasTeacherConfig(Config):
    """Configure the scripted teacher of a data build."""

    errors: TeacherConfig = TeacherConfig()
    """Rates of its errors."""
    profile: str = "atlas"
    """Protocol profile of its trajectories."""


class AtlasTeacher:
    """Implement `data.build.trajectories.TrajectoryTeacher` with the scripted teacher, which errs at set rates."""

    Config = AtlasTeacherConfig

    def __init__(self, config: AtlasTeacherConfig, context: BuildContext) -> None:
        """Play with the tools of the build, which are over the world that the requests are about."""
        self._config, self._profile = config, PROFILES[config.profile]
        digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]
        self.identity = f"atlas-teacher/1:{digest}"
        self._tools = dict(context.tools)
        self._chat = ChatFormat(build_tokenizer())

    async def play(self, request: Request, sample: int, seed: int) -> Trajectory:
        """Play one episode with decisions that follow from the seed."""
        truth = Truth.model_validate(request.meta["truth"])
        decisions = decide(truth, np.random.default_rng(seed), self._config.errors)
        played = await play(request, truth, decisions, self._tools, self._chat, guided=False, profile=self._profile)
        played.key = played.key.model_copy(update={"sample": sample})
        return played

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return system prompt and request."""
        return prompt_messages(request.prompt, self._profile, self._tools)


class GraderConfig(Config):
    """Configure nothing: what these graders measure has no settings."""


class AtlasAuditor:
    """Implement `data.build.audit.Auditor` by measuring: right pictures, needed steps, read and applied skills, facts."""

    Config = GraderConfig
    identity = "atlas-auditor/1"

    def __init__(self, config: GraderConfig | None = None, context: BuildContext | None = None) -> None:
        """Build a grader; it needs nothing."""

    async def audit(self, row: TrajectoryRow) -> Grades:
        """Return the grades. Raises InfraFailure for a row without an atlas truth."""
        truth, program = hidden_truth(row), row.program
        reading = read_prompt(program.gen_prompt)
        pictures = [hit.image.sha256 for hit in row.references]
        checks = check(truth, reading, pictures, AtlasJudgeConfig().capacity)
        calls = tool_calls(row)
        read = [str(call.arguments.get("skill_name")) for call in calls if call.name == "query_knowledge"]
        needed, lacking = truth.scene.demands(), missing_structure(truth.scene, reading)
        right = sum(any(picture in each for picture in pictures) for each in truth.right_images)
        asks = truth.fact_count or truth.fact_text or truth.sight
        faults = sum(skill not in needed for skill in read)
        faults += len(calls) - len({(call.name, repr(sorted(call.arguments.items()))) for call in calls})
        faults += 2 * (asks and not any(call.name == "search" for call in calls))
        grades = {
            "suitability": HIGHEST if truth.right_images else LOWEST + 1,
            "reference_grounding": _share(right, max(len(truth.right_images), len(pictures))),
            "process": max(LOWEST, HIGHEST - faults),
            "skill_integration": _share(sum(s in read and s not in lacking for s in needed), len(needed)),
            "prompt_faithfulness": _share(checks.facts + checks.executable_constraints, 2),
        }
        grades["supervised_value"] = min(grades.values())
        return Grades(
            values={scale: grades[scale] for scale in SCALES}, grader=self.identity, rationale=_reason(grades)
        )


class AtlasTruthGrader:
    """Implement `data.build.truths.TruthGrader` by comparing the picture with the drawn truth of the row."""

    Config = AtlasJudgeConfig

    def __init__(self, config: AtlasJudgeConfig | None = None, context: BuildContext | None = None) -> None:
        """Measure as the judge of the atlas does."""
        self._judge = AtlasJudge(config)
        digest = hashlib.sha256(self._judge.identity.encode()).hexdigest()[:8]
        self.identity = f"atlas-truth-grader/1:{digest}"

    async def grade(self, row: TruthRow, image: bytes, references: Sequence[bytes]) -> Grades:
        """Return the grades. Raises InfraFailure for a row without an atlas truth, or a picture that cannot be opened."""
        truth = hidden_truth(row)
        wanted = encode_png(draw_scene(truth.scene))
        verdict = await self._judge.judge(row.as_request(), image, wanted, row.program, row.references)
        scores = verdict.image
        shown = [scores.visual_correctness, *([] if scores.text_accuracy is None else [scores.text_accuracy])]
        right = sum(any(hit.image.sha256 in each for hit in row.references) for each in truth.right_images)
        grades = {
            "compliance": _share(min(shown), 1),
            "reference_use": _share(right, max(len(truth.right_images), len(references))),
            "coherence": _share(scores.faithfulness, 1),
            "quality": _share(scores.aesthetics, 1),
        }
        return Grades(values=grades, grader=self.identity, rationale=verdict.rationale)


def hidden_truth(row: TrajectoryRow) -> Truth:
    """Return the truth that the writer of an atlas request keeps in `meta`. Raises InfraFailure without one."""
    try:
        return Truth.model_validate(row.meta["truth"])
    except (KeyError, ValueError) as error:
        raise InfraFailure(f"row {row.id} has no truth of the atlas: {error}") from error


def tool_calls(row: TrajectoryRow) -> list[ToolCall]:
    """Return the tool calls in the messages of a row, in order."""
    turns = [str(message["content"]) for message in row.answer["messages"] if message["role"] == "assistant"]
    return [action for action in map(parse_turn, turns) if isinstance(action, ToolCall)]


def _share(part: float, whole: float) -> int:
    """Return the grade of a share: 1 for none, 5 for all."""
    return LOWEST + round((HIGHEST - LOWEST) * (part / whole if whole else 1.0))


def _reason(grades: dict[str, int]) -> str:
    low = [f"{scale} {grade}" for scale, grade in grades.items() if grade < HIGHEST]
    return f"below 5: {', '.join(low)}" if low else "nothing is missing"
