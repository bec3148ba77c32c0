"""Self-evolving image-generation agents, trained as a distributed system on Ray (GenEvolve, arXiv 2605.21605)."""

from genevolve_ray import _moved

__version__ = "0.1.0"

_moved.install()
