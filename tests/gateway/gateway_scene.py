"""An episode that an honest engine has played under a lease, and a test may forge before it hands it in."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gateway_helpers import House

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.engines.null import NullEngine
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.episodes import EpisodeRunner
from genevolve_ray.gateway.wire import LeaseGrant
from genevolve_ray.gateway.worker_engine import profile_of
from genevolve_ray.gateway.worker_pictures import WorkerPictures


@cache
def chat_of(model: Path) -> ChatFormat:
    """Return the chat format of a model folder, loaded once: leases of some tests are short."""
    return load_chat(model)


@dataclass
class Scene:
    """A lease that an honest engine has played, and not handed in."""

    house: House
    client: GatewayClient
    token: str
    grant: LeaseGrant
    body: dict[str, Any]
    answer: asyncio.Task[Any]

    async def push(self, body: Any = None, *, token: str | None = None, lease: str | None = None) -> tuple[int, str]:
        """Push a body as it is; returns status and reason ("" when it was accepted)."""
        content = body if isinstance(body, bytes) else json.dumps(self.body if body is None else body).encode()
        async with self.house.http(self.token if token is None else token) as http:
            answer = await http.post(f"/v1/leases/{lease or self.grant.id}/trajectory", content=content)
        return answer.status_code, answer.json().get("reason", "")

    @property
    def ledger(self) -> dict[str, Any]:
        return self.body["ledger"]

    def policy(self) -> list[int]:
        return [i for i, policy in enumerate(self.ledger["policy_mask"]) if policy]


async def play(h: House, name: str, task: int) -> Scene:
    """Pose a task, lease it, and play it honestly."""
    token = h.token(name)
    client = h.client(token)
    answer = asyncio.create_task(h.rollouts.rollout(h.task(task)))
    (grant,) = await client.lease(1, 10)
    weights = await client.weights(-1, 1)
    assert weights is not None
    folder = h.folder / f"weights-{name}"
    await client.download(f"/v1/weights/{weights.version}", weights.files, folder)
    chat = chat_of(h.model)
    engine = NullEngine(chat.tokenizer, turn_seconds=0, tool_calls=1)
    await engine.update(str(folder), weights.version, weights.probe)
    card = await client.run()
    pictures = WorkerPictures(client, h.folder / f"pictures-{name}")
    push = await EpisodeRunner(client, engine, chat, profile_of(card), card.tools, pictures).play(grant)
    assert push is not None
    return Scene(h, client, token, grant, push.model_dump(mode="json"), answer)
