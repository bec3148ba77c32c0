"""Recording of answers: every distinct answer of a run's tools becomes a small file beside the run's images.

The structured answers are kept here because a trajectory holds only the text that its profile made of them. The files
change neither trajectories nor checkpoints. `genevolve corpus freeze` reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.images import FilesystemImages, ImageStore
from genevolve_ray.records.observation import Observation, SkillObservation
from genevolve_ray.records.plugin_results import checked
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.tools.corpus.background import BackgroundWrites
from genevolve_ray.tools.corpus.questions import (
    AnswerForm,
    AnsweringTool,
    Question,
    RecordedAnswer,
    answers_of,
    canonical,
)
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import EpisodeContext, Tool, keeps_state

OBSERVATIONS = "observations"
"""Folder of the recorded answers, beside that of the images."""


def recorded(toolbox: Any, plugin: Any, images: ImageStore) -> Any:
    """Return a toolbox whose answers are recorded beside `images`; the toolbox itself where that is impossible.

    Args:
        toolbox: the tools of `plugin`, and those of MCP servers.
        plugin: the toolbox of the configuration. With `replays = True` it answers from a corpus; then its tools are not
            recorded again, and those of the servers are.
        images: the run's image store.
    """
    folder = images.beside(OBSERVATIONS) if isinstance(images, FilesystemImages) else ""
    replayed = frozenset(plugin.tools) if getattr(plugin, "replays", False) else frozenset()
    if not folder or toolbox.tools.keys() <= replayed:
        return toolbox
    return RecordedToolbox(toolbox, AnswerCache(CacheConfig(), folder), replayed)


class RecordedToolbox:
    """Offer the tools of a toolbox, and record what they answer. A tool with state is offered and not recorded."""

    def __init__(self, toolbox: Any, kept: AnswerCache, replayed: Collection[str] = ()) -> None:
        """Wrap `toolbox`; answers go to `kept`, except those of the tools named in `replayed`."""
        self._toolbox, self._kept, self._writes = toolbox, kept, BackgroundWrites()
        self._live: Mapping[str, Tool] = {name: tool for name, tool in toolbox.tools.items() if name not in replayed}
        self._described = False
        self.tools: dict[str, Tool] = {
            name: RecordedTool(tool, self) if name in self._live and not keeps_state(tool) else tool
            for name, tool in toolbox.tools.items()
        }

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the toolbox, such as its health check."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._toolbox, name)

    def keep(self, tool: str, request: str, answers: Mapping[Question, RecordedAnswer]) -> None:
        """Record answers to a request, behind the call. A full disk costs a warning, never the answer."""
        if not self._described:
            self._described = True
            self._writes.start(self._describe)
        for pair in answers.items():
            self._writes.start(partial(self._answered, tool, request, pair))

    async def aclose(self) -> None:
        """Finish the recording, and close the toolbox."""
        await self._writes.finish()
        if (close := getattr(self._toolbox, "aclose", None)) is not None:
            await close()

    def close(self) -> None:
        """Finish the recording, and close the toolbox, where no event loop runs any more."""
        self._writes.close()
        if (close := getattr(self._toolbox, "close", None)) is not None:
            close()

    async def _describe(self) -> None:
        for described, body in _descriptions(self._live.values()):
            await self._put({"tool": described, "card": digest(body)}, body)
        for name, text in _skills(self._live.values()):
            await self._answered(name, "", text)

    async def _answered(self, tool: str, request: str, pair: tuple[Question, RecordedAnswer]) -> None:
        question, answer = pair
        named = {"tool": tool, "arguments": question.arguments, "request": request}
        await self._put(
            {**named, "answer": digest([answer.kind, answer.body])}, {"kind": answer.kind, "body": answer.body}
        )

    async def _put(self, question: Mapping[str, Any], answer: Any) -> None:
        async def known() -> tuple[Any, bool]:
            return answer, True

        await self._kept.ask(question, known)


class RecordedTool:
    """Call a tool and record its answer."""

    def __init__(self, tool: Tool, owner: RecordedToolbox) -> None:
        """Wrap `tool`; `owner` keeps the answers."""
        self.name, self.description, self.parameters = tool.name, tool.description, tool.parameters
        self._tool, self._owner, self._described = tool, owner, AnsweringTool.of(tool)

    def __getattr__(self, name: str) -> Any:
        """Return an optional attribute of the tool, such as its cost."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tool, name)

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Call the tool, and record its answer, or of several those that no outage replaced.

        Raises:
            PluginResultFault: when the tool returns no observation.
            ToolArgumentError: as the tool.
            InfraFailure: as the tool.
        """
        try:
            observation: Observation = await checked("tools", self._tool, self._tool.call(arguments, episode))
        except ToolArgumentError as error:
            # Searches and skills refuse the same arguments in the same words wherever they run.
            if self._described.form is AnswerForm.EXACT:
                self._keep(episode, {Question.of(self.name, arguments): RecordedAnswer.refusal(str(error))})
            raise
        self._keep(episode, answers_of(self._described, arguments, observation))
        return observation

    def _keep(self, episode: EpisodeContext, answers: Mapping[Question, RecordedAnswer]) -> None:
        request = "" if self._described.form is AnswerForm.SKILLS else episode.request.id
        self._owner.keep(self.name, request, answers)


def _descriptions(tools: Any) -> Iterator[tuple[str, Any]]:
    return ((tool.name, AnsweringTool.of(tool).model_dump(mode="json")) for tool in tools)


def _skills(tools: Any) -> Iterator[tuple[str, tuple[Question, RecordedAnswer]]]:
    """Yield the texts of all skills: few, and the policy may ask for another one the next time."""
    for tool in tools:
        if isinstance(tool, KnowledgeTool):
            for name, text in tool.skills.items():
                answer = RecordedAnswer.of(SkillObservation(skill_name=name, markdown=text))
                yield tool.name, (Question.of(tool.name, {"skill_name": name}), answer)


def digest(value: Any) -> str:
    """Return the hash of a JSON value, as hexadecimal text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
