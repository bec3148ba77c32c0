"""Picture tables of a committed step: the best and the worst attempt of a request, and the truth, as small pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.trackers.port import LoggingConfig, PictureRow
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.pictures import ImageRefused, PictureLimits, open_picture
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TEXT = 600
"""Characters of a request or of a judge's reasons that a table keeps."""


def picture_rows(store: RunStore, step: int, config: LoggingConfig) -> list[PictureRow]:
    """Return the picture table of a committed step: its first groups that have two attempts with a score.

    Raises:
        StoreError: when the step's groups cannot be read.
    """
    manifest = store.manifest(step)
    chosen = [file.request_id for file in manifest.groups][: config.pictures]
    truths = {name: ImageRef.model_validate(ref) for name, ref in manifest.loop.get("truths", {}).items()}
    rows = [_row(store, group, truths, config.picture_side) for group in store.groups(step, chosen)]
    return [row for row in rows if row is not None]


def _row(store: RunStore, group: Group, truths: Mapping[str, ImageRef], side: int) -> PictureRow | None:
    scored = [t for t in group.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]
    if len(scored) < 2:
        return None
    best, worst = max(scored, key=lambda t: t.score), min(scored, key=lambda t: t.score)
    return PictureRow(
        request=_text(best.prompt),
        best=_small(store, best.rendered, side),
        best_reward=best.score,
        worst=_small(store, worst.rendered, side),
        worst_reward=worst.score,
        truth=_small(store, truths.get(group.request_id), side),
        rationale=_text(f"best: {_reasons(best)} worst: {_reasons(worst)}"),
    )


def _reasons(trajectory: Trajectory) -> str:
    """Return why an attempt has its reward, in the words of its judges or of its failure."""
    verdicts = (trajectory.verdict, *trajectory.verdicts.values())
    said = [verdict.rationale for verdict in verdicts if verdict is not None and verdict.rationale]
    return " ".join(said or [trajectory.reason or "no reasons given."])


def _text(text: str) -> str:
    plain = " ".join(shown(text).split())
    return plain if len(plain) <= TEXT else f"{plain[:TEXT]}…"


def _small(store: RunStore, ref: ImageRef | None, side: int) -> bytes | None:
    """Return a picture as a PNG with no side above `side`, None where it is missing or cannot be decoded."""
    if ref is None:
        return None
    try:
        pixels = open_picture(store.images.get(ref), PictureLimits(long_side=side))
    except (KeyError, OSError, ImageRefused):
        return None
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return buffer.getvalue()


def opened(png: bytes) -> PillowImage:
    """Return the pixels of a table's picture."""
    from PIL import Image

    return Image.open(io.BytesIO(png), formats=("PNG",))
