"""The tools of an earlier run, from its corpus: plug-in `genevolve_ray.tools.frozen:FrozenTools`. No network.

A question that was recorded has the recorded answer, hit by hit, with the recorded pictures. A question that was not is a
miss: it is never invented, always counted, and listed beside the run's images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import FilesystemImages, ImageRef, ImageStore
from genevolve_ray.records.observation import (
    ImageHit,
    ImageSearchObservation,
    Observation,
    QueryResult,
    SearchObservation,
    SkillObservation,
    TextHit,
    TextObservation,
)
from genevolve_ray.records.usage import CORPUS_SERVICE, Usage, record_usage
from genevolve_ray.remote.cache import AnswerCache, CacheConfig
from genevolve_ray.tools.corpus.background import BackgroundWrites
from genevolve_ray.tools.corpus.cards import checked_parameters
from genevolve_ray.tools.corpus.questions import AnswerForm, AnsweringTool, FrozenCorpusFault, Question, pictures_of
from genevolve_ray.tools.corpus.snapshot import Corpus
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.local import Bm25Index, CorpusError
from genevolve_ray.tools.protocol import EpisodeContext, Tool
from genevolve_ray.tools.running import ArgumentCheck
from genevolve_ray.tools.search import QueryRefused, SearchTool
from genevolve_ray.tools.skillset import load_skills

MISSES = "misses"
"""Folder of the questions without an answer, beside that of the images."""
_SAID_CHARS = 200
OnMiss = Literal["fail", "report", "nearest"]


class FrozenToolsConfig(Config):
    """Configure tools that answer from a corpus (`genevolve corpus freeze`)."""

    corpus: Path
    """Folder of the corpus."""
    on_miss: OnMiss = "fail"
    """What follows when the corpus has no answer. `fail`: the episode ends without a reward and the sample is drawn
    again, so that no policy is trained on results that look empty and are not. `report`: the policy reads that nothing
    was found. `nearest`: it reads the answer to the most similar recorded question of the tool, and otherwise as
    `report`. Metrics count all of them as `corpus_misses`, and similar answers as `corpus_nearest` too."""
    nearest_score: float = Field(default=0.5, gt=0, le=1)
    """Least similarity for `nearest`: the BM25 score of the recorded question, as a share of its score with itself, times
    the share of the asked words that it has."""
    skills: Path | None = None
    """Folder of skills for `query_knowledge`; null: the recorded texts."""


class FrozenTools:
    """Provide the recorded tools, with the recorded descriptions. They look answers up in memory."""

    Config = FrozenToolsConfig
    local = True
    replays = True
    """Tells that answers come from a corpus: they are not recorded again, or a miss would become a fact."""

    def __init__(self, config: FrozenToolsConfig, images: ImageStore) -> None:
        """Open the corpus; pictures are copied to `images` when an answer first shows them.

        Raises:
            FrozenCorpusFault: naming the file that is missing or damaged.
        """
        corpus = Corpus.open(config.corpus)
        replay = self._replay = _Replay(corpus, config, images)
        self.tools: dict[str, Tool] = {name: _frozen(tool, replay, config) for name, tool in corpus.tools.items()}
        self.examples: dict[str, dict[str, Any]] = {
            name: found[0].call for name in self.tools if (found := corpus.questions(name))
        }
        """A recorded question to each tool, for the checks of plug-ins."""

    async def aclose(self) -> None:
        """Finish the list of misses."""
        await self._replay.writes.finish()

    def close(self) -> None:
        """Finish the list of misses, where no event loop runs any more."""
        self._replay.writes.close()

    @classmethod
    def check(cls, config: FrozenToolsConfig) -> None:
        """Read every answer and picture once, before a run starts. Raises FrozenCorpusFault naming what is damaged."""
        corpus = Corpus.open(config.corpus)
        corpus.check()
        if config.skills is not None:
            load_skills(config.skills)


class _Replay:
    """Answer questions from a corpus, and count what it answers and what it lacks."""

    def __init__(self, corpus: Corpus, config: FrozenToolsConfig, images: ImageStore) -> None:
        self.corpus = corpus
        self._config, self._images = config, images
        beside = images.beside(MISSES) if isinstance(images, FilesystemImages) else ""
        self._missed, self.writes = AnswerCache(CacheConfig(), beside), BackgroundWrites()
        self._stored: set[ImageRef] = set()
        self._index = lru_cache(maxsize=None)(self._indexed)

    async def answer(self, question: Question, request: str) -> Observation | None:
        """Return the recorded observation, None where the policy should read that nothing was found.

        Raises:
            ToolArgumentError: where the tool refused these arguments.
            InfraFailure: for a miss with `on_miss: fail`, and for a corpus that was damaged since its start.
        """
        found = self.corpus.find(question, request)
        if found is not None:
            record_usage(CORPUS_SERVICE, Usage(cached=1))
            return await self._shown(question, request)
        similar = self._similar(question) if self._config.on_miss == "nearest" else None
        record_usage(CORPUS_SERVICE, Usage(calls=1, failed_calls=int(similar is None)))
        self.writes.start(partial(self._note, question, similar))
        if similar is not None:
            return await self._shown(similar, request)
        if self._config.on_miss == "fail":
            said = f"{question.tool} {question.arguments}"[:_SAID_CHARS]
            raise InfraFailure(f"the corpus {self.corpus.folder} has no answer to {said}")
        return None

    async def _shown(self, question: Question, request: str) -> Observation:
        found = self.corpus.find(question, request)
        assert found is not None
        try:
            observation = self.corpus.tools[question.tool].observation(found)
            if missing := [ref for ref in pictures_of(observation) if ref not in self._stored]:
                await self._copy(missing)
        except FrozenCorpusFault as fault:
            raise InfraFailure(f"the corpus {self.corpus.folder} was changed while it was used: {fault}") from fault
        except OSError as error:
            raise InfraFailure(f"the store of pictures cannot be used: {error}") from error
        return observation

    async def _copy(self, refs: list[ImageRef]) -> None:
        if isinstance(self._images, FilesystemImages) and "://" in self._images.uri:
            await asyncio.to_thread(self._store, refs)
        else:  # At once: waiting for a thread would change the waves of a deterministic run.
            self._store(refs)

    def _store(self, refs: list[ImageRef]) -> None:
        for ref in refs:
            data = self.corpus.picture(ref)
            self._images.put(data, width=ref.width, height=ref.height, media_type=ref.media_type)
            self._stored.add(ref)

    async def _note(self, question: Question, similar: Question | None) -> None:
        """List a miss beside the run's images, once for each question."""

        async def missed() -> tuple[Any, bool]:
            return {"nearest": "" if similar is None else similar.arguments}, True

        await self._missed.ask({"tool": question.tool, "arguments": question.arguments}, missed)

    def _indexed(self, tool: str) -> tuple[list[Question], Bm25Index] | None:
        questions = self.corpus.questions(tool)
        try:
            return questions, Bm25Index([question.words for question in questions])
        except CorpusError:  # No question has a word.
            return None

    def _similar(self, question: Question) -> Question | None:
        if (indexed := self._index(question.tool)) is None or (best := indexed[1].nearest(question.words)) is None:
            return None
        position, similarity = best
        return indexed[0][position] if similarity >= self._config.nearest_score else None


def _frozen(tool: AnsweringTool, replay: _Replay, config: FrozenToolsConfig) -> Tool:
    if tool.form is AnswerForm.SKILLS:
        return _skills(tool, replay, config.skills)
    if tool.form is AnswerForm.EXACT:
        return _FrozenTool(tool, replay)
    return _FrozenSearch(tool, replay)


def _skills(tool: AnsweringTool, replay: _Replay, folder: Path | None) -> KnowledgeTool:
    if folder is not None:
        return KnowledgeTool(load_skills(folder))
    texts: dict[str, str] = {}
    for question in replay.corpus.questions(tool.name):
        answer = replay.corpus.find(question)
        observation = None if answer is None else tool.observation(answer)
        if isinstance(observation, SkillObservation):
            texts[observation.skill_name] = observation.markdown
    listed = tool.card.parameters.get("properties", {}).get("skill_name", {}).get("enum", [])
    if lacking := [name for name in listed if name not in texts]:
        raise FrozenCorpusFault(
            f"{replay.corpus.folder}: lacks the text of skill {lacking[0]!r}: name a folder of skills (skills)"
        )
    made = KnowledgeTool({name: texts[name] for name in listed or texts})
    made.description = tool.card.description
    return made


class _FrozenSearch:
    """Search a corpus, one question for each query."""

    def __init__(self, tool: AnsweringTool, replay: _Replay) -> None:
        self.name, self.description, self.parameters = tool.name, tool.card.description, tool.card.parameters
        self._tool, self._replay = tool, replay

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Answer as the recorded tool did, which reads arguments in the same way."""
        top_k = self._tool.default_top_k or 1
        if self._tool.form is AnswerForm.SEARCH:
            return await SearchTool(_Texts(self._tool, self._replay, episode), top_k).call(arguments, episode)
        return await ImageSearchTool(_Pictures(self._tool, self._replay, episode), top_k).call(arguments, episode)


class _Source:
    """Answer the queries of one episode."""

    def __init__(self, tool: AnsweringTool, replay: _Replay, episode: EpisodeContext) -> None:
        self._tool, self._replay, self._request = tool, replay, episode.request.id

    async def _found(self, query: str, top_k: int) -> Observation | None:
        return await self._replay.answer(self._tool.asked(query, top_k), self._request)


class _Texts(_Source):
    async def search(self, query: str, top_k: int) -> list[TextHit]:
        found = await self._found(query, top_k)
        if not isinstance(found, SearchObservation):
            return []
        if found.results[0].error:
            raise QueryRefused(found.results[0].error)
        return list(found.results[0].hits[:top_k])


class _Pictures(_Source):
    async def search(self, query: str, top_k: int) -> list[ImageHit]:
        found = await self._found(query, top_k)
        if not isinstance(found, ImageSearchObservation):
            return []
        if found.error:
            raise QueryRefused(found.error)
        return list(found.hits[:top_k])


class _FrozenTool:
    """Answer for any other tool, by its exact arguments."""

    def __init__(self, tool: AnsweringTool, replay: _Replay) -> None:
        self.name, self.description, self.parameters = tool.name, tool.card.description, tool.card.parameters
        self._replay = replay
        self.checked_parameters = checked_parameters(tool)
        self._check = ArgumentCheck(self.name, self.checked_parameters)

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Return the recorded observation. Raises ToolArgumentError, InfraFailure as `_Replay.answer`."""
        question, request = Question.of(self.name, arguments), episode.request.id
        if self._replay.corpus.find(question, request) is None:
            self._check(arguments)
        found = await self._replay.answer(question, request)
        return _nothing(self.name, arguments) if found is None else found


def _nothing(name: str, arguments: Mapping[str, Any]) -> Observation:
    """Return an empty result of a tool."""
    if name == SearchTool.name:
        queries = arguments.get("queries")
        asked = [query for query in queries if isinstance(query, str)] if isinstance(queries, list) else []
        return SearchObservation(results=tuple(QueryResult(query=query) for query in asked))
    if name == ImageSearchTool.name:
        return ImageSearchObservation(query=str(arguments.get("query", "")))
    if name == KnowledgeTool.name:
        raise ToolArgumentError(f"no skill {str(arguments.get('skill_name'))[:60]!r}")
    return TextObservation(text="")
