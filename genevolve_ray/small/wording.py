"""Prompts for scenes in the manner of an agent's programs: references are named by position, in many wordings."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Literal, get_args

from genevolve_ray.small.countries import country_names
from genevolve_ray.small.scene import COUNT_WORDS, SmallScene
from genevolve_ray.small.subjects import every_subject

Reference = Literal["flag", "subject", "none"]
"""What the first reference image of a prompt is."""
Part = Literal["name", "count", "background", "caption", "style"]
"""A part of a scene that a poor prompt may leave out."""

_VAGUE = (("thing", "things"), ("object", "objects"), ("subject", "subjects"))
_SHOWN = (
    "{} from the first reference image",
    "{} shown in the first reference image",
    "{} of the first reference image",
)
_LIKE = ("{}, exactly as in the first reference image,", "{} like in the first reference image")
_FLAG_SHOWN = (
    "in front of the flag from the first reference image",
    "in front of the {country} flag of the first reference image",
    "in front of the flag of {country} shown in the first reference image",
    "before the flag in the first reference image",
    "with the flag from the first reference image as the background",
    "with the first reference image, the flag of {country}, filling the background",
    "on a background that is the flag shown in the first reference image",
)
_FLAG_NAMED = (
    "in front of the flag of {country}",
    "before the flag of {country}",
    "with the flag of {country} as the background",
    "on a background that is the flag of {country}",
)
_PLAIN = (
    "on a {color} background",
    "on a plain {color} background",
    "in front of a solid {color} background",
    "with a {color} background",
    "against plain {color}",
)
_CAPTIONS = (
    'with the caption "{text}"',
    'with "{text}" written at the bottom',
    "with the letters {text} below",
    'captioned "{text}"',
    'and the text "{text}" in big letters at the bottom',
)
_GRAYS = ("in black and white", "as a black-and-white picture", "in grayscale", "black-and-white style")
_IN_COLOR = ("in color", "as a color picture", "in full color")
_OPENINGS = ("", "", "", "A picture of ", "An illustration of ", "Draw ", "Show ")


def describe(scene: SmallScene, rng: random.Random, reference: Reference, omit: Collection[Part] = ()) -> str:
    """Return a prompt for a scene, as an agent writes it in a program.

    Args:
        scene: What to ask for.
        rng: Chooses the wording.
        reference: What the first reference image is; `flag` needs a flag in the background.
        omit: Parts that the prompt does not mention, as a poor prompt.

    Raises:
        ValueError: for a reference to a flag where there is none, or an unknown part.
    """
    if reference == "flag" and scene.flag is None:
        raise ValueError(f"reference='flag': the background of the scene is {scene.background!r}")
    if strange := sorted(set(omit) - set(get_args(Part))):
        raise ValueError(f"omit: {', '.join(strange)}; parts are {', '.join(get_args(Part))}")
    parts = [_subject(scene, rng, reference, omit)]
    if "background" not in omit:
        parts.append(_background(scene, rng, reference))
    if scene.caption and "caption" not in omit:
        parts.append(rng.choice(_CAPTIONS).format(text=scene.caption))
    if "style" not in omit:
        if scene.style == "black-and-white":
            parts.append(rng.choice(_GRAYS))
        elif rng.random() < 0.15:
            parts.append(rng.choice(_IN_COLOR))
    text = rng.choice(_OPENINGS) + parts[0]
    for part in parts[1:]:
        text += rng.choice((" ", ", ")) + part
    return (text[0].upper() + text[1:] + ".").replace(",,", ",").replace(",.", ".").replace("  ", " ")


def plain_words(scene: SmallScene) -> str:
    """Return a scene in words that are always the same, as `three owls on a red background with the caption AB`.

    The image-text model of the judges learns these words, and requests state what is wanted in them (`truth_caption`).
    """
    shown = counted(*names_of(scene), scene.count)
    where = f"on {counted(scene.background, '', 1)} background"
    if scene.flag is not None:
        where = f"in front of the flag of {country_names().get(scene.flag, scene.flag)}"
    text = f"{shown} {where}"
    text += f" with the caption {scene.caption}" if scene.caption else ""
    return text + (" in black and white" if scene.style == "black-and-white" else "")


def names_of(scene: SmallScene) -> tuple[str, str]:
    """Return the singular and the plural of a scene's subject; `name` of the scene, where given, with an s."""
    if scene.name:
        return scene.name, f"{scene.name}s"
    for subject in every_subject():
        if subject.id == scene.subject:
            return subject.name, subject.plural
    raise ValueError(f"subject={scene.subject!r} is not one of the {len(every_subject())}: the scene needs a name")


def counted(noun: str, plural: str, count: int) -> str:
    """Return a counted noun with an article or a number word, as `an owl` or `three owls`."""
    if count > 1:
        return f"{COUNT_WORDS[count]} {plural}"
    sounds_like_a_consonant = noun.startswith(("uni", "one"))
    return f"{'an' if noun[0] in 'aeiou' and not sounds_like_a_consonant else 'a'} {noun}"


def _subject(scene: SmallScene, rng: random.Random, reference: Reference, omit: Collection[Part]) -> str:
    noun, plural = rng.choice(_VAGUE) if "name" in omit else names_of(scene)
    if "count" in omit:
        phrase = f"the {noun}" if rng.random() < 0.5 else plural
    elif scene.count > 1 and reference == "subject" and rng.random() < 0.3:
        phrase = f"{COUNT_WORDS[scene.count]} copies of the {noun}"
    elif scene.count > 1 and rng.random() < 0.2:
        phrase = f"{scene.count} {plural}"
    else:
        phrase = counted(noun, plural, scene.count)
    if reference != "subject":
        return phrase
    return rng.choice(_SHOWN + _LIKE).format(phrase)


def _background(scene: SmallScene, rng: random.Random, reference: Reference) -> str:
    if scene.flag is None:
        return rng.choice(_PLAIN).format(color=scene.background)
    country = country_names().get(scene.flag, scene.flag)
    return rng.choice(_FLAG_SHOWN if reference == "flag" else _FLAG_NAMED).format(country=country)
