"""Vocabulary of the atlas, and the scene that a picture should show."""

from __future__ import annotations

from pydantic import Field, model_validator

from genevolve_ray.records.base import Record

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "hexagon")
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
PATTERNS = ("plain", "striped", "dotted", "checked")
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five")
TEXTS = tuple("SOL NOX VIA ARC LUX ORB RIM TAU ZEN KIT PAX MIR DUO FEN GEM HUB INK JET KEY LAW MOX NIB OAK URN".split())
MOODS = ("calm", "festive", "dusk")
MEDIA = ("mosaic", "woodcut", "crayon")
MATERIALS = ("glass", "metal", "wood")
SIDES = ("left", "right")
KINDS = ("lantern", "mask", "tower", "vessel", "idol", "banner", "beast", "crown")
"""Subjects without a proper name: their look is a fact of the world, so it too must be found."""
COMPANIONS = ("moon", "gem", "flag", "wheel")
"""Companion objects that every generator knows; see COMPANION_LOOKS."""

SOURCES = ("official", "fan", "old")
"""Three pictures of every subject: today's look, a fan's wrong one, and an outdated one."""

SIGHT_SOURCES = ("described", "other", "outdated")
"""The same three pictures in a world with sight, by what the corpus says: its "now", neither, its "once"."""

SKILLS = (
    "spatial_layout",
    "aesthetic_drawing",
    "text_rendering",
    "creative_drawing",
    "anatomy_body_coherence",
    "attribute_binding",
    "physical_material_consistency",
    "quantity_counting",
)
"""The eight generation skills (PAPER section 1)."""


class Look(Record):
    """Describe the look of one object."""

    shape: str
    colour: str
    pattern: str = "plain"

    @model_validator(mode="after")
    def _known(self) -> Look:
        if self.shape not in SHAPES or self.colour not in COLOURS or self.pattern not in PATTERNS:
            raise ValueError(f"unknown look: {self.shape!r}, {self.colour!r}, {self.pattern!r}")
        return self

    @property
    def words(self) -> str:
        """The look as a text states it: pattern, color, shape."""
        return f"{self.pattern} {self.colour} {self.shape}"


COMPANION_LOOKS = {
    "moon": Look(shape="circle", colour="yellow"),
    "gem": Look(shape="diamond", colour="teal"),
    "flag": Look(shape="triangle", colour="red"),
    "wheel": Look(shape="ring", colour="purple"),
}


class Part(Record):
    """Describe one kind of object in a scene, present `count` times.

    `name` is the subject's proper name, kind or companion noun. `found` means that its look must come from a reference
    picture. `side` is None unless the request states a place.
    """

    name: str
    look: Look
    found: bool
    count: int = Field(default=1, ge=1, le=5)
    colour: str | None = None
    """A color that the request states; the look already has it."""
    material: str | None = None
    legs: int = Field(default=0, ge=0, le=4)
    side: str | None = None


class Scene(Record):
    """Hold the truth behind a request: one or two parts, perhaps a text, a mood and a medium."""

    parts: tuple[Part, ...] = Field(min_length=1, max_length=2)
    text: str | None = None
    mood: str | None = None
    medium: str | None = None

    def demands(self) -> tuple[str, ...]:
        """Return the skills whose structure this scene needs, in the order of SKILLS."""
        needs = {
            "spatial_layout": any(p.side for p in self.parts),
            "aesthetic_drawing": self.mood is not None,
            "text_rendering": self.text is not None,
            "creative_drawing": self.medium is not None,
            "anatomy_body_coherence": any(p.legs for p in self.parts),
            "attribute_binding": len(self.parts) > 1,
            "physical_material_consistency": any(p.material for p in self.parts),
            "quantity_counting": any(p.count > 1 for p in self.parts),
        }
        return tuple(s for s in SKILLS if needs[s])


class Truth(Record):
    """Hold the truth that an atlas request hides in `Request.meta["truth"]` for the judge and the teacher.

    `right_images[i]` are the SHA-256 of the pictures that show the i-th found part as it is today (in part order).
    `fact_count` and `fact_text` are true where the count or the text had to be searched. `sight` is true where the right
    pictures are told apart by their looks alone.
    """

    scene: Scene
    right_images: tuple[tuple[str, ...], ...]
    fact_count: bool = False
    fact_text: bool = False
    sight: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the right picture, of another wrong one and of the outdated one, as decisions state them."""
        return SIGHT_SOURCES if self.sight else SOURCES
