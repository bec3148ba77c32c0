"""Arguments and help of every `genevolve` command. Nothing heavy is imported before a command runs."""

from genevolve_ray.cli.entry import app, main

__all__ = ["app", "main"]
