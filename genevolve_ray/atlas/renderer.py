"""Procedural generator that has the weaknesses of diffusion models by design.

It receives the prompt and its reference pictures, nothing else. Without the structure that the skills teach, it
miscounts, swaps attributes, garbles text and invents looks. Each weakness draws from a random stream of its own, so
that fixing one leaves the others unchanged.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from genevolve_ray.atlas.drawing import Ground, Placed, SceneGroup, encode_png, field_height, jitter, layout, paint
from genevolve_ray.atlas.habits import ORDER, REFERENCE, HabitsConfig, unheeded
from genevolve_ray.atlas.pixels import look_templates, recognise, view
from genevolve_ray.atlas.reading import CAPACITY, NameKind, PartReading, Reading, read_prompt
from genevolve_ray.atlas.scene import COLOURS, COMPANION_LOOKS, PATTERNS, SHAPES, Look
from genevolve_ray.atlas.sprites import Dress
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.seeds import derive_seed

MAX_COUNT = 9
MAX_GROUPS = 6


class AtlasRendererConfig(Config):
    """Configure the rate at which the generator fails, and the number of words it takes in."""

    failure: float = Field(default=0.8, ge=0, le=1)
    """Probability that a weakness shows where the structure against it is missing."""
    slip: float = Field(default=0.03, ge=0, le=1)
    """The same probability where the structure is present."""
    capacity: int = Field(default=CAPACITY, ge=1)
    """Words of a prompt that the generator takes in; later ones are ignored."""
    habits: HabitsConfig | None = None
    """Wordings that the generator prefers (`atlas/habits.py`); null: it obeys every wording of a structure."""


class AtlasRenderer:
    """Draw the picture that `read_prompt` understands, with the weaknesses of the config."""

    Config = AtlasRendererConfig
    deterministic = True
    takes_references = True

    def __init__(self, config: AtlasRendererConfig | None = None) -> None:
        """Keep the config; `identity` names it in every artifact."""
        self.config = config or AtlasRendererConfig()
        look_templates()  # Takes about a second, which the first request would have to wait for.
        # Without habits the identity is that from before there were any.
        settings = self.config.model_dump_json(exclude={"habits"} if self.config.habits is None else None)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        self.identity = f"atlas-renderer/1:{digest}"

    async def render(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return a PNG of 128 x 128 pixels; the same prompt, references and seed give the same bytes.

        Raises:
            InfraFailure: a reference cannot be read.
        """
        return self.draw(prompt, references, seed)

    def draw(self, prompt: str, references: Sequence[bytes], seed: int) -> bytes:
        """Return the PNG that `render` returns, without an event loop."""
        reading, habits = read_prompt(prompt, self.config.capacity), self.config.habits
        ignored = frozenset[str]() if habits is None else unheeded(habits, prompt, reading)
        return _Drawing(self.config, reading, references, seed, ignored).picture()


def _seen(number: int, data: bytes) -> Look | None:
    try:
        view(data)
    except ValueError as error:
        raise InfraFailure(f"reference image {number} cannot be read: {error}") from error
    return recognise(data)


class _Drawing:
    """Hold the state of one drawing."""

    def __init__(
        self,
        config: AtlasRendererConfig,
        reading: Reading,
        references: Sequence[bytes],
        seed: int,
        unheeded: frozenset[str],
    ) -> None:
        self.config, self.reading, self.seed, self.unheeded = config, reading, seed, unheeded
        self.references = [_seen(number, data) for number, data in enumerate(references, start=1)]

    def stream(self, purpose: str, key: str = "") -> np.random.Generator:
        """Return the random stream of one purpose; other purposes do not affect it."""
        return np.random.default_rng(derive_seed(self.seed, f"atlas.{purpose}", key))

    def fails(self, rng: np.random.Generator, structured: bool, skill: str) -> bool:
        """Return whether a weakness shows: the first draw of its stream."""
        return bool(rng.random() < (self._slip(skill) if structured else self.config.failure))

    def _slip(self, structure: str) -> float:
        """Return the probability that a weakness shows although the structure against it is there."""
        habits = self.config.habits
        return self.config.slip if habits is None or structure not in self.unheeded else habits.stubborn

    def _misses(self, key: str) -> bool:
        """Return whether a part misses its reference because of how the prompt names it."""
        if REFERENCE not in self.unheeded:
            return False
        return bool(self.stream("reference", key).random() < self._slip(REFERENCE))

    def picture(self) -> bytes:
        """Return the encoded picture."""
        reading = self.reading
        keys = self._keys(reading.parts)
        parts = list(zip(keys, reading.parts, strict=True))[:MAX_GROUPS]
        looks = self._swap([self._look(key, part) for key, part in parts], [part for _, part in parts])
        groups = [self._group(key, part, look) for (key, part), look in zip(parts, looks, strict=True)]
        groups = self._misplace(groups, [part for _, part in parts])
        text = self._text()
        placed = layout(groups, field_height(text)) + self._strays(field_height(text))
        shift = int(self.stream("text.jitter").integers(-2, 3))
        return encode_png(paint(placed, self._ground(), text, text_shift=shift))

    @staticmethod
    def _keys(parts: Sequence[PartReading]) -> list[str]:
        """Return a key for each part that survives a change of order: its name and the index of the mention."""
        names = [part.name for part in parts]
        return [f"{name}#{names[:i].count(name)}" for i, name in enumerate(names)]

    def _look(self, key: str, part: PartReading) -> Look:
        """Return the look of a part: its reference, a look known to every generator, or an invention.

        Stated words override it.
        """
        rng = self.stream("look", key)
        choices = SHAPES, COLOURS, PATTERNS
        shape, colour, pattern = (str(options[int(rng.integers(len(options)))]) for options in choices)
        look: Look | None = None
        if part.reference is not None and part.reference <= len(self.references) and not self._misses(key):
            look = self.references[part.reference - 1]
        elif part.kind is NameKind.COMPANION:
            look = COMPANION_LOOKS[part.name]
        elif part.kind is NameKind.SHAPE:
            look = Look(shape=part.name, colour=colour)
        look = look or Look(shape=part.shape or shape, colour=colour, pattern=pattern)
        return Look(shape=look.shape, colour=part.colour or look.colour, pattern=part.pattern or look.pattern)

    def _swap(self, looks: list[Look], parts: Sequence[PartReading]) -> list[Look]:
        """Exchange colors and patterns among the parts; this is likely where one clause describes several parts."""
        shared = [i for i, part in enumerate(parts) if part.shares_clause]
        several = shared if len(shared) > 1 else list(range(len(parts)))
        if len(several) < 2 or not self.fails(self.stream("binding"), len(shared) < 2, ORDER):
            return looks
        swapped = list(looks)
        for to, source in zip(several, several[1:] + several[:1], strict=True):
            swapped[to] = Look(shape=looks[to].shape, colour=looks[source].colour, pattern=looks[source].pattern)
        return swapped

    def _group(self, key: str, part: PartReading, look: Look) -> SceneGroup:
        count, legs, material = min(part.count, MAX_COUNT), min(part.legs, MAX_COUNT), part.material
        rng = self.stream("count", key)
        if part.count > 1 and self.fails(rng, part.arranged, "quantity_counting"):
            off = [n for n in (count - 2, count - 1, count + 1, count + 2) if n >= 1]
            count = off[int(rng.integers(len(off)))]
        rng = self.stream("legs", key)
        if legs and self.fails(rng, part.joined, "anatomy_body_coherence"):
            off = [n for n in range(max(0, legs - 2), min(5, legs + 2) + 1) if n != legs]
            legs = off[int(rng.integers(len(off)))]
        if material and self.fails(self.stream("material", key), part.lit, "physical_material_consistency"):
            material = None
        return SceneGroup(
            look=look,
            count=count,
            dress=Dress(legs=legs, material=material, medium=self._medium()),
            side=part.side,
            shift=jitter(self.stream("jitter", key)),
        )

    def _misplace(self, groups: list[SceneGroup], parts: Sequence[PartReading]) -> list[SceneGroup]:
        """Swap the sides, or crowd the objects together, where the places are not full phrases."""
        sided = [part for part in parts if part.side]
        rng = self.stream("place")
        if not sided or not self.fails(rng, all(part.placed for part in sided), "spatial_layout"):
            return groups
        if len(groups) > 1 and rng.random() < 0.5:
            pull = {"left": 17, "right": -17}
            sides = [g.side or ("left" if i == 0 else "right") for i, g in enumerate(groups)]
            return [
                replace(g, shift=(g.shift[0] + pull[side], g.shift[1])) for g, side in zip(groups, sides, strict=True)
            ]
        other = {"left": "right", "right": "left", None: None}
        return [replace(g, side=other[g.side]) for g in groups]

    def _strays(self, height: int) -> list[Placed]:
        """Return the looks of references that no clause binds: they leak into the picture."""
        bound = {part.reference for part in self.reading.parts}
        leaked = [look for i, look in enumerate(self.references, start=1) if look and i not in bound]
        medium = self._medium()
        corners = [(3, 3), (103, 3), (3, height - 26), (103, height - 26)]
        return [Placed(look, Dress(medium=medium), 22, *corner) for look, corner in zip(leaked, corners, strict=False)]

    def _medium(self) -> str | None:
        medium = self.reading.medium
        ignored = medium is not None and self.fails(self.stream("medium"), self.reading.applied, "creative_drawing")
        return None if ignored else medium

    def _ground(self) -> Ground:
        mood = self.reading.mood
        noisy = mood is not None and self.fails(self.stream("mood"), self.reading.lit, "aesthetic_drawing")
        return Ground(mood=None if noisy else mood, medium=self._medium(), noisy=noisy)

    def _text(self) -> str | None:
        """Return the text as drawn: letters that are neither quoted nor given a place are garbled."""
        text, rng = self.reading.text, self.stream("text")
        if not text or not self.fails(rng, self.reading.quoted and self.reading.text_place, "text_rendering"):
            return text
        letters = list(text)
        for i in rng.permutation(len(letters))[: max(2, len(letters) * 2 // 3)]:
            others = [c for c in string.ascii_uppercase if c != text[i]]
            letters[int(i)] = others[int(rng.integers(len(others)))]
        return "".join(letters)
