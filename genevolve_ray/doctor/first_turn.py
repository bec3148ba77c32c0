"""One turn of the policy: the model is loaded and sampled, and the turn is shown with the token that ended it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from genevolve_ray.agent.profile import prompt_messages
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.machine import Check, find_gpus
from genevolve_ray.doctor.model_folder import Weights
from genevolve_ray.doctor.parts import GIB, note, ok, problem

if TYPE_CHECKING:
    from genevolve_ray.agent.chat import ChatFormat
    from genevolve_ray.agent.policy_session import SampledTurn

PLAIN_PARAMETERS = 20_000_000
"""Largest model that is sampled without being asked to: it takes a few seconds."""
TURN_TOKENS = 192
"""Most tokens of the turn."""
_REQUEST = "a red bicycle in front of a white wall"
_SHOWN = 160
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def first_turn(config: RunConfig, folder: Path, weights: Weights, *, deep: bool) -> Check:
    """Return the policy's first turn as a finding: its text, its length, and whether it ended itself.

    The reference engine samples it, under the run's ban mask, with the profile's prompt without tools.
    """
    if not deep and weights.parameters > PLAIN_PARAMETERS:
        return note("turn", f"{weights.count} parameters: no turn was sampled", "--deep samples one")
    device = config.engine.device if find_gpus() else "cpu"
    needed = weights.parameters * _BYTES[config.engine.dtype]
    if device == "cpu" and needed > psutil.virtual_memory().available:
        return note("turn", f"no turn was sampled: the weights take {needed / GIB:.1f} GiB, more than is free here")
    try:
        form, turn, ended = asyncio.run(_sample(config, folder, device))
    except Exception as error:  # noqa: BLE001  files of others: a model class may fail in any way
        return problem("turn", f"{folder} cannot be sampled: {type(error).__name__}: {error}", "another policy.model")
    end = form.decode([form.end_of_turn_id])
    text = turn.text if len(turn.text) <= _SHOWN else f"{turn.text[:_SHOWN]}..."
    if ended:
        return ok("turn", f"{turn.tokens} tokens, ended by {end}: {text!r}")
    return note("turn", f"cut after {turn.tokens} tokens, {end} was allowed but not sampled: {text!r}")


async def _sample(config: RunConfig, folder: Path, device: str) -> tuple[ChatFormat, SampledTurn, bool]:
    from genevolve_ray.agent.policy_session import TokenSession
    from genevolve_ray.engines.protocol import SamplingParams
    from genevolve_ray.engines.transformers import TransformersEngine
    from genevolve_ray.evolution.inprocess import load_banned, load_chat

    form, profile = load_chat(folder, config.date), config.protocol
    sampling = SamplingParams(temperature=config.sampling.temperature, top_p=config.sampling.top_p)
    engine = TransformersEngine(folder, dtype=config.engine.dtype, banned=load_banned(folder, form), device=device)
    try:
        session = TokenSession(engine, form, sampling)
        messages = prompt_messages(_REQUEST, profile, {}, date=form.date)
        session.begin(messages, profile.max_prompt_tokens)
        turn = await session.sample_turn(
            max_tokens=min(profile.max_turn_tokens, TURN_TOKENS), seed=config.seed, request_id="doctor/0"
        )
        return form, turn, form.ended(session.ledger.tokens)
    finally:
        await engine.close()
