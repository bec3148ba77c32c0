"""Requests that people type: read as a world understands them, or answered by requests that it can play."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from genevolve_ray.atlas.lexicon import FILLER, NOUNS
from genevolve_ray.atlas.reading import NameKind, read_prompt
from genevolve_ray.atlas.requests import make_request, request_of
from genevolve_ray.atlas.scene import COLOURS, COMPANIONS, KINDS, MATERIALS, MEDIA, MOODS
from genevolve_ray.atlas.stated import stated_truth
from genevolve_ray.atlas.world import World
from genevolve_ray.evolution.sources import RequestNotUnderstood
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.request import EvalType, Request

_SUGGESTED = 3
_CANDIDATES = 150
"""Requests of a world among which the nearest to a text are searched."""
_LISTED_NAMES = 8
_NEAR = 0.6
"""Least similarity of a name that was probably meant, from 0 to 1, as difflib measures it."""


def read_request(world: World, request_id: str, prompt: str, images: ImageStore | None) -> Request:
    """Return a typed request with its truth in a world; the picture of the truth is drawn into `images`, if any.

    Raises:
        RequestNotUnderstood: when the request states no scene, or names what the world does not know.
    """
    truth, reason = stated_truth(prompt, world)
    if truth is None:
        raise RequestNotUnderstood(reason, known_words(world), near_requests(world, prompt, _SUGGESTED))
    named = any(part.kind is NameKind.PROPER for part in read_prompt(prompt).parts)
    return request_of(request_id, prompt, truth, EvalType.KNOWLEDGE if named else EvalType.QUALITY, images)


def known_words(world: World) -> dict[str, list[str]]:
    """Return what a world understands, by what it is; of its named subjects only a few."""
    names = sorted(world.entities)
    more = [f"and {len(names) - _LISTED_NAMES} more"] if len(names) > _LISTED_NAMES else []
    return {
        "named subjects": [*names[:_LISTED_NAMES], *more],
        "other subjects": list(KINDS),
        "companions": list(COMPANIONS),
        "colors": list(COLOURS),
        "materials": list(MATERIALS),
        "moods": list(MOODS),
        "media": list(MEDIA),
    }


def some_requests(world: World, count: int, after: int = 0) -> list[str]:
    """Return the prompts of a world's own requests from number `after` on."""
    return [make_request(world, after + index).prompt for index in range(count)]


def near_requests(world: World, prompt: str, count: int) -> list[str]:
    """Return requests that the world can play, the nearest to a text first.

    The text itself with its unknown names replaced by the nearest known ones comes first, where that can be played.
    """
    mended = "".join(_mended(world, prompt))
    found = [mended] if mended != prompt and stated_truth(mended, world)[0] is not None else []
    wanted = _words(mended)
    candidates = dict.fromkeys(some_requests(world, _CANDIDATES))
    # Of equally near requests the shortest is the easiest to read.
    ranked = sorted(candidates, key=lambda one: (-len(wanted & _words(one)), len(one)))
    return [*found, *(one for one in ranked if one not in found)][:count]


def _mended(world: World, prompt: str) -> Iterator[str]:
    """Yield the pieces of a prompt, with the nearest known name in place of each unknown word that resembles one."""
    known = {name.lower(): name for name in (*world.entities, *KINDS)}
    for piece in re.split(r"(\w+)", prompt):
        low = piece.lower()
        capital = piece[:1].isupper()
        names = [name for name in known if known[name] in world.entities] if capital else list(KINDS)
        near = difflib.get_close_matches(low, names, n=1, cutoff=_NEAR) if len(piece) > 3 and low not in known else []
        yield known[near[0]] if near and not _understood(piece) else piece


def _understood(word: str) -> bool:
    """Return whether a word has a meaning by itself, so that it is no misspelled name."""
    reading = read_prompt(word.lower())
    return not reading.unknown


def _words(text: str) -> set[str]:
    """Return the words of a text that say what it is about; nouns in the singular."""
    words = (word.lower() for word in re.findall(r"\w+", text))
    return {NOUNS.get(word, word) for word in words if word not in FILLER}
