"""Plug-ins of the open run: a tool with state, and two judges whose honest grades are known and above 0."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit, Observation, TextObservation
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import ImageScores, ScoreFormula, Sufficiency, Verdict
from genevolve_ray.tools.protocol import EpisodeContext

FATAL = 4
"""The judgment in whose middle the process of `Craft` dies."""


def merit(gen_prompt: str, what: str) -> float:
    """Return the grade that a program deserves, from 0.1 to 0.9: another one for each program and each component."""
    return 0.1 + 0.8 * zlib.crc32(f"{what}: {gen_prompt}".encode()) / 2**32


class Sketch:
    """Collect the lines of each episode, and return them all."""

    name, description = "sketch", "Add a line to your sketch and return it."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"line": {"type": "string"}},
        "required": ["line"],
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    async def open_episode(self, episode: EpisodeContext) -> None:
        assert episode.key not in self._lines, f"{episode.key} is open"
        self._lines[episode.key] = [f"sketch of {episode.key}"]

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        lines = self._lines[episode.key]
        lines.append(f"{len(lines)} {arguments['line']}")
        await asyncio.sleep(0.02)  # Others add lines meanwhile.
        return TextObservation(text="\n".join(lines))

    async def close_episode(self, episode: EpisodeContext) -> None:
        del self._lines[episode.key]


class Sketches:
    """A toolbox with this tool, in the rollout workers."""

    Config = Config
    local = True

    def __init__(self, config: Config, images: ImageStore) -> None:
        self.tools = {"sketch": Sketch()}


class Patient:
    """Grade programs after a while, as a run's judge with a KScore."""

    Config = Config

    def __init__(self, config: Config) -> None:
        self.identity = "patient/1"

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        await asyncio.sleep(0.6)
        grade = merit(program.gen_prompt, "image")
        return Verdict(
            image=ImageScores(faithfulness=grade, visual_correctness=grade, text_accuracy=None, aesthetics=grade),
            text=Sufficiency(facts=True, reference_binding=True, skill_knowledge=False, executable_constraints=True),
            judge=self.identity,
            formula=ScoreFormula.PAPER,
        )


class CraftConfig(Config):
    """Where the process notes its death."""

    marker: str


class Craft:
    """Grade programs from 0 to 10; its process dies once, in the middle of a judgment."""

    Config = CraftConfig
    needs_truth = False
    components: Mapping[str, ComponentRange] = {"line": ComponentRange(high=10)}

    def __init__(self, config: CraftConfig) -> None:
        self.identity, self._marker, self._asked = "craft/1", Path(config.marker), 0

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        self._asked += 1
        await asyncio.sleep(0.1)
        if self._asked >= FATAL and not self._marker.exists():
            self._marker.write_text(str(os.getpid()), encoding="utf-8")
            os._exit(1)
        record_usage("judge", Usage(calls=1))
        value = 10 * merit(program.gen_prompt, "line")
        found = Component(value=value, high=10, rationale=f"judged by process {os.getpid()}")
        return OpenVerdict(components={"line": found}, judge=self.identity)
