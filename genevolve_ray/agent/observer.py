"""Listener of an episode while it is played, for displays of a single request."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve_ray.agent.parser import ToolCall
from genevolve_ray.records.observation import ImageHit, Observation
from genevolve_ray.records.secrets import unfinished_secret
from genevolve_ray.records.trajectory import Turn


class EpisodeObserver:
    """Listen to one episode. Every method does nothing here; a subclass overrides those it needs.

    The methods are called in the event loop of the episode, in the order of what happens, and must return at once. They
    only read: an episode with a listener has the same result as one without.
    """

    def turn_began(self, turn: int) -> None:
        """Hear that the policy is asked for turn number `turn`, from 0."""

    def text_sampled(self, piece: str) -> None:
        """Hear the next piece of the turn's text, where the engine streams. Pieces end between characters, not words."""

    def turn_sampled(self, text: str) -> None:
        """Hear the whole text of the turn, before its tool is called."""

    def tool_answered(self, call: ToolCall, observation: Observation, hits: Sequence[tuple[str, ImageHit]]) -> None:
        """Hear what a tool found; `hits` are its pictures under their ids in this trajectory."""

    def turn_ended(self, turn: Turn) -> None:
        """Hear the turn as the trajectory records it: its kind, its error, and the messages that follow it."""


class WordBuffer:
    """Hold streamed text back until its words are whole: a secret that is printed in parts could not be masked.

    The words of a secret that has several, such as the token after `Bearer`, are released together.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return the text up to the last white space that has arrived, or up to what may be a secret."""
        text = self._held + piece
        end = len(text) - len(text.split()[-1]) if text.strip() and not text[-1].isspace() else len(text)
        end = min(end, unfinished_secret(text))
        while end and not text[end - 1].isspace():
            end -= 1
        self._held = text[end:]
        return text[:end]

    def rest(self) -> str:
        """Return what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
