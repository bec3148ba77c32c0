"""The text under which a bundle is kept and looked for: one function of the request for both."""

from __future__ import annotations

from genevolve_ray.experience.config import KeyConfig
from genevolve_ray.records.leaks import mask
from genevolve_ray.records.request import Request


def retrieval_text(request: Request, config: KeyConfig | None = None) -> str:
    """Return what is embedded for a request, when its bundle is inserted and when a bundle is looked for.

    It stands on the request alone: a summariser's own words, which only exist afterwards, would never match a query.
    """
    config = config or KeyConfig()
    prompt = mask(request.prompt) if config.masked else request.prompt
    parts = {"eval_type": request.eval_type.value, "category": _spaced(request.category), "prompt": prompt}
    return "\n".join(parts[field] for field in config.fields if parts[field])


def _spaced(category: str) -> str:
    return " ".join(category.replace("+", " ").split())
