"""Ids as file names, and paths that rows name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.records.published.names import NameClaims, locate, picture_path
from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.results import RenderedRow

UNSAFE = [
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "x\0", "x\n", " x", "x ", "x.", ".x", "a*", "a?"),
    *('a"', "a<b", "a|b", "CON", "nul.txt", "com1", "LPT9.a", "x" * 201, "é" * 101, "a\u202eb", "\ud800"),
]


@pytest.mark.parametrize("row_id", UNSAFE)
def test_an_id_that_is_no_file_name_is_refused(row_id: str) -> None:
    with pytest.raises(RowFault) as caught:
        picture_path(row_id)
    assert caught.value.reason is RejectionReason.UNSAFE_ID


@pytest.mark.parametrize("row_id", ["0", "case_00012", "a b", "IMG-1.v2", "灯台", "console", "x" * 200])
def test_an_ordinary_id_names_its_picture(row_id: str) -> None:
    assert picture_path(row_id) == f"images/{row_id}.png"


@given(row_id=st.text(max_size=12))
def test_no_id_leaves_the_folder(row_id: str) -> None:
    try:
        path = Path(picture_path(row_id))
    except RowFault:
        return
    assert path.parent == Path("images") and len(path.name.encode()) <= 255


@pytest.mark.parametrize("pair", [("Case", "case"), ("caf\u00e9", "cafe\u0301"), ("ß", "ss"), ("ﬁ", "fi")])
def test_two_ids_on_one_file_are_an_error(pair: tuple[str, str]) -> None:
    claims = NameClaims()
    claims.claim(pair[0])
    with pytest.raises(RowFault) as caught:
        claims.claim(pair[1])
    assert caught.value.reason is RejectionReason.NAME_COLLISION


def test_the_same_id_twice_is_a_duplicate() -> None:
    claims = NameClaims()
    claims.claim("1")
    with pytest.raises(RowFault) as caught:
        claims.claim("1")
    assert caught.value.reason is RejectionReason.DUPLICATE_ID


def test_a_path_is_looked_for_below_each_root(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    file = tmp_path / "second" / "t.png"
    file.write_bytes(b"x")
    roots = [tmp_path / "first", tmp_path / "second"]
    assert locate("t.png", roots, "gt_image") == file
    assert locate(str(file), roots, "gt_image") == file


@pytest.mark.parametrize(
    "path", ["../t.png", "a/../../t.png", "/etc/hostname", "file:///etc/hostname", "C:\\x", "", "a\0"]
)
def test_a_path_that_leaves_its_root_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(RowFault) as caught:
        locate(path, [tmp_path], "gt_image")
    assert caught.value.reason is RejectionReason.UNSAFE_PATH


@pytest.mark.parametrize("path", ["../data/t.png", "sub/../../data/./t.png"])
def test_a_path_that_leads_from_one_root_into_another_is_taken(path: str, tmp_path: Path) -> None:
    file = tmp_path / "data" / "t.png"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert locate(path, [tmp_path / "run", tmp_path / "data"], "gt_image") == file
    assert locate(f"{tmp_path}/run/../data/t.png", [tmp_path / "run", tmp_path / "data"], "gt_image") == file
    with pytest.raises(RowFault, match="--data"):
        locate(path, [tmp_path / "run"], "gt_image")


@pytest.mark.parametrize("path", ["none.png", "x" * 300 + ".png"])
def test_a_file_that_is_not_there_is_missing(path: str, tmp_path: Path) -> None:
    with pytest.raises(RowFault) as caught:
        locate(path, [tmp_path], "gt_image")
    assert caught.value.reason is RejectionReason.MISSING_IMAGE


def drawn(output_path: str, **fields: str) -> RenderedRow:
    return RenderedRow.read({"id": "7", "prompt": "x", "success": True, "output_path": output_path} | fields)


@pytest.mark.parametrize("said", ["images/7.png", "elsewhere/7.png", "/made/on/another/machine/images/7.png"])
def test_the_picture_of_moved_results_is_found_beside_them(said: str, tmp_path: Path) -> None:
    picture = tmp_path / "images" / "7.png"
    picture.parent.mkdir()
    picture.write_bytes(b"x")
    assert drawn(said).picture_file([tmp_path]) == picture


@pytest.mark.parametrize("below", ["gt/7.png", "truth/landmarks/europe/7.png", "a/b/c/d/e/7.png"])
def test_a_truth_of_a_moved_data_set_is_found_at_any_depth(below: str, tmp_path: Path) -> None:
    file = tmp_path / "mine" / below
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    row = drawn("images/7.png", gt_image=f"/theirs/set/{below}")
    assert row.truth_file([tmp_path / "run", tmp_path / "mine"]) == file


def test_where_the_row_says_comes_first(tmp_path: Path) -> None:
    for name in ("images", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.png").write_bytes(b"x")
    assert drawn("elsewhere/7.png").picture_file([tmp_path]) == tmp_path / "elsewhere" / "7.png"


def test_a_picture_that_is_nowhere_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(RowFault, match="unsafe_path"):
        drawn("/etc/hostname").picture_file([tmp_path])


def test_the_truth_is_found_or_its_lack_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"x")
    assert drawn("images/7.png", gt_image="t.png").truth_file([tmp_path]) == tmp_path / "t.png"
    with pytest.raises(RowFault, match="missing_truth"):
        drawn("images/7.png").truth_file([tmp_path])
    with pytest.raises(RowFault, match="unsafe_path"):
        drawn("images/7.png", gt_image="../t.png").truth_file([tmp_path])
