"""How a run is laid out on Ray. Importing this module is cheap."""

from __future__ import annotations

from pydantic import Field

from genevolve_ray.records.base import Config


class ServiceConfig(Config):
    """One Ray Serve application: how many replicas, and what each takes."""

    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.1, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    max_ongoing: int = Field(default=64, ge=1)
    """Calls a replica works on at once."""
    max_queued: int = Field(default=1024, ge=1)
    """Calls that may wait at a caller; beyond, the caller is told that the service is overloaded and tries again."""
    attempts: int = Field(default=4, ge=1)
    """How often a call is tried when a replica dies or is overloaded, before it is an infrastructure failure."""


class ClusterConfig(Config):
    """Placement of a run. The default is collocated on one small machine: learner and engine take turns."""

    address: str | None = None
    """Ray address; None starts a private cluster on this machine (or joins RAY_ADDRESS)."""
    rollout_workers: int = Field(default=1, ge=1)
    rollout_cpus: float = Field(default=0.5, ge=0)
    rollout_gpus: float = Field(default=0.0, ge=0)
    learner_cpus: float = Field(default=0.5, ge=0)
    learner_gpus: float = Field(default=0.0, ge=0)
    start_timeout: float = Field(default=180.0, gt=0)
    """Seconds that actors and services may take to start."""
    object_store_mib: int = Field(default=256, ge=80)
    tools: ServiceConfig = ServiceConfig()
    renderer: ServiceConfig = ServiceConfig()
    judge: ServiceConfig = ServiceConfig()
