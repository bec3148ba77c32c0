"""What calls of services took: how many, tokens, pictures, seconds, money."""

from __future__ import annotations

from genevolve_ray.records.base import Record

POLICY_SERVICE = "policy"
"""Name under which the policy's engine, or the endpoint in its place, stands on a meter."""


class Usage(Record):
    """An amount of use; amounts add up. `money` is in the currency of the configured prices."""

    calls: int = 0
    """Requests sent, every try counted."""
    failed_calls: int = 0
    """Tries that brought nothing."""
    cached: int = 0
    """Answers that a cache gave without a call."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    """Seconds that calls were on the way, added up over calls side by side."""
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})
