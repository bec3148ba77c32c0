"""The base of every record and every config class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record: unknown fields are errors, values never change after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Config(BaseModel):
    """A frozen settings class; it stands beside the component that it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
