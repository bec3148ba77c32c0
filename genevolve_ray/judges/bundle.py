"""What every summariser does the same way: the head of a bundle."""

from __future__ import annotations

from typing import Any

from genevolve_ray.records.leaks import mask
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair


def bundle_head(request: Request, pair: Pair) -> dict[str, Any]:
    """Return the fields of a bundle beside its guidance: what it is about, without the answers, and where it came from."""
    category = " ".join(request.category.replace("+", " ").split())
    return {
        "trigger": ", ".join(part for part in (request.eval_type.value, category) if part),
        "summary": mask(request.prompt),
        "step": pair.step,
        "request_id": pair.request_id,
        "best": str(pair.best.key),
        "worst": str(pair.worst.key),
        "gap": pair.gap,
    }
