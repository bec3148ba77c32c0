"""Plug-ins by import path: a class with its own Config class, built with its settings and the run's image store."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore


class PluginSpec(Config):
    """Which class serves a role, and its settings.

    `type` is `package.module:Class`. The class has a pydantic `Config`. Renderers and judges are built as `Class(config)`;
    request sources and toolboxes, which bring pictures into the run, as `Class(config, images)`.
    """

    type: str = Field(pattern=r"^[\w.]+:\w+$")
    config: dict[str, Any] = Field(default_factory=dict)

    def resolve(self) -> Any:
        """Import the class. Raises ValueError naming the path when it cannot be found."""
        module, _, name = self.type.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"plug-in {self.type!r} cannot be loaded: {error}") from error

    def build(self, *context: ImageStore) -> Any:
        """Build the plug-in. Raises ValueError for an unknown path, ValidationError for bad settings."""
        kind = self.resolve()
        return kind(kind.Config.model_validate(self.config), *context)
