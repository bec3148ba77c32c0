"""The renderer's weaknesses: which structure prevents which, one stream of noise each."""

from __future__ import annotations

import numpy as np
import pytest
from scene_helpers import STEADY, canonical_prompt, official_pictures, picture_of, random_scene

from genevolve_ray.atlas.drawing import SIZE, decode, draw_scene
from genevolve_ray.atlas.judge import differences
from genevolve_ray.atlas.pixels import Pixels, find_things, letters, recognise
from genevolve_ray.atlas.reading import CAPACITY
from genevolve_ray.atlas.renderer import AtlasRenderer, AtlasRendererConfig
from genevolve_ray.atlas.scene import Look, Part, Scene

STAR, RING = Look(shape="star", colour="red", pattern="striped"), Look(shape="ring", colour="blue", pattern="checked")


def draw(prompt: str, *looks: Look, seed: int = 0, renderer: AtlasRenderer = STEADY) -> Pixels:
    return np.asarray(decode(renderer.draw(prompt, [picture_of(look) for look in looks], seed)))


def count(prompt: str, *looks: Look, seed: int = 0) -> int:
    return len(find_things(draw(prompt, *looks, seed=seed)))


def share_of_failures(config: AtlasRendererConfig, prompt: str, right: int) -> float:
    renderer = AtlasRenderer(config)
    return float(np.mean([len(find_things(draw(prompt, renderer=renderer, seed=s))) != right for s in range(60)]))


async def test_render_is_deterministic_in_prompt_references_and_seed() -> None:
    scene = random_scene(np.random.default_rng(0))
    prompt, pictures = canonical_prompt(scene), official_pictures(scene)
    renderer = AtlasRenderer()
    assert await renderer.render(prompt, pictures, 3) == await AtlasRenderer().render(prompt, pictures, 3)
    assert await renderer.render(prompt, pictures, 3) != await renderer.render(prompt, pictures, 4)


def test_identity_names_the_settings() -> None:
    assert AtlasRenderer().identity == AtlasRenderer().identity
    assert AtlasRenderer().identity != AtlasRenderer(AtlasRendererConfig(failure=0.5)).identity


def test_things_are_miscounted_without_an_arrangement() -> None:
    assert count("four moon in a row") == 4
    assert {count("four moon", seed=s) for s in range(12)} == {2, 3, 5, 6}


def test_failure_rates_are_those_of_the_config() -> None:
    config = AtlasRendererConfig()
    assert abs(share_of_failures(config, "three gem", 3) - config.failure) < 0.2
    assert share_of_failures(config, "three gem in a row", 3) < 0.15


def test_sides_are_confused_without_a_full_place() -> None:
    told = draw("moon at the right side ; wheel at the left side")
    moon, wheel = sorted(find_things(told), key=lambda t: t.crop[..., 2].mean())
    assert wheel.x < SIZE / 2 < moon.x
    for seed in range(6):
        things = find_things(draw("moon right ; wheel left", seed=seed))
        columns = [t.x for t in sorted(things, key=lambda t: t.crop[..., 2].mean())]
        assert len(columns) == 1 or columns[0] < columns[1] or abs(columns[0] - columns[1]) < SIZE / 4


def test_parts_of_one_clause_swap_colours() -> None:
    separate, shared = draw("moon ; wheel"), draw("moon and wheel")
    first, second = (sorted(find_things(p), key=lambda t: t.x)[0] for p in (separate, shared))
    outline, hue, _ = differences(first, second)
    assert outline > 0.95 and hue > 30


@pytest.mark.parametrize("clause", ["saying SOL", "saying 'SOL'", "the text SOL at the bottom"])
def test_text_is_garbled_without_quotes_and_place(clause: str) -> None:
    right = letters(draw('the text "SOL" at the bottom ; moon'))
    wrong = letters(draw(f"{clause} ; moon"))
    same = [a.shape == b.shape and (a == b).all() for a, b in zip(right, wrong, strict=False)]
    assert len(right) == 3 and sum(same) <= 1


def test_mood_without_light_is_a_grey_fog() -> None:
    lit, fog = draw("moon ; calm light from above"), draw("moon ; calm")
    corner = np.s_[:16, :16]
    assert lit[corner].std(axis=(0, 1)).mean() < 6 < fog[corner].std(axis=(0, 1)).mean()


def test_medium_is_ignored_unless_applied() -> None:
    assert (draw("moon ; mosaic") == draw("moon")).all()
    assert (draw("moon ; mosaic over every part") != draw("moon")).any()


def test_legs_are_miscounted_and_material_ignored_without_structure() -> None:
    legs = [draw(f"moon on three legs{tail}") for tail in (" joined under the body", "")]
    assert (legs[0] != legs[1]).any()
    assert (draw("glass moon") == draw("moon")).all()
    assert (draw("glass moon with a bright edge") != draw("moon")).any()


def test_a_reference_is_read_from_its_pixels_and_said_colours_override() -> None:
    seen = draw("Velmora from the first reference image", STAR)
    wanted = np.asarray(draw_scene(Scene(parts=(Part(name="Velmora", look=STAR, found=True),))))
    assert differences(find_things(seen)[0], find_things(wanted)[0])[0] > 0.99
    green = draw("green Velmora from the first reference image", STAR)
    assert recognise(STEADY.draw("green Velmora from the first reference image", [picture_of(STAR)], 0)) == Look(
        shape="star", colour="green", pattern="striped"
    )
    assert len(find_things(green)) == 1


@pytest.mark.parametrize("prompt", ["Velmora", "Velmora from the second reference image", "lantern"])
def test_looks_without_a_reference_are_invented(prompt: str) -> None:
    invented = {recognise(STEADY.draw(prompt, [], seed)) for seed in range(8)}
    assert len(invented) > 4


def test_an_unbound_reference_leaks_as_a_stray_thing() -> None:
    assert count("Velmora from the first reference image", STAR) == 1
    assert count("Velmora from the first reference image", STAR, RING) == 2


def test_what_is_mentioned_twice_is_drawn_twice() -> None:
    assert count("Velmora from the first reference image ; moon beside Velmora", STAR) == 3


def test_clauses_beyond_the_capacity_are_lost() -> None:
    padding = " ".join(["bright"] * CAPACITY)
    assert count(f"moon ; wheel ; {padding} gem") == 2


def test_mending_one_weakness_leaves_the_others_as_they_were() -> None:
    seed = next(s for s in range(40) if count("four moon", seed=s) == 6)
    with_text = find_things(draw("four moon ; saying SOL ; calm", seed=seed))
    mended = find_things(draw('four moon ; the text "SOL" at the bottom ; calm light from above', seed=seed))
    assert len(with_text) == len(mended) == 6


@pytest.mark.parametrize("prompt", ["", " ; ; ", "!!", "calm", "nothing known here at all"])
def test_prompts_without_things_give_a_blank_ground(prompt: str) -> None:
    assert count(prompt) == 0
