"""Placebo: a bundle of neutral words whose guide has exactly as many tokens as the guide of a real bundle.

A guide moves a teacher by what it says, and also by being there: everything after it has later positions, and the system
prompt is longer. The control `placebo` keeps the second part alone. Head, headings, slots and bullets stay; only the words
of the bullets change.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import ProtocolProfile, guide_text
from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.experience import Experience

FILLER = "and so it is with the one and the other of this and that as it was and on it goes in its own or each".split()
"""Words of grammar, which say nothing about any task. Those that are one token of the policy's tokenizer are used."""
_LEAST_KINDS = 3
"""Fewer different words than this of one token each are too few, and all words are used."""
_DENSE = ".,-"
"""Characters of about one token each, for a line that is cut before its words have as many tokens."""
_PARTS = (" and", " it", ",", " ,", ".", "-", " -")
"""Short texts that settle the last tokens where words of several tokens do not meet the length."""


class PlaceboError(GenevolveError, ValueError):
    """Signal that no neutral text has the length of a guide under a tokenizer; the message has both lengths."""


class PlaceboWriter:
    """Write placebos under one tokenizer and one protocol profile."""

    def __init__(self, chat: ChatFormat, profile: ProtocolProfile) -> None:
        """Choose the words that are one token each."""
        self._chat, self._profile = chat, profile
        short = [word for word in FILLER if len(chat.text_ids(f" {word}")) == 1]
        self._words = short if len(set(short)) >= _LEAST_KINDS else FILLER

    def tokens(self, bundle: Experience) -> int:
        """Return the number of tokens of a bundle's guide."""
        return len(self._chat.text_ids(guide_text(self._profile, bundle)))

    def of(self, bundle: Experience) -> Experience:
        """Return the placebo of a bundle: its provenance, slots and number of bullets, and as many tokens.

        Raises:
            PlaceboError: when no neutral text has this number of tokens.
        """
        wanted, slots = self.tokens(bundle), {slot: list(bullets) for slot, bullets in bundle.guidance.items()}
        for slot, bullets in slots.items():
            for place in range(len(bullets)):

                def written(text: str, slot: str = slot, place: int = place) -> Experience:
                    changed = [*slots[slot][:place], text, *slots[slot][place + 1 :]]
                    return bundle.guided({**slots, slot: changed})

                bullets[place] = self._filled(written, wanted)
        placebo = bundle.guided(slots)
        if (found := self.tokens(placebo)) != wanted:
            raise PlaceboError(
                f"no neutral text has the {wanted} tokens of the guide of bundle {bundle.request_id!r}, the nearest has {found}"
            )
        return placebo

    def _filled(self, written: Callable[[str], Experience], wanted: int) -> str:
        """Return the longest neutral bullet with which the guide has at most the wanted tokens, at least one word.

        A line of a guide has a greatest length, within which names or another script may have more tokens than words
        do. Marks take the place of words there.
        """
        text, length, cut = self._words[0], 0, False
        for count in range(1, self._profile.max_field_chars):
            longer = " ".join(islice(cycle(self._words), count))
            tokens = self.tokens(written(longer))
            if tokens > wanted or (cut := tokens == length):
                break
            text, length = longer, tokens
        for part in (*_PARTS, *(f"{one}{other}" for one in _PARTS for other in _PARTS)):
            if length == wanted:
                break
            if length < (tokens := self.tokens(written(f"{text}{part}"))) <= wanted:
                text, length = f"{text}{part}", tokens
        for count in range(1, self._profile.max_field_chars + 1 if cut and length < wanted else 1):
            marks = "".join(islice(cycle(_DENSE), count))
            if length < (tokens := self.tokens(written(marks))) <= wanted:
                text, length = marks, tokens
        return text
