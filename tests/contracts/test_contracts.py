"""Every check of every contract passes on good plug-ins and fails on one with its fault."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract_subjects import (
    Box,
    GoodEmbedder,
    GoodJudge,
    GoodRenderer,
    GoodSource,
    GoodSummariser,
    GoodTool,
    decoded,
)

from genevolve_ray.atlas.judge import AtlasJudge
from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.atlas.sources import AtlasRequests, AtlasTools, WorldConfig
from genevolve_ray.atlas.summariser import AtlasSummariser
from genevolve_ray.contracts import embedder, judge, renderer, requests, summariser, tools
from genevolve_ray.contracts.running import Finding, run_checks
from genevolve_ray.contracts.samples import NOT_A_PICTURE, REQUEST, picture
from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.judges.summariser import RuleSummariser
from genevolve_ray.records.images import MemoryImages, reference
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation

SECRET = "s3cr3t-token"
LEFT: list[asyncio.Task[Any]] = []


async def findings(contract: Any, subject: Any, case: Any, limit: float = 60.0) -> dict[str, Finding]:
    return {finding.name: finding async for finding in run_checks(contract.CHECKS, subject, case, limit=limit)}


def requests_case(images: MemoryImages) -> requests.RequestsCase:
    return requests.RequestsCase(images=images, again=lambda: GoodSource(MemoryImages()))


GOOD: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "renderer": lambda: (renderer, GoodRenderer(), renderer.RendererCase(secrets=(SECRET,))),
    "judge": lambda: (judge, GoodJudge(), judge.JudgeCase(secrets=(SECRET,))),
    "summariser": lambda: (summariser, GoodSummariser(), summariser.SummariserCase(secrets=(SECRET,))),
    "embedder": lambda: (embedder, GoodEmbedder(), embedder.EmbedderCase(secrets=(SECRET,))),
    "tools": lambda: (tools, Box(GoodTool(images := MemoryImages())), tools.ToolsCase(images=images)),
    "requests": lambda: (requests, GoodSource(images := MemoryImages()), requests_case(images)),
    "AtlasRenderer": lambda: (renderer, AtlasRenderer(), renderer.RendererCase()),
    "AtlasSummariser": lambda: (summariser, AtlasSummariser(), summariser.SummariserCase()),
    "RuleSummariser": lambda: (summariser, RuleSummariser(), summariser.SummariserCase()),
    "HashingEmbedder": lambda: (embedder, HashingEmbedder(), embedder.EmbedderCase()),
    "AtlasTools": lambda: (
        tools,
        AtlasTools(WorldConfig(), images := MemoryImages()),
        tools.ToolsCase(images=images),
    ),
    "AtlasRequests": lambda: (
        requests,
        AtlasRequests(WorldConfig(), images := MemoryImages()),
        requests.RequestsCase(images=images, again=lambda: AtlasRequests(WorldConfig(), MemoryImages())),
    ),
}


@pytest.mark.parametrize("name", GOOD)
async def test_good_plug_ins_keep_every_contract(name: str) -> None:
    contract, subject, case = GOOD[name]()
    found = await findings(contract, subject, case)
    assert [f for f in found.values() if f.passed is not True] == []
    assert len(found) == len(contract.CHECKS)


async def test_the_judge_of_the_atlas_keeps_the_contract_on_a_request_of_the_atlas() -> None:
    images = MemoryImages()
    request = AtlasRequests(WorldConfig(), images).train(0)
    assert request.truth_image is not None
    case = judge.JudgeCase(request=request, truth=images.get(request.truth_image))
    found = await findings(judge, AtlasJudge(), case)
    assert [f for f in found.values() if f.passed is not True] == []


# --- faults ---


class NoPicture(GoodRenderer):
    def paint(self, *arguments: Any) -> bytes:
        return b"\x89PNG\r\n\x1a\n cut short"


class OnlyOneReference(GoodRenderer):
    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        [_] = references
        return await super().render(prompt, references, seed)


class BlindToReferences(GoodRenderer):
    def paint(self, prompt: str, references: Any, seed: int) -> bytes:
        return super().paint(prompt, [], seed)


class Dice(GoodRenderer):
    rolled = itertools.count()

    def paint(self, prompt: str, references: Any, seed: int) -> bytes:
        return super().paint(prompt, references, next(self.rolled))


class SharedState(GoodRenderer):
    """Keeps its arguments where the next call finds them."""

    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        for data in references:
            decoded(data)
        self.seed = seed
        await asyncio.sleep(0)
        return self.paint(prompt, references, self.seed)


class Telltale(GoodRenderer):
    identity = f"shade/1:{SECRET}"


class Changeling(GoodRenderer):
    def paint(self, prompt: str, references: Any, seed: int) -> bytes:
        self.identity = f"shade/{seed}/{len(references)}"
        return super().paint(prompt, references, seed)


class ReferencesAsTheyCome(GoodRenderer):
    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        return self.paint(prompt, references, seed)


class CrashesOnBadReferences(GoodRenderer):
    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        if NOT_A_PICTURE in references:
            raise KeyError("Exif")
        return await super().render(prompt, references, seed)


class LeavesTasks(GoodRenderer):
    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().render(prompt, references, seed)


class Deaf(GoodRenderer):
    """Will not be cancelled."""

    async def render(self, prompt: str, references: Any, seed: int) -> bytes:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        return await super().render(prompt, references, seed)


class Undescribed(GoodTool):
    parameters = {"type": "objekt"}


class Unrecorded(GoodTool):
    def found(self, query: str) -> Any:
        return {"query": query, "hits": []}


class Unstored(GoodTool):
    def found(self, query: str) -> Any:
        image = reference(picture(colour="white"), width=128, height=128)
        return ImageSearchObservation(query=query, hits=(ImageHit(title="a ghost", url="", image=image),))


class WrongSize(GoodTool):
    def found(self, query: str) -> Any:
        image = self.images.put(picture(), width=4, height=4)
        return ImageSearchObservation(query=query, hits=(ImageHit(title="a dwarf", url="", image=image),))


class TakesAnything(GoodTool):
    async def call(self, arguments: dict[str, Any], episode: Any) -> Any:
        return self.found(str(arguments.get("query")))


class Stumbles(GoodTool):
    async def call(self, arguments: dict[str, Any], episode: Any) -> Any:
        return self.found(arguments["query"].strip() + "x" * arguments["top_k"])


class ToolLeavesTasks(GoodTool):
    async def call(self, arguments: dict[str, Any], episode: Any) -> Any:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().call(arguments, episode)


class OutOfRange(GoodJudge):
    def verdict(self, score: float) -> Any:
        good = super().verdict(score)
        return good.model_copy(update={"image": good.image.model_copy(update={"aesthetics": 7.0})})


class Nameless(GoodJudge):
    def verdict(self, score: float) -> Any:
        return super().verdict(score).model_copy(update={"judge": "somebody"})


class Contrary(GoodJudge):
    def verdict(self, score: float) -> Any:
        return super().verdict(1 - score)


class Moody(GoodJudge):
    moods = itertools.cycle((0.0, 0.5))

    def verdict(self, score: float) -> Any:
        return super().verdict(score or next(self.moods))


class ZeroForNothing(GoodJudge):
    async def judge(self, request: Any, image: bytes, truth: bytes, program: Any, references: Any) -> Any:
        try:
            return await super().judge(request, image, truth, program, references)
        except InfraFailure:
            return self.verdict(0.0)


class OneAtATime(GoodJudge):
    busy = False

    async def judge(self, *arguments: Any) -> Any:
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            return await super().judge(*arguments)
        finally:
            self.busy = False


class JudgeTelltale(GoodJudge):
    identity = f"likeness/1 {SECRET}"


class JudgeLeavesTasks(GoodJudge):
    async def judge(self, *arguments: Any) -> Any:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().judge(*arguments)


class GivesAway(GoodSummariser):
    said = {"search_strategy": ("search for Velmora",)}


class SaysNothing(GoodSummariser):
    said: dict[str, Any] = {}


class Forgetful(GoodSummariser):
    async def compare(self, request: Any, pair: Any) -> Any:
        return (await super().compare(request, pair)).model_copy(update={"worst": ""})


class NeedsADifference(GoodSummariser):
    async def compare(self, request: Any, pair: Any) -> Any:
        assert pair.gap > 0, "no difference"
        return await super().compare(request, pair)


class SummariserTelltale(GoodSummariser):
    identity = SECRET


class SummariserLeavesTasks(GoodSummariser):
    async def compare(self, *arguments: Any) -> Any:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().compare(*arguments)


class Doubles(GoodEmbedder):
    def rows(self, texts: Any) -> Any:
        return super().rows(texts).astype(np.float64)


class Long(GoodEmbedder):
    def rows(self, texts: Any) -> Any:
        return super().rows(texts) * np.float32(1.5)


class Wandering(GoodEmbedder):
    drawn = itertools.count()

    def rows(self, texts: Any) -> Any:
        return super().rows([f"{text}{next(self.drawn)}" for text in texts])


class Blunt(GoodEmbedder):
    def rows(self, texts: Any) -> Any:
        return super().rows(["always the same"] * len(texts))


class EmbedderTelltale(GoodEmbedder):
    identity = f"digest/1?key={SECRET}"


class EmbedderLeavesTasks(GoodEmbedder):
    async def embed(self, texts: Any) -> Any:
        LEFT.append(asyncio.create_task(asyncio.Event().wait()))
        return await super().embed(texts)


class TooFew(GoodSource):
    def heldout(self, count: int) -> Any:
        return super().heldout(count - 1)


class Restless(GoodSource):
    asked = itertools.count()

    def train(self, index: int) -> Any:
        return super().train(index).model_copy(update={"prompt": f"draw {next(self.asked)}"})


class Mortal(GoodSource):
    """Poses other requests in every life."""

    lives = itertools.count()

    def __init__(self, images: Any = None) -> None:
        super().__init__(images)
        self.life = next(self.lives)

    def pose(self, part: str, index: int) -> Any:
        return super().pose(f"{part}-{self.life}", index)


class Sliding(GoodSource):
    def validation(self, count: int) -> Any:
        return [self.pose("validation", count + i) for i in range(count)]


class OpensOnly(GoodTool):
    async def open_episode(self, episode: Any) -> None:
        """Open an episode that is never closed."""


class HeldByNobody(OpensOnly):
    async def close_episode(self, episode: Any) -> None:
        """Close an episode, in a toolbox that is no `local` one."""


class TrainsOnTheTest(GoodSource):
    def heldout(self, count: int) -> Any:
        return [self.train(i).model_copy(update={"id": f"heldout-{i}"}) for i in range(count)]


class LosesTruths(GoodSource):
    def __init__(self, images: Any = None) -> None:
        super().__init__(MemoryImages())


def box(tool: type) -> tuple[Any, Any, Any]:
    images = MemoryImages()
    return tools, Box(tool(images)), tools.ToolsCase(images=images)


def source(kind: type) -> tuple[Any, Any, Any]:
    images = MemoryImages()
    return requests, kind(images), requests.RequestsCase(images=images, again=lambda: kind(MemoryImages()))


def plain(contract: Any, case: type) -> Callable[[type], tuple[Any, Any, Any]]:
    return lambda kind: (contract, kind(), case(secrets=(SECRET,)))


RENDERER, JUDGE = plain(renderer, renderer.RendererCase), plain(judge, judge.JudgeCase)
SUMMARISER, EMBEDDER = plain(summariser, summariser.SummariserCase), plain(embedder, embedder.EmbedderCase)
PLANTED: list[tuple[Any, type, str, str]] = [
    (RENDERER, NoPicture, "picture", "not an image"),
    (RENDERER, OnlyOneReference, "references", "it raised ValueError"),
    (RENDERER, BlindToReferences, "references matter", "they are not used"),
    (RENDERER, Dice, "seed", "one seed gave two images"),
    (RENDERER, SharedState, "concurrent", "other images"),
    (RENDERER, Telltale, "names itself", "contains a secret"),
    (RENDERER, Changeling, "names itself", "use changed the identity"),
    (RENDERER, ReferencesAsTheyCome, "bad reference", "caused no error"),
    (RENDERER, CrashesOnBadReferences, "bad reference", "raised KeyError"),
    (RENDERER, LeavesTasks, "cancellation", "left 1 tasks running"),
    (RENDERER, Deaf, "cancellation", "still running after"),
    (box, Undescribed, "description", "not a JSON schema"),
    (box, OpensOnly, "state", "not the other of open_episode and close_episode"),
    (box, HeldByNobody, "state", "does not declare local = True"),
    (box, Unrecorded, "observation", "returned dict"),
    (box, Unstored, "observation", "not in the image store"),
    (box, WrongSize, "observation", "its reference has (4, 4)"),
    (box, TakesAnything, "bad arguments", "which its schema forbids"),
    (box, Stumbles, "bad arguments", "with KeyError"),
    (box, ToolLeavesTasks, "cancellation", "left 1 tasks running"),
    (JUDGE, OutOfRange, "verdict", "out of range"),
    (JUDGE, Nameless, "verdict", "names 'somebody'"),
    (JUDGE, Contrary, "truth scores best", "scores 0, another image 1"),
    (JUDGE, Moody, "deterministic", "two verdicts"),
    (JUDGE, ZeroForNothing, "unreadable", "received a verdict"),
    (JUDGE, OneAtATime, "concurrent", "busy"),
    (JUDGE, JudgeTelltale, "names itself", "contains a secret"),
    (JUDGE, JudgeLeavesTasks, "cancellation", "left 1 tasks running"),
    (SUMMARISER, GivesAway, "bundle", "the name 'Velmora'"),
    (SUMMARISER, SaysNothing, "bundle", "no guidance"),
    (SUMMARISER, Forgetful, "origin", "records"),
    (SUMMARISER, NeedsADifference, "equal attempts", "no difference"),
    (SUMMARISER, SummariserTelltale, "names itself", "contains a secret"),
    (SUMMARISER, SummariserLeavesTasks, "cancellation", "left 1 tasks running"),
    (EMBEDDER, Doubles, "shape", "float64"),
    (EMBEDDER, Long, "unit norm", "length 1.5"),
    (EMBEDDER, Wandering, "deterministic", "differ by"),
    (EMBEDDER, Blunt, "tells apart", "one direction"),
    (EMBEDDER, EmbedderTelltale, "names itself", "contains a secret"),
    (EMBEDDER, EmbedderLeavesTasks, "cancellation", "left 1 tasks running"),
    (source, TooFew, "requests", "expected 8 requests, got 7"),
    (source, Restless, "same index", "changed"),
    (source, Mortal, "built anew", "changed after the source was rebuilt"),
    (source, Sliding, "prefix", "depend on the requested number"),
    (source, TrainsOnTheTest, "apart", "train and heldout share the prompt"),
    (source, LosesTruths, "truths", "not in the store"),
]


@pytest.mark.parametrize(
    ("build", "fault", "name", "reason"), PLANTED, ids=[fault.__name__ for _, fault, *_ in PLANTED]
)
async def test_a_planted_fault_is_found(
    build: Any, fault: type, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genevolve_ray.contracts.running.PATIENCE_SECONDS", 0.05)
    contract, subject, case = build(fault)
    check = next(c for c in contract.CHECKS if c.__name__ == f"check_{name.replace(' ', '_')}")
    [finding] = [finding async for finding in run_checks([check], subject, case)]
    for task in LEFT:
        task.cancel()
    LEFT.clear()
    assert finding.passed is False
    assert reason in finding.reason


def test_every_check_has_a_fault_planted_for_it() -> None:
    planted = {(build(fault)[0].__name__, name) for build, fault, name, _ in PLANTED}
    checks = {
        (contract.__name__, check.__name__.removeprefix("check_").replace("_", " "))
        for contract in (renderer, tools, judge, summariser, embedder, requests)
        for check in contract.CHECKS
    }
    assert planted == checks


async def test_a_check_that_hangs_fails_at_its_limit() -> None:
    class Hangs(GoodRenderer):
        async def render(self, prompt: str, references: Any, seed: int) -> bytes:
            await asyncio.Event().wait()
            return b""

    [finding] = [f async for f in run_checks([renderer.check_picture], Hangs(), renderer.RendererCase(), limit=0.01)]
    assert (finding.passed, finding.reason) == (False, "it took more than 0.01 s")


async def test_what_a_plug_in_does_not_claim_is_not_asked() -> None:
    class Painter(GoodRenderer):
        deterministic, takes_references = False, False

    found = await findings(renderer, Painter(), renderer.RendererCase())
    asked = {name for name, finding in found.items() if finding.passed is not None}
    assert asked == {"picture", "concurrent", "names itself", "cancellation"}


async def test_a_whole_contract_is_one_call_that_lists_all_that_is_broken() -> None:
    await renderer.check_renderer(GoodRenderer())
    with pytest.raises(AssertionError, match="picture: .*; references: .*"):
        await renderer.check_renderer(NoPicture())


def test_the_sample_request_gives_the_leak_check_something_to_find() -> None:
    assert "Velmora" in REQUEST.prompt
