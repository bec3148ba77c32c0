"""Rewards from named components of any judges: resolution of names, formulas, gates, and missing components."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.records.components import AnyVerdict, Component, ComponentRange, component_at, components_of
from genevolve_ray.records.verdict import COMBINATIONS, MissingValue, Reward, RewardConfig

Declared = Mapping[str, Mapping[str, ComponentRange]]
"""The components that each judge declares, by the judge's name."""
Combine = Callable[[Mapping[str, Component]], float]


def resolve_names(names: tuple[str, ...], declared: Declared) -> dict[str, tuple[str, str]]:
    """Return (judge, component) for each name, `JUDGE.COMPONENT` or a `COMPONENT` of one judge alone.

    Raises:
        UserFault: for a name that no judge declares, or that several declare.
    """
    every = {f"{judge}.{name}": (judge, name) for judge, scales in declared.items() for name in scales}
    found = {}
    for name in names:
        same = [full for full, (_, component) in every.items() if component == name]
        if name in every:
            found[name] = every[name]
        elif len(same) == 1:
            found[name] = every[same[0]]
        elif same:
            raise UserFault(f"reward.components: {name!r} is a component of several judges: write {' or '.join(same)}")
        else:
            raise UserFault(f"reward.components: no judge has {name!r}; components are {', '.join(every)}")
    return found


class OpenReward:
    """Combine components of several verdicts as `RewardConfig.components` says."""

    def __init__(self, config: RewardConfig, declared: Declared) -> None:
        """Resolve the names, and try a function of the user on components halfway between their ends.

        Where the reward leaves missing components out, it is also tried without each that is missing for some requests.

        Raises:
            UserFault: for unknown names, a gate outside its range, a component that requests without text lack, requests
                without any component, or a function that cannot be loaded, raises, or returns no finite number.
        """
        self._config = config
        self.places = resolve_names(config.named, declared)
        scales = {name: declared[judge][component] for name, (judge, component) in self.places.items()}
        self._scales = scales
        for name, scale in scales.items():
            if scale.sometimes and (config.missing == "infra_failure" or name in config.gates):
                raise UserFault(
                    f"reward.components: {name!r} has no value for some requests, which would never have a reward: set "
                    "reward.missing to leave_out or {value: X}, and use no gate on it"
                )
        if config.missing == "leave_out" and all(scales[name].sometimes for name in config.components):
            raise UserFault(
                f"reward.components: some requests may have no value of {' or '.join(config.components)}, and then nothing "
                "to which reward.missing=leave_out could give the weight: add a component that all requests have, set "
                "reward.missing to {value: X}, or `alone` of a judge that compares pictures"
            )
        for name, least in config.gates.items():
            if not scales[name].low < least <= scales[name].high:
                raise UserFault(
                    f"reward.gates: {name}={least:g} is outside ({scales[name].low:g}, {scales[name].high:g}]"
                )
        self._combine = _function(config.combine) if config.combine not in COMBINATIONS else None
        if self._combine is not None:
            self._try(self._combine)

    @property
    def judges(self) -> set[str]:
        """The judges whose components the reward needs."""
        return {judge for judge, _ in self.places.values()}

    def reward(
        self, verdicts: Mapping[str, AnyVerdict], tool_calls: int, failures: Mapping[str, InfraFailure] | None = None
    ) -> Reward:
        """Return the reward of one sample.

        Args:
            verdicts: by the judge's name; that of a judge that failed is absent.
            tool_calls: of the episode.
            failures: of the judges that failed, for messages.

        Raises:
            InfraFailure: when a component is missing and nothing may stand in for it, or the user's function fails.
        """
        config = self._config
        by_judge = self._by_judge(verdicts)
        found = self._found(by_judge)
        lacking = [name for name in self.places if name not in found]
        if any(map(self._must, lacking)):
            raise InfraFailure(self._why(lacking[0], failures or {}))
        counted = {name: found[name] for name in config.components if name in found}
        if isinstance(config.missing, MissingValue):
            share = config.missing.value
            counted = {n: counted.get(n) or component_at(self._scales[n], share) for n in config.components}
        if not counted or not (found or self._vacuous(verdicts)):
            raise InfraFailure(self._why(lacking[0], failures or {}))
        closed = next((name for name, least in config.gates.items() if found[name].value < least), "")
        cost = config.call_cost * tool_calls
        total = 0.0 if closed else max(0.0, self._total(counted) - cost)
        main = by_judge.get("judge", {})
        image, text = (main[name].value if name in main else 0.0 for name in ("kscore", "sufficiency"))
        parts = {name: component.scaled for name, component in counted.items()}
        return Reward(total=total, image=image, text=text, cost=cost, parts=parts, closed=closed)

    def needs(self, judge: str) -> bool:
        """Return whether a sample has no reward without a verdict of this judge."""
        return any(of == judge and self._must(name) for name, (of, _) in self.places.items())

    def check_measured(
        self, verdicts: Mapping[str, AnyVerdict], failures: Mapping[str, InfraFailure], later: Container[str]
    ) -> None:
        """Check that a sample can have a reward once the judges in `later` have judged as well.

        Raises:
            InfraFailure: when one of the others left a component missing, and nothing may stand in for it.
        """
        found = self._found(self._by_judge(verdicts))
        for name, (judge, _) in self.places.items():
            if judge not in later and name not in found and self._must(name):
                raise InfraFailure(self._why(name, failures))

    def _must(self, name: str) -> bool:
        return self._config.missing == "infra_failure" or name in self._config.gates

    def _vacuous(self, verdicts: Mapping[str, AnyVerdict]) -> bool:
        """Return whether every judge gave a verdict, and each component is one that a request may lack."""
        return all(judge in verdicts and self._scales[name].sometimes for name, (judge, _) in self.places.items())

    def _by_judge(self, verdicts: Mapping[str, AnyVerdict]) -> dict[str, dict[str, Component]]:
        return {name: components_of(verdict, self._config.formula) for name, verdict in verdicts.items()}

    def _found(self, by_judge: Mapping[str, Mapping[str, Component]]) -> dict[str, Component]:
        return {
            name: component
            for name, (judge, key) in self.places.items()
            if (component := by_judge.get(judge, {}).get(key)) is not None
        }

    def _try(self, combine: Combine) -> None:
        config = self._config
        middle = {name: component_at(self._scales[name], 0.5) for name in config.components}
        left_out = [n for n in middle if self._scales[n].sometimes] if config.missing == "leave_out" else []
        for lacking in (None, *left_out):
            tried = {name: component for name, component in middle.items() if name != lacking}
            try:
                if tried:
                    _call(combine, tried)
            except Exception as error:
                what = f"on a trial without {lacking}" if lacking else "on a trial"
                raise UserFault(f"reward.combine={config.combine} fails {what}: {error_line(error)}") from error

    def _total(self, counted: Mapping[str, Component]) -> float:
        config = self._config
        if self._combine is not None:
            try:
                return _call(self._combine, counted)
            except Exception as error:
                raise InfraFailure(f"reward.combine={config.combine}: {error_line(error)}") from error
        parts = {name: component.scaled for name, component in counted.items()}
        if config.combine == "minimum":
            return min(config.components[name] * value for name, value in parts.items())
        share = share_of(config.components, parts)
        if config.combine == "product":
            return math.prod(math.pow(value, config.components[name] * share) for name, value in parts.items())
        return sum((config.components[name] * value for name, value in parts.items()), 0.0) * share

    def _why(self, name: str, failures: Mapping[str, InfraFailure]) -> str:
        judge, component = self.places[name]
        if judge in failures:
            return str(failures[judge])
        return f"judge {judge!r} gave no component {component!r}, which the reward needs"


def share_of(weights: Mapping[str, float], present: Mapping[str, float]) -> float:
    """Return the factor by which the weights of the present components grow, so that they add up to all weights."""
    if len(present) == len(weights):
        return 1.0
    return sum(weights.values()) / sum(weights[name] for name in present)


def _function(path: str) -> Combine:
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserFault(f"reward.combine={path} cannot be loaded: {error_line(error)}") from error
    if not callable(found):
        raise UserFault(f"reward.combine={path} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _call(combine: Combine, counted: Mapping[str, Component]) -> float:
    value = combine(dict(counted))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"it returned {value!r}, not a finite number")
    return float(value)


def error_line(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
