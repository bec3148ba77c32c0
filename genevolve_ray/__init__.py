"""genevolve_ray: self-evolving image-generation agents, trained as a distributed system on Ray."""

__version__ = "0.1.0"
