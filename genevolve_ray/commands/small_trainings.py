"""The settings of the trainings of `genevolve small setup --from-nothing`, from a YAML file, `--set`, and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from genevolve_ray.config import ConfigError, explain, with_overrides
from genevolve_ray.records.strict_text import YamlFault, load_yaml

if TYPE_CHECKING:
    from genevolve_ray.small.training.settings import SmallTrainings


@dataclass(frozen=True)
class AskedTrainings:
    """Hold the settings that a call asks for."""

    file: Path | None = None
    """A YAML file with keys of `SmallTrainings`."""
    overrides: tuple[str, ...] = ()
    """`key=value`, over those of the file."""

    def values(self, begun: Mapping[str, Any], *, trains: bool) -> dict[str, Any]:
        """Return the settings that are asked for as plain values, or those that a setup was begun with.

        Raises:
            ConfigError: for a file or an override that cannot be read, or one of them where nothing is trained.
        """
        if self.file is None and not self.overrides:
            return dict(begun)
        option = "--trainings" if self.file else "--set"
        if not trains:
            raise ConfigError(f"{option} is for trainings, and the weights that ship are taken: add --from-nothing")
        return with_overrides(_read(self.file) if self.file else {}, self.overrides)


def read_trainings(given: Mapping[str, Any], asked: AskedTrainings, recorded: str) -> SmallTrainings:
    """Return the settings of all trainings: those given, and the defaults of the others.

    Args:
        given: the values of `AskedTrainings.values`.
        asked: where they are from, for messages.
        recorded: where they are from if nothing was asked for.

    Raises:
        ConfigError: naming each invalid key and its value.
    """
    from genevolve_ray.small.training.settings import SmallTrainings, with_defaults

    try:
        return SmallTrainings.model_validate(with_defaults(given))
    except ValidationError as error:
        place = "" if asked.overrides else f"{asked.file or recorded}: "
        raise ConfigError(place + explain(error, kind=SmallTrainings)) from error


def _read(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file. Raises ConfigError."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--trainings {path}: {error}") from error
    except YamlFault as error:
        raise ConfigError(str(error)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: settings are a mapping of keys, got {type(values).__name__}")
    return values
