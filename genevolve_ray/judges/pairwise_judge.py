"""A judge of groups: a vision model compares the pictures of a request in pairs, and each gets a score within the group."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from pydantic import Field, field_validator, model_validator

from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig
from genevolve_ray.engines.protocol import ChatImage, ChatModel
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.asking import ask
from genevolve_ray.judges.bradley_terry import is_connected, strengths, win_probabilities
from genevolve_ray.judges.kscore import bounded_line
from genevolve_ray.judges.local_judge import LocalModelConfig, check_sees
from genevolve_ray.judges.pairing import Compared, Pairs, Preference, pair_messages, pairs_of, read_preference
from genevolve_ray.judges.protocol import Attempt
from genevolve_ray.judges.rubrics import PAIRWISE_SCHEMA, digest, load_rubric
from genevolve_ray.judges.seeing import SeeingConfig, shown_pictures
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.request import Request


class PairwiseJudgeConfig(SeeingConfig):
    """Configure the model that compares, and the comparisons. The model is either `chat` or `local`."""

    chat: EndpointChatConfig | None = None
    """A model behind an endpoint that sees pictures."""
    local: LocalModelConfig | None = None
    """A model in the judge's own replica, which then needs a GPU."""
    rubric: str = "pairwise"
    """One of `judges/prompts`, a file, or `module:attribute`."""
    pairs: Pairs = "all"
    """`all`: each picture is compared with each other one. A number n: the pictures form a circle, and each is compared
    with the next n. Each pair takes two calls, one for either order."""
    prior: float = Field(default=1.0, ge=1e-6, allow_inf_nan=False)
    """Weight of the assumption that all pictures are equal, in comparisons of each picture. A larger one draws the scores
    to 0.5; without any, a picture that has won everything would have no finite strength."""
    show_truth: bool = False
    """Show the model the ground-truth image as well; requests must then have one."""
    alone: float | None = Field(default=None, ge=0, le=1)
    """Score of a picture without a rival: in evaluations, or when all other samples failed. None: it has none, which needs
    `reward.missing` `leave_out` or a value."""

    @field_validator("pairs")
    @classmethod
    def _at_least_one(cls, value: Pairs) -> Pairs:
        if value != "all" and value < 1:
            raise ValueError(f"pairs={value}: each picture needs at least one comparison")
        return value

    @model_validator(mode="after")
    def _one_model(self) -> PairwiseJudgeConfig:
        if (self.chat is None) == (self.local is None):
            raise ValueError("give one model: chat (an endpoint) or local")
        return self


class PairwiseJudge:
    """Compare the pictures of a group in pairs, each in both orders, and score them by Bradley and Terry.

    `preference` is the mean probability that the picture wins against another attempt of the group, so its mean over the
    group is 0.5. `agreement` is the share of its comparisons in which both orders gave the same answer. Equal pictures are
    compared once, and tie with each other.
    """

    Config = PairwiseJudgeConfig

    def __init__(self, config: PairwiseJudgeConfig, chat: ChatModel | None = None) -> None:
        """Load the rubric, and a model of the judge's own.

        Args:
            config: the settings.
            chat: an existing chat model, instead of the configured one.

        Raises:
            ValueError: naming a rubric or backend that cannot be found, or a model without vision.
            FileNotFoundError: naming a model folder that does not exist.
        """
        self.config = config
        self._rubric = load_rubric(config.rubric)
        self._chat = chat or _model(config)
        check_sees(self._chat)
        self._limits = config.picture_limits
        self.identity = f"pairwise-judge/1:{self._chat.identity}:{digest(self._settings())[:8]}"

    @classmethod
    def components(cls, config: PairwiseJudgeConfig) -> Mapping[str, ComponentRange]:
        """Return the components; both may be missing for a picture without a rival."""
        return {
            "preference": ComponentRange(sometimes=config.alone is None),
            "agreement": ComponentRange(sometimes=True),
        }

    @classmethod
    def needs_truth(cls, config: PairwiseJudgeConfig) -> bool:
        """Return whether the model sees the ground-truth image."""
        return config.show_truth

    def chat_models(self) -> list[ChatModel]:
        """Return the model; see `judges.protocol.AsksChatModels`."""
        return [self._chat]

    def check_health(self) -> None:
        """Raise when the model can no longer answer."""
        self._chat.check_health()

    async def aclose(self) -> None:
        """Release the resources of the model."""
        await self._chat.aclose()

    async def judge_group(self, request: Request, truth: bytes, attempts: Sequence[Attempt]) -> list[OpenVerdict]:
        """Return a verdict on each attempt; see `GroupJudge.judge_group`.

        A comparison that failed is left out, as long as the others connect all pictures.

        Raises:
            InfraFailure: when a picture cannot be opened, or too many comparisons failed.
        """
        if len(attempts) < 2:
            lone = {} if self.config.alone is None else {"preference": Component(value=self.config.alone)}
            return [OpenVerdict(components=lone, judge=self.identity) for _ in attempts]
        # In an order of their own, so that scores do not depend on that of the attempts.
        names = [hashlib.sha256(one.image).hexdigest() for one in attempts]
        distinct = dict(sorted(zip(names, (one.image for one in attempts), strict=True)))
        number = {name: i for i, name in enumerate(distinct)}
        places = [number[name] for name in names]
        results = await self._compared(request, truth, distinct)
        compared = {pair: found for pair, found in results.items() if isinstance(found, Compared)}
        failures = {pair: found for pair, found in results.items() if isinstance(found, InfraFailure)}
        wins_KK = np.zeros((len(distinct), len(distinct)))
        for (one, two), found in compared.items():
            wins_KK[one, two], wins_KK[two, one] = found.share, 1 - found.share
        if not is_connected(wins_KK):
            raise InfraFailure(
                f"{self.identity}: {len(failures)} of {len(results)} comparisons of {request.id} failed, and the others do "
                f"not connect its pictures: {next(iter(failures.values()))}"
            )
        chances_KK = win_probabilities(strengths(wins_KK, self.config.prior))
        verdicts = []
        for attempt, own in enumerate(places):
            rivals = sorted(places[:attempt] + places[attempt + 1 :])
            preference = float(np.mean([chances_KK[own, rival] for rival in rivals]))
            left_out = sum(own in pair for pair in failures)
            verdicts.append(self._verdict(preference, list(_views(own, compared, places)), left_out))
        return verdicts

    async def _compared(
        self, request: Request, truth: bytes, images: Mapping[str, bytes]
    ) -> dict[tuple[int, int], Compared | InfraFailure]:
        """Return the comparison of each pair that is due among pictures by their hash, or its failure.

        Raises:
            InfraFailure: when a picture cannot be opened.
        """
        pairs = pairs_of(len(images), self.config.pairs, request.id)
        named = {f"generated {name[:12]}": image for name, image in images.items()} if pairs else {}
        target = {"ground-truth": truth} if pairs and self.config.show_truth else {}
        opened = partial(shown_pictures, limits=self._limits, judge=self.identity, request_id=request.id)
        shown, shown_truth = await asyncio.to_thread(opened, named), await asyncio.to_thread(opened, target)

        async def compare(one: int, two: int) -> Preference | InfraFailure:
            return await self._ask(request.prompt, shown[one], shown[two], shown_truth)

        async with asyncio.TaskGroup() as group:
            asked = {
                (one, two): (group.create_task(compare(one, two)), group.create_task(compare(two, one)))
                for one, two in pairs
            }
        return {pair: _both(*(task.result() for task in tasks)) for pair, tasks in asked.items()}

    async def _ask(
        self, prompt: str, one: ChatImage, two: ChatImage, truth: Sequence[ChatImage]
    ) -> Preference | InfraFailure:
        messages = pair_messages(self._rubric, prompt, one, two, truth, max_chars=self.config.text_chars)
        try:
            found, repairs = await ask(
                self._chat,
                messages,
                partial(read_preference, rationale_chars=self.config.rationale_chars),
                what="preference",
                schema=PAIRWISE_SCHEMA,
                max_tokens=self.config.max_tokens,
                repairs=self.config.repairs,
            )
        except InfraFailure as failure:
            return failure
        return replace(found, flags=(*found.flags, "repaired")) if repairs else found

    def _verdict(self, preference: float, views: Sequence[_View], left_out: int) -> OpenVerdict:
        won, lost = sum(view.share == 1 for view in views), sum(view.share == 0 for view in views)
        split = sum(not view.agreed for view in views)
        summary = (
            f"won {won}, lost {lost}, tied {len(views) - won - lost} of {len(views)} comparisons; "
            f"the two orders disagreed in {split}"
        )
        summary += f"; {left_out} failed" if left_out else ""
        found = {"preference": Component(value=preference, rationale=summary)}
        if views:
            found["agreement"] = Component(value=1 - split / len(views))
        flags = [flag for view in views for flag in view.answer.flags]
        flags += (["disagreed:preference"] if split else []) + (["left-out:preference"] if left_out else [])
        reasons = " ".join(f"Against attempt {view.rival}: {view.answer.rationale}" for view in views)
        return OpenVerdict(
            components=found,
            judge=self.identity,
            rationale=bounded_line(reasons, self.config.rationale_chars),
            flags=tuple(dict.fromkeys(flags)),
        )

    def _settings(self) -> str:
        """Return all settings that alter a verdict, as text: no address, no token, no folder."""
        config = self.config
        own = config.model_dump(mode="json", exclude={"chat", "local", "rubric"})
        decoding = config.chat.decoding() if config.chat else config.local.decoding() if config.local else None
        return json.dumps([own, digest(self._rubric), self._chat.identity, decoding], sort_keys=True)


def _model(config: PairwiseJudgeConfig) -> ChatModel:
    if config.chat is not None:
        return EndpointChat(config.chat, "judge")
    assert config.local is not None, "the settings have one model"
    return config.local.load()


@dataclass(frozen=True)
class _View:
    """Hold a comparison as one of the two pictures sees it."""

    rival: int
    """Number of the first attempt with the other picture, from 1."""
    share: float
    agreed: bool
    answer: Preference
    """Where this picture was image 1."""


def _views(own: int, compared: Mapping[tuple[int, int], Compared], places: Sequence[int]) -> Iterator[_View]:
    for (one, two), found in compared.items():
        if own == one:
            yield _View(1 + places.index(two), found.share, found.agreed, found.straight)
        elif own == two:
            yield _View(1 + places.index(one), 1 - found.share, found.agreed, found.swapped)


def _both(straight: Preference | InfraFailure, swapped: Preference | InfraFailure) -> Compared | InfraFailure:
    if isinstance(straight, InfraFailure):
        return straight
    return swapped if isinstance(swapped, InfraFailure) else Compared(straight, swapped)
