"""Random seeds: one function of (run seed, purpose, coordinates) provides all randomness."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, purpose: str, *coordinates: int | str) -> int:
    """Return a 63-bit seed for one use of randomness.

    The seed is the head of a SHA-256 over the run's seed, the purpose ("sample", "render", ...) and the coordinates of
    the use (step, request, sample, turn, attempt). Different uses get independent seeds. The same use always gets the
    same one, independent of the order in which a distributed run reaches it.
    """
    text = "\x1f".join([str(run_seed), purpose, *map(str, coordinates)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
