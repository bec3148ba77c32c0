"""What an agent of the world `small` may hand in for a request: the teacher's program, poorer ones, and tricks.

A program has words, a first reference, and the scene that a renderer without weaknesses draws from both.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genevolve_ray.records.request import Request
from genevolve_ray.small.alike import alike_backgrounds
from genevolve_ray.small.pictures import PictureLibrary, flag_code
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.wording import Part, Reference, describe

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SIDE = 64
TEACHER = "the teacher's program"


@dataclass(frozen=True)
class Case:
    """Hold a request, its scene, its truth, and a scene of another request."""

    request: Request
    scene: SmallScene
    truth: bytes
    other: SmallScene

    @property
    def entity(self) -> str:
        """What the request is about: the code of a country, or the id of a subject."""
        return str(self.request.meta["entity"])


@dataclass(frozen=True)
class Attempt:
    """Hold what an agent did: a program, or a picture that no program draws.

    Attributes:
        prompt: of the program.
        reference: id of the picture that is the program's first reference, "" for none.
        scene: what a renderer without weaknesses draws from it.
        picture: in place of a program, the picture.
    """

    prompt: str = ""
    reference: str = ""
    scene: SmallScene | None = None
    picture: PillowImage | None = None


Kind = Callable[[Case, random.Random, PictureLibrary], Attempt]
"""Makes an attempt. The words come first from the generator, so that one seed words all kinds alike."""


def teacher(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right program: every part in words, and the right picture as reference."""
    return _program(case.scene, rng, library)


def random_program(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right program of another request."""
    return _program(case.other, rng, library)


def wrong_reference(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the teacher's words with a wrong picture: a flag that looks different, or another subject of the group."""
    right = _program(case.scene, rng, library)
    if (flag := case.scene.flag) is not None:
        alike = alike_backgrounds(library.folder, case.scene.style)[flag]
        code = rng.choice([code for code in library.flags if code != flag and code not in alike])
        return Attempt(right.prompt, library.flags[code].id, case.scene.model_copy(update={"background": code}))
    group = library.subjects[case.scene.subject].group
    wrong = rng.choice([s.id for s in library.subjects.values() if s.group == group and s.id != case.scene.subject])
    return Attempt(right.prompt, wrong, case.scene.model_copy(update={"subject": wrong}))


def poor(*parts: Part) -> Kind:
    """Return programs that do not mention some parts: what a renderer then draws is a guess.

    Number, background and subject are guessed among all values, the right one included: a flag among flags, a color among
    colors. A subject that the reference shows needs no guess. Without words, style and caption are what they usually are
    in prompts without such words: color, and none.
    """

    def attempt(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
        right, scene = _program(case.scene, rng, library, parts), case.scene
        guesses: dict[Part, tuple[str, Any]] = {
            "count": ("count", rng.choice((1, 2, 3, 4))),
            "style": ("style", "color"),
            "caption": ("caption", ""),
            "background": ("background", rng.choice(list(COLORS if scene.flag is None else library.flags))),
            "name": ("subject", scene.subject if scene.flag is None else rng.choice(list(library.subjects))),
        }
        shown = scene.model_copy(update=dict(guesses[part] for part in parts))
        lost = "background" in parts and scene.flag is not None
        return Attempt(right.prompt, "" if lost else right.reference, shown)

    return attempt


def blank(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return a white picture."""
    return Attempt(picture=_plain("white"))


def plain_color(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return a picture of the background's color; for a flag, its mean color."""
    if case.scene.flag is None:
        return Attempt(picture=_plain(COLORS[case.scene.background]))
    return Attempt(picture=library.flag(case.scene.flag, SIDE).resize((1, 1)).resize((SIDE, SIDE)))


def reference_alone(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the right reference and nothing else."""
    return Attempt(picture=library.reference(_reference(case.scene, library)[1], SIDE))


def painted_words(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the words of the truth painted on white."""
    from PIL import ImageDraw, ImageFont

    picture = _plain("white")
    words = str(case.request.meta["truth_caption"]).split()
    lines = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)][:6]
    font = ImageFont.load_default(size=9)
    ImageDraw.Draw(picture).multiline_text((2, 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return Attempt(picture=picture)


def painted_letters(case: Case, rng: random.Random, library: PictureLibrary) -> Attempt:
    """Return the picture of a random program with the right letters over it."""
    return Attempt(picture=compose(case.other.model_copy(update={"caption": case.scene.caption}), library, SIDE))


NEAR: dict[str, Kind] = {
    TEACHER: teacher,
    "without count": poor("count"),
    "without background": poor("background"),
    "without count, background, style, caption": poor("count", "background", "style", "caption"),
    "no name, the right reference": poor("name"),
    "a wrong reference": wrong_reference,
}
"""Programs for the request itself: right, or poor in some way."""

KINDS: dict[str, Kind] = {
    **NEAR,
    "a random program": random_program,
    "blank picture": blank,
    "plain color": plain_color,
    "the reference alone": reference_alone,
    "painted words": painted_words,
    "right letters on a random picture": painted_letters,
}


def png(picture: PillowImage) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _program(scene: SmallScene, rng: random.Random, library: PictureLibrary, omit: Sequence[Part] = ()) -> Attempt:
    kind, id = _reference(scene, library)
    return Attempt(describe(scene, rng, kind, omit), id, scene)


def _reference(scene: SmallScene, library: PictureLibrary) -> tuple[Reference, str]:
    """Return what the first reference of a scene's program is, and its id: the flag, else the subject."""
    if scene.flag is not None:
        return "flag", library.flags[scene.flag].id
    assert flag_code(scene.subject) is None, "a subject is no flag"
    return "subject", scene.subject


def _plain(color: str | tuple[int, int, int]) -> PillowImage:
    from PIL import Image

    return Image.new("RGB", (SIDE, SIDE), color)
