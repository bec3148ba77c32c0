"""Network probes: one call to each service of a run, within seconds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from genevolve_ray.doctor import settings_tree
from genevolve_ray.doctor.machine import Check
from genevolve_ray.doctor.parts import clean, note, ok, problem
from genevolve_ray.engines.chat_endpoint import hint_for
from genevolve_ray.errors import InfraFailure
from genevolve_ray.remote.client import Answer, Remote, ServiceRefusal
from genevolve_ray.remote.endpoint import EndpointConfig, filled

PROBE_SECONDS = 10.0
"""How long a service may take to answer a call that costs nothing."""
PAID_SECONDS = 60.0
"""How long a service may take for a small amount of paid work."""
_NO_SUCH_PLACE = frozenset({404, 405, 501})
_SHOWN = 8
"""Most names of models that a finding lists."""
_TOKEN_REFUSED = frozenset({401, 403})


async def probe_services(
    services: list[settings_tree.ConfiguredService], unset: set[str], *, spend: bool
) -> list[Check]:
    """Return a finding for every server of every service, queried concurrently.

    Args:
        services: the services to query.
        unset: variables of tokens that are not set here; services that need them are not queried.
        spend: whether a call that costs money may be made, one per server.
    """
    able = [service for service in services if service.config.token_env not in unset]
    asked = [(service, url) for service in able for url in service.config.urls if not settings_tree.waits(url)]
    return [
        check
        for checks in await asyncio.gather(*(_Asked(service, url).checks(spend=spend) for service, url in asked))
        for check in checks
    ]


class _Asked:
    """One server, queried without retries: a probe that has to wait reports it."""

    def __init__(self, service: settings_tree.ConfiguredService, url: str) -> None:
        self.service, self.config, self.url = service, service.config, url
        self.where = f"{service.key}, {url}"

    async def checks(self, *, spend: bool) -> list[Check]:
        paid = self.config.paid_probe()
        free = await self._free()
        if paid is None:
            return [free or note("answers", f"{self.where}: a server answers; its function is tested by the run")]
        if spend and not settings_tree.waits(paid.body):
            did = await self._paid()
            return [free, did] if free else [did]
        remedy = f"--spend: {paid.costs}, which may cost money"
        return [free or note("answers", f"{self.where}: a server answers; its function was not tested", remedy)]

    async def _free(self) -> Check | None:
        """Return the finding of a call that costs nothing, None where it shows only that a server answers."""
        for path in dict.fromkeys((self.config.health_path, self.config.probe_path())):
            if path and (found := await self._get(path)) is not None:
                return found
        if self.config.probe_path() or self.config.health_path:
            return None
        return await self._knock()

    async def _get(self, path: str) -> Check | None:
        remote = self._remote(PROBE_SECONDS)
        try:
            answer = await remote.call(path, _whole, method="GET")
        except ServiceRefusal as refusal:
            if refusal.status in _NO_SUCH_PLACE and path != self.config.health_path:
                return None
            return self._refused(refusal)
        except InfraFailure as failure:
            return self._silent(failure)
        finally:
            await remote.aclose()
        return self._listed(answer, path)

    async def _knock(self) -> Check | None:
        """Call the base address: any answer shows that a server exists."""
        remote = self._remote(PROBE_SECONDS)
        try:
            await remote.call("", _whole, method="GET")
        except ServiceRefusal:
            return None
        except InfraFailure as failure:
            return self._silent(failure)
        finally:
            await remote.aclose()
        return None

    async def _paid(self) -> Check:
        paid, remote = self.config.paid_probe(), self._remote(PAID_SECONDS)
        assert paid is not None
        try:
            body = None if paid.body is None else filled(self.config, paid.body, "extra_body")
            await remote.call(paid.path, Answer.object, method="GET" if body is None else "POST", body=body)
        except ServiceRefusal as refusal:
            return self._refused(refusal)
        except InfraFailure as failure:
            return self._silent(failure)
        finally:
            await remote.aclose()
        return ok("answers", f"{self.where}: works ({paid.costs})")

    def _remote(self, seconds: float) -> Remote:
        """Return a client of this server alone, with one try; the settings are valid, only tighter."""
        tighter: dict[str, Any] = {
            "url": self.url,
            "attempts": 1,
            "timeout_s": min(self.config.timeout_s, seconds),
            "connect_timeout_s": min(self.config.connect_timeout_s, seconds),
            "rate_per_s": None,
            "health_path": "",
        }
        return Remote(self.config.model_copy(update=tighter), "doctor")

    def _refused(self, refusal: ServiceRefusal) -> Check:
        if remedy := self.config.remedy(refusal.status):
            return problem("answers", f"{self.where}: {clean(refusal)}", remedy)
        if refusal.status in _TOKEN_REFUSED:
            name = self.config.token_env
            remedy = f"correct the value of {name}" if name else f"set {self.service.key}.token_env"
            return problem("answers", f"{self.where}: rejected without a valid token: {clean(refusal)}", remedy)
        hint = hint_for(refusal)
        remedy = f"{self.service.key}: {hint}" if hint else f"correct the settings at {self.service.key}"
        return problem("answers", f"{self.where}: {clean(refusal)}", remedy)

    def _silent(self, failure: InfraFailure) -> Check:
        return problem(
            "answers", f"{self.where}: {clean(failure)}", f"start the service, or correct {self.service.key}.url"
        )

    def _listed(self, answer: Answer, path: str) -> Check:
        """Return that a server answers, and whether it lists the model that the run will use."""
        said = f"{self.where}: answers at {path}"
        model = getattr(self.config, "model", "")
        if path != "models" or not model:
            return ok("answers", said)
        names = _models(answer)
        if not names or any(name == model or name.endswith(f"/{model}") for name in names):
            return ok("answers", f"{said} and lists {model}" if names else said)
        listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        if settings_tree.waits(model):
            return ok("answers", f"{said} and lists {clean(listed)}")
        status = problem if isinstance(self.config, EndpointConfig) else note
        return status(
            "answers", f"{said} and lists {clean(listed)}, not {model}", f"--set {self.service.key}.model=..."
        )


def _whole(answer: Answer) -> Answer:
    return answer


def _models(answer: Answer) -> list[str]:
    """Return the names in a list of models, none where there is no such list."""
    try:
        entries = json.loads(answer.data)["data"]
        return [str(entry["id"]) for entry in entries]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
