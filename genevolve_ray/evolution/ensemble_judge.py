"""Several judges in one process that give one verdict together. It stands here because its members are plug-ins."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.collect import gather_or_cancel
from genevolve_ray.evolution.plugins import PluginFault, PluginSpec, Role, build_here
from genevolve_ray.judges.merging import AGREEMENT, Combination, Merging, merged_kscore, merged_open
from genevolve_ray.judges.protocol import (
    Judge,
    LooksAtReferences,
    declared_components,
    gives_kscore,
    judges_groups,
    needs_truth,
)
from genevolve_ray.records.base import Config
from genevolve_ray.records.components import AnyVerdict, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.plugin_results import PluginResultFault, checked
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import ScoreFormula

_IDENTITY_CHARS = 800


class MemberSpec(PluginSpec):
    """Select a member of an ensemble."""

    role: ClassVar = Role.JUDGE

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its weight in a mean."""

    @model_validator(mode="after")
    def _in_this_process(self) -> MemberSpec:
        if self.runtime_env:
            raise ValueError(
                f"runtime_env ({', '.join(self.runtime_env)}): the members of an ensemble share one process; give it to the "
                "ensemble, or use `judges` of the run"
            )
        return self


class EnsembleJudgeConfig(Config):
    """Configure the members and how their verdicts become one."""

    members: dict[str, MemberSpec] = Field(min_length=2)
    """The judges by name: each with `type`, `config` and, if needed, `weight`. `null` removes one that the base of a
    configuration has, such as one that gets a process of its own under `judges`."""
    combine: Combination = "mean"
    """How each component is combined over the members that measured it: their weighted `mean`, or their `median`."""
    min_members: int | None = Field(default=None, ge=1)
    """Members that must give a verdict; with fewer the judgment has failed. By default all. A member that failed is left
    out, and flagged, and never counts as 0."""
    form: Literal["auto", "kscore", "open"] = "auto"
    """`kscore`: a verdict with the four grades and the sufficiency, as `genevolve judge`, `bench` and the paper's reward
    need it; `open`: all components of all members and their agreement; `auto`: `kscore` where each member gives one and
    `agreement` names nothing."""
    agreement: tuple[str, ...] = ()
    """Components whose agreement is the component `agreement` of the open form; by default all that two members have."""

    @field_validator("members", mode="before")
    @classmethod
    def _without_removed(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else value

    @field_validator("members")
    @classmethod
    def _names(cls, value: dict[str, MemberSpec]) -> dict[str, MemberSpec]:
        if wrong := [name for name in value if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(f"{wrong[0]!r}: a name has lower-case letters, digits and _")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EnsembleJudgeConfig:
        if self.min_members is not None and self.min_members > len(self.members):
            raise ValueError(f"min_members={self.min_members}, but there are {len(self.members)} members")
        weighted = [name for name, spec in self.members.items() if spec.weight != 1]
        if self.combine == "median" and weighted:
            raise ValueError(f"combine=median has no weights, but members.{weighted[0]}.weight is set")
        if self.form == "kscore" and self.agreement:
            raise ValueError("agreement is a component of form=open, and form is kscore")
        return self

    @property
    def formula(self) -> ScoreFormula | None:
        """The formula of the members' KScores, None where they have none or several. Raises PluginFault for a bad one."""
        found = {formula for _, settings in _classes(self).values() if (formula := _formula(settings)) is not None}
        return found.pop() if len(found) == 1 else None

    @property
    def least(self) -> int:
        """Members that must give a verdict."""
        return len(self.members) if self.min_members is None else self.min_members


class EnsembleJudge:
    """Ask several judges at once and combine what they say, component by component."""

    Config = EnsembleJudgeConfig

    def __init__(self, config: EnsembleJudgeConfig, members: Mapping[str, Judge] | None = None) -> None:
        """Build the members, unless they are given.

        Raises:
            PluginFault: naming a member that cannot be built, or members that do not fit together.
        """
        self.config = config
        scales, self._kscore = self.components(config), self.gives_kscore(config)
        self._members = members or {name: _named(name, build_here, spec) for name, spec in config.members.items()}
        identities = ",".join(f"{name}={member.identity}" for name, member in self._members.items())
        own = [identities, {name: spec.weight for name, spec in config.members.items()}]
        own.append(config.model_dump(mode="json", exclude={"members"}))
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        self.identity = f"ensemble/1:{config.combine}:{digest}:{identities[:_IDENTITY_CHARS]}"
        # One that failed for a moment would otherwise be missing from equal pictures ever after.
        every = config.least == len(self._members)
        self.deterministic = every and all(getattr(one, "deterministic", False) for one in self._members.values())
        self._merging = Merging(
            judge=self.identity,
            weights={name: spec.weight for name, spec in config.members.items()},
            combine=config.combine,
            scales={name: scale for name, scale in scales.items() if name != AGREEMENT},
            agreement=() if self._kscore else _compared(config),
        )

    @classmethod
    def components(cls, config: EnsembleJudgeConfig) -> Mapping[str, ComponentRange]:
        """Return the components of the members, and `agreement` in the open form where two have one in common.

        A component that may be missing without a fault has `sometimes`: that of a member that may fail, for example.
        """
        declared = _declared(config)
        scales = {}
        for name in dict.fromkeys(name for each in declared.values() for name in each):
            first = next(each[name] for each in declared.values() if name in each)
            scales[name] = first.model_copy(update={"sometimes": _certain(name, declared, config) < 1})
        if not cls.gives_kscore(config) and (compared := _compared(config)):
            certain = any(_certain(name, declared, config) > 1 for name in compared)
            scales[AGREEMENT] = ComponentRange(sometimes=not certain)
        return scales

    @classmethod
    def gives_kscore(cls, config: EnsembleJudgeConfig) -> bool:
        """Return whether the verdicts are KScores. Raises PluginFault where they should be, and a member gives none."""
        if config.form == "open" or (config.form == "auto" and config.agreement):
            return False
        lacking = [name for name, (kind, own) in _classes(config).items() if not gives_kscore(kind, own)]
        if config.form == "kscore" and lacking:
            raise PluginFault(f"form=kscore needs members that give KScores, and {', '.join(lacking)} gives none")
        return not lacking

    @classmethod
    def needs_truth(cls, config: EnsembleJudgeConfig) -> bool:
        """Return whether a member compares with the ground-truth image."""
        return any(needs_truth(kind, settings) for kind, settings in _classes(config).values())

    @classmethod
    def truth_limits(cls, config: EnsembleJudgeConfig) -> PictureLimits | None:
        """Return the limits within which every member opens truths, None where none of them states limits."""
        found = [kind.truth_limits(own) for kind, own in _classes(config).values() if hasattr(kind, "truth_limits")]
        stated = [limits for limits in found if limits is not None]
        if not stated:
            return None
        return PictureLimits(
            formats=tuple(one for one in stated[0].formats if all(one in limits.formats for limits in stated)),
            max_bytes=min(limits.max_bytes for limits in stated),
            max_pixels=min(limits.max_pixels for limits in stated),
            min_side=max(limits.min_side for limits in stated),
        )

    @classmethod
    def check(cls, config: EnsembleJudgeConfig) -> None:
        """Check that the members fit together, and each by its own check. Raises UserFault for one that cannot be used."""
        cls.components(config)
        for kind, settings in _classes(config).values():
            if hasattr(kind, "check"):
                kind.check(settings)

    @classmethod
    def check_request(cls, config: EnsembleJudgeConfig, request: Request) -> None:
        """Check that a request has what `min_members` members need. Raises UserFault naming one that lacks something."""
        faults: list[UserFault] = []
        for name, (kind, settings) in _classes(config).items():
            if hasattr(kind, "check_request"):
                try:
                    _named(name, kind.check_request, settings, request)
                except UserFault as fault:
                    faults.append(fault)
        if len(config.members) - len(faults) < config.least:
            raise faults[0]

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Return one verdict from those of the members, which judge at the same time.

        The use of each member is counted as `judge.MEMBER`.

        Raises:
            InfraFailure: when fewer than `min_members` gave a verdict.
            PluginResultFault: naming a member that returned no verdict.
        """
        verdicts: dict[str, AnyVerdict] = {}
        failures: dict[str, InfraFailure] = {}

        async def ask(name: str, member: Judge) -> None:
            given = truth if needs_truth(member) else b""
            try:
                with metered(name):
                    judged = member.judge(request, image, given, program, references)
                    verdicts[name] = _without_agreement(member, await checked("judge", member, judged))
            except InfraFailure as failure:
                failures[name] = failure
            except PluginResultFault as fault:
                raise PluginResultFault(f"members.{name}: {fault}") from fault

        await gather_or_cancel(ask(name, member) for name, member in self._members.items())
        if len(verdicts) < self.config.least:
            why = "; ".join(f"{name}: {failures[name]}" for name in self._members if name in failures)
            raise InfraFailure(f"{len(verdicts)} of {self.config.least} needed members gave a verdict; {why}")
        ordered = {name: verdicts[name] for name in self._members if name in verdicts}
        merged = (merged_kscore if self._kscore else merged_open)(ordered, self._merging)
        missing = tuple(f"no-verdict:{name}" for name in self._members if name in failures)
        return merged.model_copy(update={"flags": merged.flags + missing}) if missing else merged

    def use_images(self, images: ImageStore) -> None:
        """Pass the store to the members that look at references."""
        for member in self._members.values():
            if isinstance(member, LooksAtReferences):
                member.use_images(images)

    def without_cache(self) -> EnsembleJudge:
        """Return the same ensemble over members without a cache."""
        bare = {name: _bare(member) for name, member in self._members.items()}
        return EnsembleJudge(self.config, bare)

    def check_health(self) -> None:
        """Raise when a member can no longer answer."""
        for member in self._members.values():
            if (check := getattr(member, "check_health", None)) is not None:
                check()

    async def aclose(self) -> None:
        """Close every member."""
        async with AsyncExitStack() as stack:
            for member in self._members.values():
                if (close := getattr(member, "aclose", None)) is not None:
                    stack.push_async_callback(close)


def _bare(member: Judge) -> Judge:
    bare: Judge = member.without_cache() if hasattr(member, "without_cache") else member
    return bare


def _named(name: str, work: Any, *arguments: Any) -> Any:
    """Return the result of work on a member. Raises PluginFault naming it."""
    try:
        return work(*arguments)
    except UserFault as fault:
        raise PluginFault(f"members.{name}: {fault}") from fault


def _classes(config: EnsembleJudgeConfig) -> dict[str, tuple[Any, Any]]:
    """Return class and settings of each member.

    Raises:
        PluginFault: naming one that cannot be found or configured, or that judges groups.
    """

    def resolved(spec: MemberSpec) -> tuple[Any, Any]:
        kind = spec.resolve()
        if judges_groups(kind):
            raise PluginFault(f"judge {spec.type} judges groups: name it under judges of the run")
        return kind, spec.settings(kind)

    return {name: _named(name, resolved, spec) for name, spec in config.members.items()}


def _formula(settings: Any) -> ScoreFormula | None:
    formula = getattr(settings, "formula", None)
    return formula if isinstance(formula, ScoreFormula) else None


def _declared(config: EnsembleJudgeConfig) -> dict[str, Mapping[str, ComponentRange]]:
    """Return the components of each member. Raises PluginFault naming members that do not fit together."""
    classes = _classes(config)
    declared = {name: _own_components(*found) for name, found in classes.items()}
    for name in dict.fromkeys(name for each in declared.values() for name in each):
        ranges = {member: (each[name].low, each[name].high) for member, each in declared.items() if name in each}
        if len(set(ranges.values())) > 1:
            told = ", ".join(f"[{low:g}, {high:g}] of {member}" for member, (low, high) in ranges.items())
            raise PluginFault(f"the members give {name} different ranges: {told}")
    if taken := [member for member, each in declared.items() if AGREEMENT in each]:
        raise PluginFault(f"members.{taken[0]} has a component {AGREEMENT!r}, which is the ensemble's own")
    formulas = {member: formula for member, (_, own) in classes.items() if (formula := _formula(own)) is not None}
    if len(set(formulas.values())) > 1:
        told = ", ".join(f"{formula.value} of {member}" for member, formula in formulas.items())
        raise PluginFault(f"the members compute their KScores by different formulas: {told}; set one `formula`")
    return declared


def _own_components(kind: Any, settings: Any) -> Mapping[str, ComponentRange]:
    """Return the components of a member; of an ensemble without its agreement, as the outer one measures its own."""
    declared = declared_components(kind, settings)
    if not (isinstance(kind, type) and issubclass(kind, EnsembleJudge)):
        return declared
    return {name: scale for name, scale in declared.items() if name != AGREEMENT}


def _without_agreement(member: Judge, verdict: AnyVerdict) -> AnyVerdict:
    if not (isinstance(member, EnsembleJudge) and isinstance(verdict, OpenVerdict)):
        return verdict
    kept = {name: component for name, component in verdict.components.items() if name != AGREEMENT}
    return verdict.model_copy(update={"components": kept})


def _compared(config: EnsembleJudgeConfig) -> tuple[str, ...]:
    """Return the components whose agreement counts. Raises PluginFault for one that two members do not have."""
    declared = _declared(config)
    shared = [
        name
        for name in dict.fromkeys(name for each in declared.values() for name in each)
        if sum(name in each for each in declared.values()) > 1
    ]
    if unknown := [name for name in config.agreement if name not in shared]:
        raise PluginFault(f"agreement: {unknown[0]!r} is no component of two members; those are {', '.join(shared)}")
    return config.agreement or tuple(shared)


def _certain(name: str, declared: Mapping[str, Mapping[str, ComponentRange]], config: EnsembleJudgeConfig) -> int:
    """Return how many members measure a component in every verdict, at least."""
    always = sum(name in each and not each[name].sometimes for each in declared.values())
    return always - (len(declared) - config.least)
