"""A tiny policy that sees, taught one episode by heart, so that what it samples reaches a picture."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_fakes import ScriptedEngine
from zoo import build

from benchmarks.null_parts import NoConfig, PictureTools, Requests
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.engines.null import script
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory
from genevolve_ray.tools.running import running_tools

STEPS = 600
LOSS = 0.015
"""Mean nats a token at which the episode is known well enough: most turns reach it, and some of them differ."""


def taught(kind: str, folder: Path, profile: ProtocolProfile) -> Path:
    """Write a model of the zoo that plays the script of a rehearsal under a profile that shows pictures."""
    from genevolve_ray.learning.policy import load_policy
    from genevolve_ray.learning.vision import LedgerPictures

    build(kind, folder)
    chat, images = load_chat(folder), MemoryImages()
    assert chat.image_tokens is not None
    trajectory = asyncio.run(_played(chat, images, profile))
    ledger = trajectory.ledger
    shown = LedgerPictures(chat.image_tokens).inputs(
        ledger.tokens, ledger.media, lambda sha256: images.get(trajectory.shown(sha256))
    )
    model = load_policy(folder, "float32", "cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    learn_by_heart(model, [ledger], LOSS, shown)
    model.save_pretrained(folder)
    return folder


def learn_by_heart(model: Any, ledgers: Sequence[TokenLedger], loss: float, pictures: Any = None) -> None:
    """Train a policy on its own turns of some episodes, one at a time, until each costs less than `loss` nats a token."""
    import torch
    from torch.nn.functional import cross_entropy

    from genevolve_ray.learning.policy import head_weight, hidden_states

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    last = [float("inf")] * len(ledgers)
    for step in range(STEPS):
        ledger = ledgers[step % len(ledgers)]
        ids = torch.tensor(ledger.tokens)
        places = torch.tensor([i for i, policy in enumerate(ledger.policy_mask) if policy])
        states = hidden_states(model, ids[None], pictures).squeeze(0)[places - 1]
        cost = cross_entropy(states @ head_weight(model).T, ids[places])
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        last[step % len(ledgers)] = cost.item()
        if max(last) < loss:
            return
    raise AssertionError(f"the episodes were not learned: {max(last):.3f} nats a token")


async def _played(chat: object, images: MemoryImages, profile: ProtocolProfile) -> Trajectory:
    trajectory = await run_episode(
        Requests(NoConfig(), images).train(0),
        key=SampleKey(step=0, request_id="r", sample=0),
        session=TokenSession(ScriptedEngine(chat, script(1)), chat, SamplingParams(), images.get),  # type: ignore[arg-type]
        tools=running_tools(PictureTools(NoConfig(), images).tools, profile.observations, images),
        profile=profile,
        seed=1,
    )
    assert trajectory.outcome is Outcome.PENDING, trajectory.reason
    assert trajectory.ledger.media
    return trajectory
