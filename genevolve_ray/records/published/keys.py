"""What makes two requests the same: a hash of their normalised text."""

from __future__ import annotations

import hashlib
import unicodedata


def normalise(text: str) -> str:
    """Return a request as it is compared: NFKC, case folded, runs of white space as one space, none at the ends.

    Punctuation and spelling count. NFKC is applied on both sides of the folding, which can undo it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def request_key(text: str) -> str:
    """Return a SHA-256 (hex) of the normalised request."""
    return hashlib.sha256(normalise(text).encode(errors="backslashreplace")).hexdigest()
