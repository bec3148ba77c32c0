import random
import sys

import numpy as np
import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.small import pictures
from genevolve_ray.small.countries import country_names
from genevolve_ray.small.parts import locate
from genevolve_ray.small.pictures import PictureLibrary, flag_code
from genevolve_ray.small.scene import COLORS, SmallScene, compose
from genevolve_ray.small.subjects import every_subject
from genevolve_ray.small.wording import describe

CAT, OWL = "1F408", "1F989"


def pixels(picture):
    return np.asarray(picture, dtype=np.int64)


def test_the_same_scene_and_seed_give_the_same_pixels(library):
    scene = SmallScene(subject=CAT, count=3, background="MN", caption="MN")
    first, again, other = (compose(scene, library, seed=seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.size == (64, 64) and first.mode == "RGB"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("caption", ["", "WWW"])
def test_every_copy_of_a_subject_stands_alone(library, count, caption):
    ball = "26BD"
    background = COLORS["pink"]
    for seed in range(3):
        picture = pixels(
            compose(SmallScene(subject=ball, count=count, background="pink", caption=caption), library, 128, seed)
        )
        top = picture[: round(128 * 0.68) if caption else 128]
        assert _islands(np.abs(top - background).sum(-1) > 60) == count


def _islands(mask):
    from scipy.ndimage import label

    found, number = label(mask)
    return sum((found == i).sum() > 20 for i in range(1, number + 1))


def test_a_flag_fills_the_canvas(library):
    france = pixels(library.flag("FR", 64))
    left, middle, right = france[32, 2], france[32, 32], france[32, 61]
    assert left[2] > left[0] and middle.min() > 240 and right[0] > right[2]
    assert (np.abs(france[0] - france[32]).max(-1) < 8).all()  # No outline on the first row.


def test_a_black_and_white_scene_has_no_color(library):
    picture = pixels(compose(SmallScene(subject=OWL, background="MN", style="black-and-white"), library))
    assert (picture.max(-1) == picture.min(-1)).all()


def test_a_caption_changes_the_bottom_alone(library):
    plain = pixels(compose(SmallScene(subject=CAT, background="BR", caption="AB"), library))
    other = pixels(compose(SmallScene(subject=CAT, background="BR", caption="XY"), library))
    rows = np.flatnonzero(np.abs(plain - other).sum((1, 2)))
    assert rows.min() >= 44 and rows.max() - rows.min() + 1 >= 14


def test_subjects_and_flags_have_pictures_and_distinct_names(library):
    assert len({subject.name for subject in every_subject()}) == len(every_subject()) >= 180
    assert len({subject.id for subject in every_subject()}) == len(every_subject())
    assert set(library.flags) == set(country_names())
    assert library.entries["1F1F2-1F1F3"].name == "flag of Mongolia"
    assert flag_code("1F1F2-1F1F3") == "MN" and flag_code(CAT) is None


def test_rendered_pictures_are_kept_by_the_hash_of_their_source(library, tmp_path):
    kept = PictureLibrary(library.folder, tmp_path)
    first = kept.picture(CAT, 40)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert kept.picture(CAT, 40).tobytes() == first.tobytes() == library.picture(CAT, 40).tobytes()
    assert path.stat().st_mtime_ns == before


def test_what_a_library_lacks_is_named(library, tmp_path):
    with pytest.raises(UserFault, match="no OpenMoji pictures"):
        PictureLibrary(tmp_path)
    with pytest.raises(UserFault, match="'ZZ'"):
        library.flag("ZZ", 64)
    with pytest.raises(UserFault, match="no such file"):
        library.picture("../1F408", 64)


def test_a_prompt_names_all_parts_and_the_reference():
    scene = SmallScene(subject=OWL, count=3, background="MN", caption="UB", style="black-and-white")
    for seed in range(50):
        prompt = describe(scene, random.Random(seed), "flag")
        assert "first reference image" in prompt and "owls" in prompt and "UB" in prompt
        assert "three" in prompt.lower() or "3" in prompt
    assert "Mongolia" in describe(scene, random.Random(0), "none")


def test_a_poor_prompt_leaves_out_what_it_should():
    scene = SmallScene(subject=OWL, count=2, background="pink", caption="UB")
    prompt = describe(scene, random.Random(0), "none", omit=("name", "background", "caption"))
    assert not any(word in prompt for word in ("owl", "pink", "UB"))
    with pytest.raises(ValueError, match="'pink'"):
        describe(scene, random.Random(0), "flag")


def test_the_rasterizer_is_the_file_whose_hash_was_compared(library, tmp_path, monkeypatch):
    (tmp_path / "resvg_py.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "resvg_py", raising=False)
    assert pictures._rasterizer.__wrapped__().__file__ == str(locate("resvg") / "resvg_py.abi3.so")
