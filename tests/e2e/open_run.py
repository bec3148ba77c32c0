"""A run with open tools and rewards: its settings, and a policy that plays an episode with every tool by heart."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from agent_fakes import ScriptedEngine, answer, call, image_hit
from open_run_plugins import Sketch
from taught import learn_by_heart

from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.atlas.scene import COLOURS
from genevolve_ray.atlas.sources import AtlasRequests, WorldConfig
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageObservation, Observation, TextObservation
from genevolve_ray.records.trajectory import Outcome, SampleKey
from genevolve_ray.tools.protocol import EpisodeContext

HERE = Path(__file__).parent
STEPS, REQUESTS, SAMPLES, HELDOUT = 2, 2, 4, 2
WORLD = {"seed": 1, "entities": 12}
CALLS = ("sketch", "studio_picture", "sketch", "notes_palette", "sketch")
LINES = ("red moon", "blue flag", "teal gem")
"""Lines of every sketch, in order."""
PROGRAMS = tuple(f"draw {colour} vessel from the first reference image" for colour in ("red", "blue", "green", "teal"))
EPISODES = 12
LOSS = 0.012
"""Mean nats a token at which the episode is known by heart; the choice among the programs alone is ln 4, or 0.006 a token."""


def turns(program: str) -> list[str]:
    """Return the turns of an episode: every tool is called, the sketch three times."""
    lines = iter(LINES)
    arguments = {"studio_picture": {"subject": "vessel"}, "notes_palette": {"mood": "dusk"}}
    calls = [
        call(name, COLOURS[step], **arguments.get(name) or {"line": next(lines)}) for step, name in enumerate(CALLS)
    ]
    return [*calls, answer(program)]


class StandIn:
    """A tool of a server, while the policy learns."""

    description, parameters = "", {"type": "object"}

    def __init__(self, name: str, observation: Observation) -> None:
        self.name, self._observation = name, observation

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        return self._observation


def build_policy(folder: Path, profile: Any) -> Path:
    """Write the atlas policy, which has learned the episode by heart, with any of the programs."""
    from genevolve_ray.learning.policy import load_policy

    shutil.copytree(model_folder("genevolve_ray.atlas:cold_start"), folder)
    model = load_policy(folder, "float32", "cpu")
    learn_by_heart(model, asyncio.run(_ledgers(load_chat(folder), profile)), LOSS)
    model.save_pretrained(folder)
    return folder


async def _ledgers(chat: Any, profile: Any) -> list[TokenLedger]:
    """Return episodes with every program; what the tools say differs from one to the next."""
    requests = AtlasRequests(WorldConfig.model_validate(WORLD), MemoryImages())
    ledgers = []
    for index in range(EPISODES):
        pictures = ImageObservation(
            text=f"drawn by process {1234 + 567 * index}", hits=(image_hit("picture of studio"),)
        )
        palette = TextObservation(text="dusk: indigo, rose, amber")
        tools = [Sketch(), StandIn("studio_picture", pictures), StandIn("notes_palette", palette)]
        request = requests.train(index)
        turned = turns(PROGRAMS[index % len(PROGRAMS)])
        trajectory = await run_episode(
            request,
            key=SampleKey(step=index % 3, request_id=request.id, sample=index % SAMPLES),
            session=TokenSession(ScriptedEngine(chat, turned), chat, SamplingParams()),  # type: ignore[arg-type]
            tools={tool.name: tool for tool in tools},
            profile=profile,
            seed=1,
        )
        assert trajectory.outcome is Outcome.PENDING, trajectory.reason
        ledgers.append(trajectory.ledger)
    return ledgers


def settings(root: Path, policy: Path, notes: str, taste: str, *more: str) -> RunConfig:
    """Return the settings of the run; `notes` and `taste` are the addresses of an MCP server and of a reward."""
    studio = {"command": [sys.executable, str(HERE / "open_run_server.py")], "env": {"DIES_ONCE": str(root / "studio")}}
    kept = {
        "policy.model": str(policy),
        "profile": {"extends": "atlas", "min_image_searches": 0},
        "tools": {
            "type": "open_run_plugins:Sketches",
            "mcp": {
                "servers": {"studio": studio, "notes": {"url": notes}},
                "allow": ["studio_picture", "notes_palette"],
                "timeout_s": 30,
                "start_timeout_s": 120,
            },
        },
        "requests.config": WORLD,
        "judge": {"type": "open_run_plugins:Patient"},
        "judges": {
            "craft": {"type": "open_run_plugins:Craft", "config": {"marker": str(root / "craft")}},
            "taste": {"type": "http", "config": {"url": taste, "attempts": 1, "timeout_s": 30}},
        },
        "reward.components": {"kscore": 0.4, "judge.sufficiency": 0.2, "craft.line": 0.2, "taste.reward": 0.2},
        "loop": {
            "steps": STEPS,
            "requests_per_step": REQUESTS,
            "group_size": SAMPLES,
            "validate_every": 0,
            "parity_limit": 1.0e-4,
        },
        "heldout.requests": HELDOUT,
        "learner.threads": 1,
        "learner.ved.coefficient": 0,
        "experience.enabled": False,
        "cluster.start_timeout": 400,
        "cluster.judges": {"craft": {"attempts": 8}},
    }
    return load_config("atlas", [*(f"{key}={json.dumps(value)}" for key, value in kept.items()), *more])
