"""A worker's engine and its reading of the run's description."""

from __future__ import annotations

from pathlib import Path

from genevolve_ray import __version__
from genevolve_ray.agent.profile import PROFILES, ProtocolProfile
from genevolve_ray.engines.config import EngineConfig
from genevolve_ray.engines.protocol import Engine
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.inprocess import load_banned, load_chat
from genevolve_ray.gateway.wire import BLIND_PROTOCOL, PROTOCOL, RunCard


class WorkerError(UserFault, RuntimeError):
    """Report that the worker cannot continue; the message gives the reason in one line."""


def check_version(card: RunCard) -> None:
    """Check that this worker plays as the gateway replays. Raises WorkerError naming both versions."""
    if card.protocol not in (BLIND_PROTOCOL, PROTOCOL) or card.package != __version__:
        raise WorkerError(
            f"the gateway runs genevolve_ray {card.package} (protocol {card.protocol}), this worker {__version__} "
            f"(protocol {PROTOCOL}): their prompts and parsers may differ"
        )


def profile_of(card: RunCard) -> ProtocolProfile:
    """Return the profile that a run's episodes follow."""
    return PROFILES[card.profile] if card.protocol_profile is None else card.protocol_profile


async def start_engine(card: RunCard, model: Path, config: EngineConfig | None) -> Engine:
    """Start the engine of a worker on a model folder; without settings, the script of a rehearsal."""
    chat = load_chat(model)
    if config is None:
        from genevolve_ray.engines.null import NullEngine

        return NullEngine(chat.tokenizer, turn_seconds=card.turn_seconds, tool_calls=max(1, card.tool_calls))
    from genevolve_ray.engines.factory import create_engine

    limited = config.model_copy(update={"max_model_len": card.max_model_len})
    if "max_images" not in config.vllm.model_fields_set and (images := profile_of(card).most_images):
        limited = limited.model_copy(update={"vllm": config.vllm.model_copy(update={"max_images": images})})
    return await create_engine(limited, model, banned=load_banned(model, chat))
