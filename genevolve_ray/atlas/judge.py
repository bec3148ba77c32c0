"""Judge that measures pixels: the image dimensions come from the picture, the sufficiency from text and references."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from pydantic import Field, ValidationError
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from genevolve_ray.atlas.drawing import SIZE, STRIP_TOP
from genevolve_ray.atlas.pixels import Mask, Pixels, Thing, View, has_strip, letters, load, look_at, luminance, view
from genevolve_ray.atlas.reading import CAPACITY, read_prompt
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.stated import stated_truth
from genevolve_ray.atlas.sufficiency import check, missing_structure
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import (
    EXAMINATION_FAILED,
    NOT_EXAMINED,
    UNEXAMINED,
    ImageScores,
    ScoreFormula,
    Verdict,
)

MAX_THINGS = 24
"""A picture with more objects is read no further."""


class AtlasJudgeConfig(Config):
    """Configure where the bins 0, 0.5 and 1 begin, and the tolerances within which two objects count as the same."""

    formula: ScoreFormula = ScoreFormula.PAPER
    """How a request without text is scored (`records/verdict.py`)."""
    capacity: int = Field(default=CAPACITY, ge=1)
    """Words of a prompt that the generator takes in."""
    right: float = Field(default=0.97, gt=0, le=1)
    """Least share of matched objects (or letters) for bin 1."""
    partly: float = Field(default=0.55, gt=0, le=1)
    """Least share for bin 0.5."""
    outline: float = Field(default=0.95, gt=0, le=1)
    """Least overlap (intersection over union) of two outlines of the same object."""
    hue: float = Field(default=11, gt=0)
    """Greatest difference in hue of two objects of the same color, degrees."""
    detail: float = Field(default=2.5, gt=0)
    """Greatest mean difference in brightness (0 to 255) inside two objects of the same pattern and material."""
    resized: float = Field(default=4, ge=1)
    """Factor by which the tolerances of outline and detail grow where two objects have different sizes."""
    ground: float = Field(default=5, gt=0)
    """Greatest mean difference of two grounds in the same mood, 0 to 255."""
    texture: float = Field(default=3, gt=0)
    """Greatest mean difference of two fine textures of the same medium, 0 to 255."""


def differences(one: Thing, other: Thing) -> tuple[float, float, float]:
    """Return the differences of two objects.

    They are the overlap of outlines in [0, 1], hue in degrees, and detail (mean brightness) in 0 to 255.
    """
    both, either = np.minimum(one.solid, other.solid), np.maximum(one.solid, other.solid)
    overlap = float(both.sum() / max(1.0, float(either.sum())))
    turn = abs(one.hue - other.hue)
    hue = float(np.degrees(min(turn, 2 * np.pi - turn)))
    weight = both * (both > 0.5)
    detail = float((np.abs(one.light - other.light) * weight).sum() / max(1.0, float(weight.sum())))
    return overlap, hue, detail


def similarity(one: Thing, other: Thing, config: AtlasJudgeConfig) -> float:
    """Return 1 for the same object, 0.5 when one of outline, color and detail differs, else 0."""
    overlap, hue, detail = differences(one, other)
    loose = config.resized if abs(one.size - other.size) > 0.1 * max(one.size, other.size) else 1.0
    wrong_outline, wrong_detail = 1 - overlap > loose * (1 - config.outline), detail > loose * config.detail
    return max(0.0, 1 - 0.5 * (wrong_outline + wrong_detail + (hue > config.hue)))


def _bin(value: float, config: AtlasJudgeConfig) -> float:
    return 1.0 if value >= config.right else 0.5 if value >= config.partly else 0.0


def _match(seen: Sequence[Thing], truth: Sequence[Thing], config: AtlasJudgeConfig) -> list[tuple[int, int, float]]:
    """Return the best pairing as (seen, truth, similarity); among equal pairs the nearer objects match."""
    if not seen or not truth:
        return []
    alike = np.array([[similarity(s, t, config) for t in truth] for s in seen])
    near = np.array([[np.hypot(s.x - t.x, s.y - t.y) for t in truth] for s in seen]) / SIZE
    rows, columns = linear_sum_assignment(-(alike - 0.01 * near))
    return [(int(r), int(c), float(alike[r, c])) for r, c in zip(rows, columns, strict=True)]


def _correctness(
    matched: Sequence[tuple[int, int, float]], seen: Sequence[Thing], truth: Sequence[Thing], config: AtlasJudgeConfig
) -> float:
    """Return the mean similarity over the truth's kinds of objects, reduced for surplus objects.

    Equal objects are one kind, so that a subject weighs as much as its five companions.
    """
    if not truth or not seen:
        return float(not truth and not seen)
    scores = np.zeros(len(truth))
    for _, column, score in matched:
        scores[column] = score
    kinds: list[list[int]] = []
    for i, thing in enumerate(truth):
        home = next((kind for kind in kinds if similarity(truth[kind[0]], thing, config) == 1), None)
        home.append(i) if home is not None else kinds.append([i])
    mean = sum(scores[kind].mean() for kind in kinds) / len(kinds)
    return float(mean * min(1.0, len(truth) / len(seen)))


def _same_half(x: float, other: float) -> bool:
    """Return whether two columns are in the same half; the middle belongs to both."""
    return (x - SIZE / 2) * (other - SIZE / 2) >= 0 or min(abs(x - SIZE / 2), abs(other - SIZE / 2)) <= 6


def _faithfulness(
    matched: Sequence[tuple[int, int, float]], seen: Sequence[Thing], truth: Sequence[Thing], sides: bool
) -> float:
    """Return 1 when the number of objects is right and, where sides are required, the halves are right."""
    if not seen and truth:
        return 0.0
    off = abs(len(seen) - len(truth))
    placed = not sides or all(_same_half(seen[s].x, truth[t].x) for s, t, _ in matched)
    if off == 0 and placed:
        return 1.0
    return 0.5 if off == 0 or (off == 1 and placed) else 0.0


def _text_accuracy(image: Pixels, truth: Pixels, config: AtlasJudgeConfig) -> float | None:
    wanted = letters(truth)
    if not wanted:
        return None
    written = letters(image)
    same = sum(a.shape == b.shape and bool((a == b).mean() > 0.95) for a, b in zip(written, wanted, strict=False))
    return _bin(same / max(len(written), len(wanted)), config)


def _bare_ground(image: View, truth: View) -> Mask:
    """Return the mask of pixels that show the ground in both pictures, with a margin around objects for shadows."""
    mask = ndimage.maximum_filter((image.mask | truth.mask).view(np.uint8), 11) > 0
    if has_strip(image.pixels) or has_strip(truth.pixels):
        mask[STRIP_TOP - 1 :] = True
    return np.asarray(~mask)


def _aesthetics(image: View, truth: View, config: AtlasJudgeConfig) -> float:
    """Return half a point for the light on the ground (mood) and half for its texture (medium, no noise)."""
    bare = _bare_ground(image, truth)
    if not bare.any():
        return 0.0
    weight = bare.astype(np.float32)
    share = np.maximum(ndimage.uniform_filter(weight, 9), 1e-3)

    gap = image.pixels.astype(np.float32) - truth.pixels
    soft_gap = ndimage.uniform_filter(gap * weight[..., None], 9, axes=(0, 1)) / share[..., None]
    ground = float(np.abs(soft_gap)[bare].mean())
    texture = float(np.abs(luminance(gap - soft_gap))[bare].mean())
    return 0.5 * (ground <= config.ground) + 0.5 * (texture <= config.texture)


def score_images(image: View, truth: View, *, sides: bool, config: AtlasJudgeConfig) -> ImageScores:
    """Return the four dimensions from two pictures; `sides` means that the request states places."""
    seen, wanted = image.things[:MAX_THINGS], truth.things[:MAX_THINGS]
    matched = _match(seen, wanted, config)
    return ImageScores(
        faithfulness=_faithfulness(matched, seen, wanted, sides),
        visual_correctness=_bin(_correctness(matched, seen, wanted, config), config),
        text_accuracy=_text_accuracy(image.pixels, truth.pixels, config),
        aesthetics=_aesthetics(image, truth, config),
    )


class AtlasJudge:
    """Compare a rendered picture with the truth, and a program with the needs of its request."""

    Config = AtlasJudgeConfig
    deterministic = True

    def __init__(self, config: AtlasJudgeConfig | None = None) -> None:
        """Keep the config; `identity` names it in every artifact."""
        self.config = config or AtlasJudgeConfig()
        digest = hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()[:8]
        self.identity = f"atlas-judge/1:{digest}"

    async def judge(
        self, request: Request, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit]
    ) -> Verdict:
        """Return the verdict on a rendered program.

        A request without a `Truth` is read instead. Where it needs facts of a world, the program is not examined, and
        the verdict is flagged and says why.

        Raises:
            InfraFailure: one of the two pictures cannot be decoded, or `meta.truth` is none of the atlas.
        """
        try:
            seen, wanted = look_at(load(image)), view(truth)
        except ValueError as error:
            raise InfraFailure(f"{self.identity} cannot see the picture of {request.id}: {error}") from error
        hidden, missing = self._truth(request)
        sides = re.search(r"\b(left|right)\b", request.prompt, re.IGNORECASE) is not None
        scores = score_images(seen, wanted, sides=sides, config=self.config)
        reading = read_prompt(program.gen_prompt)
        text = "no text asked" if scores.text_accuracy is None else f"text {scores.text_accuracy:g}"
        seen_as = (
            f"things {scores.faithfulness:g}, looks {scores.visual_correctness:g}, {text}, ground {scores.aesthetics:g}"
        )
        if hidden is None:
            return Verdict(
                image=scores,
                text=NOT_EXAMINED,
                rationale=seen_as,
                text_rationale=f"the request carries no truth, and {missing}",
                judge=self.identity,
                formula=self.config.formula,
                flags=(UNEXAMINED, EXAMINATION_FAILED),
            )
        checks = check(hidden, reading, [hit.image.sha256 for hit in references], self.config.capacity)
        lacks = missing_structure(hidden.scene, reading)
        failed = [name.replace("_", " ") for name, value in checks if not value]
        rationale = (
            f"{seen_as}; "
            + (f"program falls short in {', '.join(failed)}" if failed else "program states all that is needed")
            + (f" (no structure for {', '.join(lacks)})" if lacks else "")
        )
        return Verdict(image=scores, text=checks, rationale=rationale, judge=self.identity, formula=self.config.formula)

    def _truth(self, request: Request) -> tuple[Truth | None, str]:
        """Return the truth of a request, or None and the reason why the request itself does not state it."""
        given = request.meta.get("truth")
        if given is None:
            return stated_truth(request.prompt)
        try:
            return Truth.model_validate(given), ""
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("meta", "truth", *first["loc"])))
            raise InfraFailure(f"request {request.id}: {where} is none of the atlas: {first['msg']}") from error
