"""Draws the pictures of docs/atlas.md: `python docs/atlas/pictures.py` from the root of the repository."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genevolve_ray.atlas.drawing import SIZE, decode, draw_look, draw_scene, encode_png
from genevolve_ray.atlas.renderer import AtlasRenderer, AtlasRendererConfig
from genevolve_ray.atlas.scene import COMPANION_LOOKS, Look, Part, Scene

HERE = Path(__file__).parent
STAR = Look(shape="star", colour="red", pattern="striped")
RING = Look(shape="ring", colour="blue", pattern="checked")
HEXAGON = Look(shape="hexagon", colour="purple", pattern="dotted")
VELMORA = "Velmora from the first reference image"
TIRSA = "Tirsa from the second reference image"
CASES = [
    ("quantity_counting", f"four {VELMORA}", f"four {VELMORA} in a row", (STAR,)),
    ("spatial_layout", f"{VELMORA} left ; moon right", f"{VELMORA} at the left side ; moon at the right side", (STAR,)),
    ("attribute_binding", f"{VELMORA} and {TIRSA}", f"{VELMORA} ; {TIRSA}", (STAR, RING)),
    ("text_rendering", f"{VELMORA} ; saying SOL", f'{VELMORA} ; the text "SOL" at the bottom', (STAR,)),
    ("aesthetic_drawing", f"{VELMORA} ; dusk", f"{VELMORA} ; dusk light from above", (STAR,)),
    ("creative_drawing", f"{VELMORA} ; mosaic", f"{VELMORA} ; mosaic over every part", (STAR,)),
    ("anatomy_body_coherence", f"{VELMORA} on four legs", f"{VELMORA} on four legs joined under the body", (RING,)),
    ("physical_material", f"{VELMORA} of glass", f"{VELMORA} of glass with a bright edge", (HEXAGON,)),
    ("no reference", "Velmora", VELMORA, (STAR,)),
    ("unbound reference", VELMORA, f"{VELMORA} ; {TIRSA}", (STAR, HEXAGON)),
]


def _part(look: Look, **more: object) -> Part:
    return Part.model_validate({"name": "Velmora", "look": look, "found": True, **more})


def _moons(count: int, side: str | None = None) -> Part:
    return Part(name="moon", look=COMPANION_LOOKS["moon"], found=False, count=count, side=side)


TRUTHS = [
    Scene(parts=(_part(STAR, legs=4, material="glass", side="left"), _moons(5, "right")), text="SOL", mood="calm"),
    Scene(parts=(_part(HEXAGON, material="metal"),), mood="festive"),
    Scene(parts=(_part(RING, legs=3), _moons(3)), mood="dusk", text="NOX"),
    Scene(parts=(_part(Look(shape="cross", colour="green"), count=4, material="wood"),), medium="woodcut"),
    Scene(parts=(_part(Look(shape="square", colour="teal", pattern="checked"), count=2),), medium="crayon", text="URN"),
    Scene(parts=(_part(Look(shape="diamond", colour="pink", pattern="striped"), legs=2), _moons(4)), medium="mosaic"),
]


def _sheet(rows: list[list[Image.Image]], name: str, labels: list[str] | None = None) -> None:
    """Save rows of pictures, each row under its label, as a PNG."""
    head, step = (16, SIZE + 20) if labels else (4, SIZE + 4)
    sheet = Image.new("RGB", (len(rows[0]) * (SIZE + 4) + 4, step * len(rows) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.paste(picture, (4 + c * (SIZE + 4), head + r * step))
    for i, label in enumerate(labels or []):
        x, y = 4 + (i % 2) * 2 * (SIZE + 4), 2 + (i // 2) * step
        draw.text((x, y), label, fill=(60, 60, 60), font=ImageFont.load_default(12))
    sheet.save(HERE / name, optimize=True)


def main() -> None:
    """Write both sheets."""
    _sheet([[draw_scene(s) for s in row] for row in (TRUTHS[:3], TRUTHS[3:])], "truths.png")
    renderer = AtlasRenderer(AtlasRendererConfig(failure=1.0, slip=0.0))
    pictures = []
    for name, without, with_, looks in CASES:
        references = [encode_png(draw_look(look)) for look in looks]
        given = [] if name == "no reference" else references
        pictures.append(
            [decode(renderer.draw(without, given, seed=1)), decode(renderer.draw(with_, references, seed=1))]
        )
    rows = [[*pictures[i], *pictures[i + 1]] for i in range(0, len(pictures), 2)]
    _sheet(rows, "weaknesses.png", [f"{name}: without, with" for name, *_ in CASES])


if __name__ == "__main__":
    main()
