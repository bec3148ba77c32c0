"""The run store: what a run leaves on disk, committed step by step."""

from genevolve_ray._moved import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {"RunStore": "run"})
