"""A reward from any server: `POST` of a row as JSON, a number or named numbers back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.kscore import OutOfRange
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import Component, ComponentRange, OpenVerdict
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, clean_picture
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.remote.answers import Answer, Unusable
from genevolve_ray.remote.client import Remote
from genevolve_ray.remote.config import RemoteConfig

_RATIONALE_CHARS = 1000


class RangeConfig(Config):
    """Configure the range of one number."""

    low: float = 0.0
    """Worst value."""
    high: float = 1.0
    """Best value."""
    sometimes: bool = False
    """Whether an answer may lack it; otherwise such an answer has failed."""


class HttpRewardConfig(RemoteConfig):
    """Configure the server and the numbers that it returns."""

    path: str = Field(default="reward", pattern=r"^[\w./-]+$")
    """Path under `url` that takes the POST."""
    name: str = Field(default="reward", pattern=r"^[\w./:-]+$")
    """Name of the reward; it enters the identity. Change it when the server's model changes."""
    components: dict[str, RangeConfig] = Field(default_factory=lambda: {"reward": RangeConfig()}, min_length=1)
    """The numbers that the server returns, by name, with their ranges. A bare number is allowed for a single one."""
    out_of_range: OutOfRange = "clip"
    """Treatment of a number outside its range: clip and flag it, or refuse it and request another answer."""
    send_truth: bool = False
    """Whether the server also gets the ground-truth image; requests must then have one."""
    long_side: int = Field(default=1024, ge=28, le=4096)
    """Pictures are scaled down to this many pixels on their longer side, and sent as PNG."""

    @field_validator("components")
    @classmethod
    def _named(cls, value: dict[str, RangeConfig]) -> dict[str, RangeConfig]:
        for name, one in value.items():
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"components.{name}: a name has letters, digits and _")
            if one.low >= one.high:
                raise ValueError(f"components.{name}: low={one.low:g} must be below high={one.high:g}")
        return value


class HttpReward:
    """Implement `judges.protocol.Judge` over a server: `{"rows": [ROW]}` goes out, `{"rewards": [REWARD]}` comes back.

    A ROW has `id`, `prompt`, `program`, `image` and, with `send_truth`, `truth`; images are PNG as base64. A REWARD is a
    number, or an object of numbers by name, each also as `{"value": NUMBER, "rationale": TEXT}`.
    """

    Config = HttpRewardConfig
    gives_kscore: ClassVar = False  # Also with a component of that name: there are no four grades.

    def __init__(self, config: HttpRewardConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config = config
        own = config.model_dump_json(exclude={*RemoteConfig.model_fields})
        self.identity = f"http-reward/1:{config.name}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        self._remote = Remote(config, "judge")
        self._limits = PictureLimits(long_side=config.long_side, output="PNG")

    @classmethod
    def components(cls, config: HttpRewardConfig) -> Mapping[str, ComponentRange]:
        """Return the configured components."""
        return {name: ComponentRange(**one.model_dump()) for name, one in config.components.items()}

    @classmethod
    def needs_truth(cls, config: HttpRewardConfig) -> bool:
        """Return whether the server gets the ground-truth image."""
        return config.send_truth

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> OpenVerdict:
        """Return the components that the server measured.

        Raises:
            InfraFailure: when a picture cannot be opened, or no try gave usable numbers.
        """
        pictures = {"image": image} | ({"truth": truth} if self.config.send_truth else {})
        row = {
            "id": request.id,
            "prompt": request.prompt,
            "program": program.model_dump(mode="json"),
            **await asyncio.to_thread(self._encoded, pictures, request.id),
        }
        return await self._remote.call(self.config.path, self._read, body={"rows": [row]})

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._remote.aclose()

    def _encoded(self, pictures: Mapping[str, bytes], request_id: str) -> dict[str, str]:
        sent = {}
        for name, data in pictures.items():
            try:
                sent[name] = base64.b64encode(clean_picture(data, self._limits).data).decode("ascii")
            except ImageRefused as error:
                raise InfraFailure(f"{self.identity} cannot read the {name} of {request_id}: {error}") from error
        return sent

    def _read(self, answer: Answer) -> OpenVerdict:
        rewards = answer.object().get("rewards")
        if not isinstance(rewards, list) or len(rewards) != 1:
            raise Unusable('an object {"rewards": [REWARD]} with one reward is expected')
        given = rewards[0]
        if not isinstance(given, dict):
            if len(self.config.components) > 1:
                raise Unusable(f"a bare number, but {', '.join(self.config.components)} are expected")
            given = {next(iter(self.config.components)): given}
        flags: list[str] = []
        found = {}
        for name, wanted in self.config.components.items():
            if given.get(name) is not None:
                found[name] = self._component(name, given[name], wanted, flags)
            elif not wanted.sometimes:
                raise Unusable(f"no {name} in the reward")
        return OpenVerdict(components=found, judge=self.identity, flags=tuple(flags))

    def _component(self, name: str, given: Any, wanted: RangeConfig, flags: list[str]) -> Component:
        value, rationale = (given.get("value"), given.get("rationale", "")) if isinstance(given, dict) else (given, "")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unusable(f"{name} is no finite number")
        inside = min(max(float(value), wanted.low), wanted.high)
        if inside != value:
            if self.config.out_of_range == "refuse":
                raise Unusable(f"{name}={value:g} is outside [{wanted.low:g}, {wanted.high:g}]")
            flags.append(f"clipped:{name}")
        reason = rationale[:_RATIONALE_CHARS] if isinstance(rationale, str) else ""
        return Component(value=inside, low=wanted.low, high=wanted.high, rationale=reason)
