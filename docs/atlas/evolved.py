"""Draws what a run has changed: `python docs/atlas/evolved.py runs/demo` from the root of the repository.

For the preset `small`: `python docs/atlas/evolved.py runs/demo-small docs/small/evolved.webp`.

The first held-out requests in their order, whatever came of them: the picture that was wanted, what the policy drew before the
run, and what it drew after it.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genevolve_ray.atlas.drawing import SIZE, decode
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Outcome, Trajectory

HERE = Path(__file__).parent
COUNT, COLUMNS, GAP, TEXT = 6, 2, 8, 46
GREY, DARK = (110, 110, 110), (40, 40, 40)


def main(run: str, out: str = "") -> None:
    """Write the sheet to a file, or beside this one."""
    store = RunStore.read(run)
    before, after = (
        {t.key.request_id: t for t in store.get_trajectories(f"heldout-{name}")} for name in ("sft", "final")
    )
    requests = store.get_requests("heldout")[:COUNT]
    width, height = 3 * (SIZE + GAP) + 2 * GAP, SIZE + TEXT + GAP
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(requests) // COLUMNS) * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    small, font = ImageFont.load_default(10), ImageFont.load_default(12)
    for index, request in enumerate(requests):
        x, y = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        for line, words in enumerate(textwrap.wrap(request.prompt, 3 * SIZE // 6)[:2]):
            draw.text((x, y + 14 * line), words, fill=DARK, font=font)
        assert request.truth_image is not None, "every request of these worlds has its truth"
        drawn = [request.truth_image, before[request.id].rendered, after[request.id].rendered]
        labels = ["wanted", _label("before", before[request.id]), _label("after", after[request.id])]
        for column, (picture, label) in enumerate(zip(drawn, labels, strict=True)):
            left = x + column * (SIZE + GAP)
            if picture is not None:
                drawing = decode(store.images.get(picture))
                whole = (
                    drawing if drawing.size == (SIZE, SIZE) else drawing.resize((SIZE, SIZE), Image.Resampling.NEAREST)
                )
                sheet.paste(whole, (left, y + TEXT))
            draw.text((left, y + TEXT - 15), label, fill=GREY, font=small)
    path = Path(out) if out else HERE / "evolved.png"
    if path.suffix == ".webp":
        sheet.save(path, lossless=True)
    else:
        sheet.save(path, optimize=True)


def _label(when: str, trajectory: Trajectory) -> str:
    return f"{when}: {'no reward' if trajectory.outcome is Outcome.INFRA_FAILURE else f'{trajectory.score:.2f}'}"


if __name__ == "__main__":
    main(*sys.argv[1:])
