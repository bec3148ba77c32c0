"""The policy of a rehearsal: a digest instead of weights, and one log-prob computed from it.

Engine and learner of a rehearsal both compute the log-prob from the digest. An engine with the wrong weights is
therefore detected in the same way as a real one.
"""

from __future__ import annotations

NULL_FILE = "null.json"
"""File of a version that holds the digest."""


def null_logprob(state: str) -> float:
    """Return the log-prob of every token under a digest (hex): between -1.1 and -0.1."""
    return -(0.1 + int(state[:8], 16) / 0xFFFFFFFF)
