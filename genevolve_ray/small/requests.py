"""Requests of the world `small`: what is asked, the scene that answers, and its picture, in the published row format.

Countries and rare subjects do not cross the parts train, validation and test, nor do flags that look nearly alike; common
subjects and colors are shared.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.published.writers import request_values
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.small.alike import alike_flags
from genevolve_ray.small.clues import Clue, find_clues
from genevolve_ray.small.corpus import Progress
from genevolve_ray.small.factbook import Country
from genevolve_ray.small.notices import write_notices
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.subjects import Subject, every_subject
from genevolve_ray.small.wording import counted, names_of, plain_words

Family = Literal["flag", "subject", "caption"]
PARTS = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Shares of the entities; the same shares of the requests by default."""
SIZES = {"train": 1400, "validation": 200, "test": 400}
SIDE = 64
"""Side of a truth, pixels: that of the renderer, so that the two differ in what they show and not in how sharp they are."""
_FAMILIES: dict[Family, float] = {"flag": 0.4, "subject": 0.3, "caption": 0.3}
_FACTS = {
    "internet": "the country's two-letter internet code",
    "currency": "the three-letter code of the country's currency",
}
"""Facts that a caption may ask for, in words."""
_OPENINGS = ("", "", "A picture of ", "Draw ", "Show ", "Please paint ", "I need a picture of ")
_BEFORE = ("in front of the flag of {}", "with the flag of {} behind", "before the flag of {}")
_ON = ("on {one} background", "on plain {color}", "with {one} background")
_CAPTION = ("with {} as the caption", "captioned with {}")
_GRAY = ("in black and white", "as a black-and-white picture")
_LETTERS = "ABCDEFGHIKLMNOPRSTUVXYZ"


class Wish(Record):
    """Hold what a request says, part by part; what it only alludes to is not in it."""

    subject: str
    """Id of the subject's picture."""
    rare: bool
    """Whether the painter does not know the subject by name."""
    count: int = Field(ge=1, le=4)
    color: str = ""
    """The plain background; "" where it is a flag."""
    country: str = ""
    """The country of the flag, where the request names it."""
    clue: Clue | None = None
    """What it says of the country otherwise."""
    caption: str = ""
    """The letters that it gives."""
    fact: Literal["", "internet", "currency"] = ""
    """The fact that the caption is to be."""
    gray: bool = False


class Posed(Record):
    """Hold a request with the scene that answers it."""

    id: str
    family: Family
    entity: str
    """ISO code of the country, or the id of the rare subject."""
    prompt: str
    wish: Wish
    scene: SmallScene
    truth_caption: str
    """The scene in the words that the image-text model learned, with every fact resolved: it knows no facts."""

    def request(self) -> Request:
        """Return the request as a run reads it; `meta` is for judges and teachers."""
        needs_facts = self.wish.clue is not None or bool(self.wish.fact)
        meta: dict[str, Any] = {
            "family": self.family,
            "entity": self.entity,
            "wish": self.wish.model_dump(exclude_defaults=True),
            "scene": self.scene.model_dump(exclude_defaults=True),
            "truth_caption": self.truth_caption,
        }
        return Request(
            id=self.id,
            prompt=self.prompt,
            eval_type=EvalType.KNOWLEDGE if needs_facts else EvalType.QUALITY,
            category=self.family,
            difficulty="hard" if self.wish.clue is not None and self.wish.fact else "medium",
            meta=meta | ({"caption": self.scene.caption} if self.scene.caption else {}),
        )


def write_requests(
    library: PictureLibrary,
    countries: Sequence[Country],
    out: Path,
    *,
    seed: int = 1,
    sizes: Mapping[str, int] = SIZES,
    side: int = SIDE,
    progress: Progress | None = None,
) -> str:
    """Write `PART.jsonl`, `truths/ID.png` and notices into a folder, and return the SHA-256 (hex) of the content.

    Rows are those of the published RL and bench files, for `data.requests.PublishedRequests`. `meta` holds `scene`, what
    the request says (`wish`), `truth_caption`, and `caption` where the picture should show letters.

    Args:
        library: draws the truths.
        countries: as `small.factbook.read_factbook` returns them.
        out: the folder.
        seed: of parts, requests and truths.
        sizes: requests of each part of `PARTS`.
        side: side of a truth, pixels.
        progress: told after each request.

    Raises:
        ValueError: when a part is unknown, or has too few entities for so many different requests.
        OSError: when a file cannot be written.
    """
    digest, done, total = hashlib.sha256(), 0, sum(sizes.values())
    for part, posed in pose_requests(library, countries, seed=seed, sizes=sizes).items():
        lines = []
        for each in posed:
            drawn, path = io.BytesIO(), f"truths/{each.id}.png"
            compose(each.scene, library, side, derive_seed(seed, "truth", each.id)).save(drawn, "PNG")
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(out / path, drawn.getvalue())
            lines.append(json.dumps(request_values(each.request(), path)))
            digest.update(f"{lines[-1]}\0{hashlib.sha256(drawn.getvalue()).hexdigest()}\0".encode())
            done += 1
            if progress is not None:
                progress("requests", done, total)
        write_bytes(out / f"{part}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    write_notices(out, "requests")
    return digest.hexdigest()


def pose_requests(
    library: PictureLibrary, countries: Sequence[Country], *, seed: int = 1, sizes: Mapping[str, int] = SIZES
) -> dict[str, list[Posed]]:
    """Return the requests of each part. Raises ValueError as `write_requests`."""
    if unknown := sorted(set(sizes) - set(PARTS)):
        raise ValueError(f"sizes: {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    parts = divide_world(library, countries, seed)
    return {part: _Writer(part, parts[part], seed).write(count) for part, count in sizes.items()}


@dataclass(frozen=True)
class WorldPart:
    """Hold the entities of one part, with the clues to each country by its ISO code."""

    countries: tuple[Country, ...]
    rare: tuple[Subject, ...]
    clues: Mapping[str, Sequence[Clue]]


def divide_world(library: PictureLibrary, countries: Sequence[Country], seed: int) -> dict[str, WorldPart]:
    """Return the entities of each part: sovereign countries with a clue and a flag, and the rare subjects.

    A country whose flag looks like one of an earlier part (`small.alike`) is in no part: a policy would have seen the flag,
    and its picture could not tell a right answer from a wrong one.
    """
    clues: dict[str, list[Clue]] = {}
    for clue in find_clues(countries):
        clues.setdefault(clue.iso, []).append(clue)
    by_code = {country.iso: country for country in countries if country.iso in library.flags and country.sovereign}
    rare = {subject.id: subject for subject in every_subject() if not subject.common}
    # Divided before any is left out, so that a change of the clues moves no country to another part.
    lands = _told_apart(split_entities(list(by_code), seed, "countries"), alike_flags(library, by_code))
    things = split_entities(list(rare), seed, "subjects")
    return {
        part: WorldPart(
            countries=tuple(by_code[iso] for iso in lands[part] if iso in clues),
            rare=tuple(rare[id] for id in things[part]),
            clues={iso: clues[iso] for iso in lands[part] if iso in clues},
        )
        for part in PARTS
    }


def _told_apart(parts: Mapping[str, Sequence[str]], alike: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Return parts without the names that resemble one of an earlier part."""
    found: dict[str, list[str]] = {}
    for part, names in parts.items():
        before = {name for earlier in found.values() for name in earlier}
        found[part] = [name for name in names if before.isdisjoint(alike[name])]
    return found


def split_entities(names: Sequence[str], seed: int, kind: str) -> dict[str, list[str]]:
    """Return entities divided into the shares of `PARTS`; a rule of names, shares and seed alone."""
    order = sorted(names, key=lambda name: (derive_seed(seed, f"part of {kind}", name), name))
    parts, start = {}, 0
    for part, share in PARTS.items():
        end = start + round(share * len(order))
        parts[part], start = order[start:end], end
    last = list(PARTS)[-1]
    parts[last] += order[start:]
    return parts


class _Writer:
    """Write the requests of one part."""

    def __init__(self, part: str, entities: WorldPart, seed: int) -> None:
        self._part, self._entities, self._seed = part, entities, seed
        self._common = [subject for subject in every_subject() if subject.common]

    def write(self, count: int) -> list[Posed]:
        """Return `count` requests of different words, families mixed."""
        found: dict[str, Posed] = {}
        for attempt in range(4 * count + 100):
            if len(found) == count:
                break
            posed = self._pose(f"small-{self._part}-{len(found):04d}", attempt)
            found.setdefault(posed.prompt.lower(), posed)
        if len(found) < count:
            raise ValueError(f"sizes: {self._part}={count} is more than its entities have different requests")
        return list(found.values())

    def _pose(self, id: str, attempt: int) -> Posed:
        rng = random.Random(derive_seed(self._seed, "request", self._part, attempt))
        family = rng.choices(list(_FAMILIES), list(_FAMILIES.values()))[0]
        flag = family == "flag" or (family == "caption" and rng.random() < 0.75)
        subject = rng.choice(self._common if flag else self._entities.rare)
        common: dict[str, Any] = {
            "subject": subject.id,
            "rare": not subject.common,
            "count": rng.choice((1, 1, 2, 3, 4)),
            "gray": rng.random() < 0.2,
        }
        if not flag:
            letters = random_letters(rng) if family == "caption" else ""
            wish = Wish(**common, color=rng.choice(list(COLORS)), caption=letters)
            return pose(id, family, subject, wish, None, rng)
        country = rng.choice(self._entities.countries)
        fact, named = "", False
        if family == "caption":
            facts = [name for name in _FACTS if fact_of(country, name)]
            fact = rng.choice(["", *facts])
            named = bool(fact) and rng.random() < 0.7
        wish = Wish(
            **common,
            country=country.name if named else "",
            clue=None if named else rng.choice(self._entities.clues[country.iso]),
            fact=fact,
            caption=random_letters(rng) if family == "caption" and not fact else "",
        )
        return pose(id, family, subject, wish, country, rng)


def pose(id: str, family: Family, subject: Subject, wish: Wish, country: Country | None, rng: random.Random) -> Posed:
    """Return what is wished for as a request in words, with its scene.

    Args:
        id: name of the request.
        family: what kind of request it is.
        subject: the one of `wish`.
        wish: what the request says.
        country: the country of the flag; None for a plain background.
        rng: chooses the wording.
    """
    scene = SmallScene(
        subject=subject.id,
        count=wish.count,
        background=wish.color or (country.iso if country else ""),
        caption=wish.caption or (fact_of(country, wish.fact) if country else ""),
        style="black-and-white" if wish.gray else "color",
    )
    shown = counted(*names_of(scene), scene.count)
    where = wish.country or (f"the country {wish.clue.words}" if wish.clue else "")
    colored = {"color": wish.color, "one": counted(wish.color or "plain", "", 1)}
    said = rng.choice(_BEFORE).format(where) if where else rng.choice(_ON).format(**colored)
    parts = [shown, said]
    if scene.caption:
        parts.append(rng.choice(_CAPTION).format(f'"{wish.caption}"' if wish.caption else _FACTS[wish.fact]))
    if wish.gray:
        parts.append(rng.choice(_GRAY))
    text = rng.choice(_OPENINGS) + f"{parts[0]} {', '.join(parts[1:])}"
    return Posed(
        id=id,
        family=family,
        entity=country.iso if country else subject.id,
        prompt=f"{text[0].upper()}{text[1:]}.",
        wish=wish,
        scene=scene,
        truth_caption=plain_words(scene),
    )


def fact_of(country: Country, fact: str) -> str:
    """Return the letters of a fact of `Wish.fact`, "" where the factbook has none."""
    return {"internet": country.internet_code, "currency": country.currency_code}.get(fact, "")


def random_letters(rng: random.Random) -> str:
    """Return two or three different capital letters."""
    return "".join(rng.sample(_LETTERS, rng.choice((2, 3))))
