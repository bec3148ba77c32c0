"""Interface of displays that show a single request while it is answered: a terminal, and events for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genevolve_ray.agent.observer import EpisodeObserver
from genevolve_ray.evolution.sources import RequestNotUnderstood
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory


@dataclass(frozen=True)
class AskedParts:
    """Name the parts that answer requests, and the seconds that they took to start."""

    policy: str
    engine: str
    """The engine and its device, or that the policy is an endpoint."""
    tools: Sequence[str]
    renderer: str
    judges: Mapping[str, str]
    """Identity of each judge by its name."""
    seconds: float
    no_reward: str = ""
    """Why these judges give no reward together; their verdicts stand alone."""


@dataclass(frozen=True)
class Answered:
    """Hold the answer to a request: its trajectory, the judges that were not asked, its files and its seconds."""

    request: Request
    trajectory: Trajectory
    unasked: Mapping[str, str] = field(default_factory=dict)
    """Reasons why judges were not asked, by their names."""
    picture: Path | None = None
    page: Path | None = None
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """The outcome of the trajectory; PENDING is a picture that no judge with a reward has judged."""
        return self.trajectory.outcome


class AskView(EpisodeObserver):
    """Show a request while it is answered. Every method does nothing here."""

    def opening(self) -> None:
        """Say that the parts are started, which takes seconds."""

    def opened(self, parts: AskedParts) -> None:
        """Show the parts, once they are ready."""

    def asked(self, request: Request, seed: int) -> None:
        """Begin a request."""

    def programmed(self, trajectory: Trajectory) -> None:
        """Show the program and its references; rendering begins."""

    def drawn(self, trajectory: Trajectory, picture: bytes) -> None:
        """Show the picture; judging begins."""

    def judged(self, answer: Answered) -> None:
        """Show the verdicts, and why judges were not asked."""

    def ended(self, answer: Answered) -> None:
        """Show the outcome, the files and the seconds."""

    def misunderstood(self, fault: RequestNotUnderstood) -> None:
        """Show why a request cannot be played, what the world knows, and requests near to it."""

    def suggested(self, prompts: Sequence[str]) -> None:
        """Show requests that can be played."""

    def noted(self, text: str) -> None:
        """Show a line for the person who types; machines need none."""

    def failed(self, message: str, code: int) -> None:
        """Show an error that ended a request, with the exit code that it has for a command."""
