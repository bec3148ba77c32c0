"""The run store: the record of a run on disk, committed step by step."""

from genevolve_ray._moved import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {"RunStore": "run"})
