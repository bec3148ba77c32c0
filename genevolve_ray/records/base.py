"""The base of every record and every config class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Provide the base of records: frozen, without unknown fields.

    Unknown fields are errors, and values never change after construction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Config(BaseModel):
    """Provide the base of settings classes: frozen; each is defined next to the component that it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
