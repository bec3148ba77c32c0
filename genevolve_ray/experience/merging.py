"""Merging of near bundles: a lesson that is the majority of several, a departure from PAPER section 4, item 3.

The paper recalls the nearest bundle whole, or nothing. Here every bullet is an item that the bundles vote on. An item
wins with more than half of the votes, or with exactly half where the nearest bundle is among them. So of two bundles the
nearest wins whole. A slot without a winner keeps what the nearest bundle says there, unless a majority leaves it empty.
The result depends on nothing but the bundles and their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from genevolve_ray.experience.likeness import alike_bullets
from genevolve_ray.records.experience import Experience


def merge_bundles(bundles: Sequence[Experience], alike: float = 1.0) -> Experience:
    """Return the majority of bundles, in the format of the nearest; bundles of other formats have no vote.

    The result belongs to no request and to no step. Its bullets are those of the bundles, word for word, so each has
    passed the check for leaks of the request that it was written about.

    Args:
        bundles: the bundles, nearest first.
        alike: cosine of words from which two bullets of a slot are one item; the wording of the nearer bundle is kept.

    Raises:
        ValueError: when there is no bundle.
    """
    if not bundles:
        raise ValueError("no bundles to merge")
    nearest = bundles[0]
    voters = [bundle for bundle in bundles if bundle.format is nearest.format]
    slots = {slot: _winners([v.guidance.get(slot, ()) for v in voters], alike) for slot in nearest.layout.slots}
    head = Experience(format=nearest.format, trigger=nearest.trigger, summary=nearest.summary)
    return head.guided(slots)


def _winners(said: Sequence[Sequence[str]], alike: float) -> list[str]:
    """Return the bullets of a slot that win, in the order of their mean places; `said` are the bullets of each bundle."""
    if not _wins({voter for voter, bullets in enumerate(said) if bullets}, len(said)):
        return []
    votes: dict[str, dict[int, int]] = {}
    """Places of each item by voter."""
    for voter, bullets in enumerate(said):
        for place, bullet in enumerate(bullets):
            votes.setdefault(_item(bullet, list(votes), alike), {}).setdefault(voter, place)
    winners = [item for item, places in votes.items() if _wins(set(places), len(said))]
    return sorted(winners, key=lambda item: fmean(votes[item].values())) or list(said[0])


def _wins(voters: set[int], of: int) -> bool:
    return 2 * len(voters) > of or (2 * len(voters) == of and 0 in voters)


def _item(bullet: str, known: Sequence[str], alike: float) -> str:
    """Return the first known item that a bullet is alike to, else the bullet itself."""
    if bullet in known or not known:
        return bullet
    same = alike_bullets([bullet], known, alike)[0]
    return next((item for item, equal in zip(known, same, strict=True) if equal), bullet)
