"""A judge made of chat models: KScore from a vision model, sufficiency from a text model, both concurrently."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from genevolve_ray.engines.protocol import ChatImage, ChatModel
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.asking import ask
from genevolve_ray.judges.cache import VerdictCache, judgement_question
from genevolve_ray.judges.endpoint_sufficiency import (
    SufficiencyReading,
    read_sufficiency,
    read_sufficiency_bin,
    sufficiency_messages,
)
from genevolve_ray.judges.kscore import KScoreReading, OutOfRange, kscore_messages, read_kscore
from genevolve_ray.judges.rubrics import (
    KSCORE_SCHEMA,
    SUFFICIENCY_BIN_SCHEMA,
    SUFFICIENCY_SCHEMA,
    digest,
    load_rubric,
)
from genevolve_ray.judges.seeing import SeeingConfig, shown_pictures
from genevolve_ray.records.components import KSCORE_SCALES, ComponentRange
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import EXAMINATION_FAILED, NOT_EXAMINED, UNEXAMINED, ScoreFormula, Verdict

SufficiencyCheck = Literal["required", "optional", "off"]
SufficiencyForm = Literal["booleans", "bins"]
_BIN_RUBRIC = "sufficiency_bin"
"""Rubric of the form `bins` in place of the default one, which asks for the checks."""


class VlmJudgeConfig(SeeingConfig):
    """Configure the common part of judges over chat models. All but `cache` enters the identity."""

    formula: ScoreFormula = ScoreFormula.RELEASE_SUMMARY
    """How a request without text is scored; it should be `reward.formula`."""
    kscore_rubric: str = "kscore"
    """One of `judges/prompts`, a file, or `module:attribute`."""
    sufficiency_rubric: str = "sufficiency"
    """Rubric of the program's sufficiency, named in the same ways."""
    sufficiency_form: SufficiencyForm = "booleans"
    """`booleans`: four checks by a model that sees no ground truth; `bins`: one of five grades by a model that sees it."""
    sufficiency_check: SufficiencyCheck = "required"
    """Examination of the program: required (a run needs it), optional (when it fails, the picture's scores remain), or
    off. `judge` and `bench` choose off, or optional with `--sufficiency`."""
    out_of_range: OutOfRange = "clip"
    """Treatment of a grade outside [0, 1]: clip and flag it, or refuse it and request another answer."""
    reference_pictures: bool = False
    """Show the sufficiency model the reference pictures, not only their titles and notes."""
    cache: str | None = None
    """Cache folder of verdicts; None: no cache."""


class VlmJudge:
    """Implement `judges.protocol.Judge` over any chat models; plug-ins build it with theirs."""

    config: VlmJudgeConfig

    def __init__(self, config: VlmJudgeConfig, kind: str, kscore: ChatModel, sufficiency: ChatModel) -> None:
        """Combine the parts and load the rubrics.

        Args:
            config: of the plug-in.
            kind: first part of the identity.
            kscore: the model that sees pictures.
            sufficiency: the model that reads programs; may be the same.

        Raises:
            ValueError: naming a rubric that cannot be found.
        """
        self.config = config
        self._kscore, self._sufficiency = kscore, sufficiency
        self._bins = config.sufficiency_form == "bins"
        asks_checks = config.sufficiency_rubric == VlmJudgeConfig.model_fields["sufficiency_rubric"].default
        program_rubric = _BIN_RUBRIC if self._bins and asks_checks else config.sufficiency_rubric
        self._rubrics = load_rubric(config.kscore_rubric), load_rubric(program_rubric)
        models = "+".join(dict.fromkeys((kscore.identity, sufficiency.identity)))
        self.identity = f"{kind}/1:{models}:{config.formula.value}:{digest(self._settings())[:8]}"
        self._images: ImageStore | None = None
        self._cache = VerdictCache(config.cache) if config.cache else None
        self._limits = self.truth_limits(config)

    @classmethod
    def truth_limits(cls, config: VlmJudgeConfig) -> PictureLimits:
        """Return the limits within which pictures are opened; rows with another truth are left out before a run."""
        return config.picture_limits

    @classmethod
    def components(cls, config: VlmJudgeConfig) -> Mapping[str, ComponentRange]:
        """Return the components of its verdicts; without an examination they have no sufficiency."""
        unmeasured = {"sufficiency"} if config.sufficiency_check == "off" else set()
        return {name: scale for name, scale in KSCORE_SCALES.items() if name not in unmeasured}

    def use_images(self, images: ImageStore) -> None:
        """Keep the store of the references' pictures; see `judges.protocol.LooksAtReferences`."""
        self._images = images

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return the verdict on a rendered program; see `Judge.judge`.

        Raises:
            InfraFailure: when a picture cannot be opened, or one of the models gave up or gave no usable answer.
        """
        work = partial(self._judge, request, image, truth, program, references)
        if self._cache is None:
            return await work()
        question = judgement_question(request.prompt, image, truth, program, references, self.identity)
        return await self._cache.verdict(question, work)

    def chat_models(self) -> list[ChatModel]:
        """Return the models that answer for it, each once; see `judges.protocol.AsksChatModels`."""
        return list(dict.fromkeys((self._kscore, self._sufficiency)))

    def check_health(self) -> None:
        """Raise when one of the models can no longer answer."""
        for model in self.chat_models():
            model.check_health()

    async def aclose(self) -> None:
        """Release the resources of the models."""
        for model in self.chat_models():
            await model.aclose()

    async def _judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        async def examined() -> tuple[SufficiencyReading, int] | None:
            if self.config.sufficiency_check == "off":
                return None
            try:
                return await self._examine(request, truth, program, references)
            except InfraFailure:
                if self.config.sufficiency_check == "required":
                    raise
                return None

        try:
            async with asyncio.TaskGroup() as both:
                seen = both.create_task(self._score(request, image, truth))
                read = both.create_task(examined())
        except ExceptionGroup as group:
            failures, others = group.split(InfraFailure)
            if others is not None or failures is None:
                raise
            raise failures.exceptions[0] from None
        (picture, picture_repairs), found = seen.result(), read.result()
        text, text_repairs = found if found is not None else (None, 0)
        flags = [*picture.flags, *(f"{flag}:sufficiency" for flag in (text.flags if text else ()))]
        flags += ["repaired"] if picture_repairs else []
        flags += ["repaired:sufficiency"] if text_repairs else []
        if text is None:
            flags += [UNEXAMINED] if self.config.sufficiency_check == "off" else [UNEXAMINED, EXAMINATION_FAILED]
        return Verdict(
            image=picture.scores,
            text=text.judgment if text else NOT_EXAMINED,
            rationale=picture.rationale,
            text_rationale=text.rationale if text else "",
            judge=self.identity,
            formula=self.config.formula,
            flags=tuple(flags),
        )

    async def _score(self, request: Request, image: bytes, truth: bytes) -> tuple[KScoreReading, int]:
        shown = await asyncio.to_thread(self._opened, {"generated": image, "ground-truth": truth}, request.id)
        messages = kscore_messages(self._rubrics[0], request.prompt, *shown, max_chars=self.config.text_chars)
        read = partial(read_kscore, out_of_range=self.config.out_of_range, rationale_chars=self.config.rationale_chars)
        return await ask(self._kscore, messages, read, what="KScore", schema=KSCORE_SCHEMA, **self._bounds())

    async def _examine(
        self, request: Request, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> tuple[SufficiencyReading, int]:
        target: ChatImage | None = None
        if self._bins:
            (target,) = await asyncio.to_thread(self._opened, {"ground-truth": truth}, request.id)
        pictures: list[ChatImage] = []
        if self.config.reference_pictures:
            pictures = await asyncio.to_thread(self._reference_pictures, request.id, references)
        messages = sufficiency_messages(
            self._rubrics[1],
            request.prompt,
            program,
            references,
            pictures,
            max_chars=self.config.text_chars,
            truth=target,
        )
        kept = self.config.rationale_chars
        read = partial(read_sufficiency, rationale_chars=kept)
        if self._bins:
            read = partial(read_sufficiency_bin, out_of_range=self.config.out_of_range, rationale_chars=kept)
        schema = SUFFICIENCY_BIN_SCHEMA if self._bins else SUFFICIENCY_SCHEMA
        return await ask(self._sufficiency, messages, read, what="sufficiency", schema=schema, **self._bounds())

    def _bounds(self) -> dict[str, int]:
        return {"max_tokens": self.config.max_tokens, "repairs": self.config.repairs}

    def _reference_pictures(self, request_id: str, references: Sequence[ImageHit]) -> list[ChatImage]:
        if self._images is None:
            raise InfraFailure(f"{self.identity} has reference_pictures set but received no image store")
        try:
            found = {f"reference {n}": self._images.get(hit.image) for n, hit in enumerate(references, 1)}
        except OSError as error:
            raise InfraFailure(f"{self.identity} cannot find a reference of {request_id}: {error}") from error
        return self._opened(found, request_id)

    def _opened(self, pictures: dict[str, bytes], request_id: str) -> list[ChatImage]:
        return shown_pictures(pictures, self._limits, self.identity, request_id)

    def _settings(self) -> str:
        """Return all settings that alter a verdict, as text: no address, no token, no folder."""
        own: dict[str, Any] = json.loads(self.config.model_dump_json(include=set(VlmJudgeConfig.model_fields)))
        for name in ("cache", "kscore_rubric", "sufficiency_rubric"):
            own.pop(name)
        # Judges from before there were these choices keep their identity.
        for name in ("sufficiency_check", "sufficiency_form"):
            if own[name] == VlmJudgeConfig.model_fields[name].default:
                own.pop(name)
        own["rubrics"] = [hashlib.sha256(text.encode()).hexdigest() for text in self._rubrics]
        own["models"] = self.decoding()
        return json.dumps(own, sort_keys=True)

    def decoding(self) -> list[Any]:
        """Return the settings besides `VlmJudgeConfig` that alter the models' answers, as JSON values."""
        return [self._kscore.identity, self._sufficiency.identity, {"temperature": 0}]
