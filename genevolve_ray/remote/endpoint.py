"""One JSON call to an OpenAI-style endpoint, with the tokens that it reports on the meter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from genevolve_ray.errors import UserFault
from genevolve_ray.records.secrets import resolved
from genevolve_ray.records.usage import Usage
from genevolve_ray.remote.answers import Answer, reported_count
from genevolve_ray.remote.client import Remote, ServiceRefusal
from genevolve_ray.remote.config import RemoteConfig


def filled(config: RemoteConfig, fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return further fields of a request, from setting `key`, with every `${NAME}` replaced by that variable.

    Raises:
        ServiceRefusal: when the variable is not set.
    """
    try:
        found: dict[str, Any] = resolved(fields, key)
    except UserFault as fault:
        raise ServiceRefusal(f"{config.urls[0]}: {fault}", 401) from fault
    return found


def without_fields(extra_body: dict[str, Any], own: frozenset[str]) -> dict[str, Any]:
    """Return further fields of a request. Raises ValueError naming those that the client itself sets (`own`)."""
    if clash := sorted(own & set(extra_body)):
        raise ValueError(f"extra_body must not set {', '.join(clash)}")
    return extra_body


class EndpointConfig(RemoteConfig):
    """Configure a model behind an OpenAI-style endpoint; `url` includes the version, as `http://host:8000/v1`."""

    model: str = Field(min_length=1)
    """Name of the model, as the server calls it."""

    def probe_path(self) -> str:
        """Return the path at which such endpoints list their models."""
        return "models"


class Endpoint(Remote):
    """Call one endpoint."""

    config: EndpointConfig

    def __init__(self, config: EndpointConfig, service: str = "endpoint") -> None:
        """Keep the config; `service` is the name on the meter."""
        super().__init__(config, service)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a JSON body to `url/path` and return the JSON object of the answer. Raises as `Remote.call`."""
        answer = await self.call(path, Answer.object, body=body)
        self.count_tokens(answer)
        return answer

    def count_tokens(self, answer: dict[str, Any]) -> None:
        """Add the tokens that an answer reports to the meter."""
        reported = answer.get("usage")
        if isinstance(reported, dict):
            tokens = {name: reported.get(name) for name in ("prompt_tokens", "completion_tokens")}
            self.spend(Usage(**{name: count for name, n in tokens.items() if (count := reported_count(n)) is not None}))
