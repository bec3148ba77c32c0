"""A folder of one's own: which files belong to it, how texts are cut, and where captions come from."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.tools.folder.captions import read_captions
from genevolve_ray.tools.folder.files import PICTURES, TEXTS, FolderFiles, address
from genevolve_ray.tools.folder.passages import Passage, cut_passages
from genevolve_ray.tools.folder.toolbox import FolderToolsConfig
from genevolve_ray.tools.local import CorpusError


def picture(path: Path, format: str = "PNG", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path, format, **options)


def files_of(root: Path, max_files: int = 100) -> FolderFiles:
    return FolderFiles(root, max_files)


def captions(root: Path, **limits: Any) -> tuple[dict[str, str], FolderFiles]:
    files = files_of(root)
    return read_captions(files, PictureLimits(**limits))[0], files


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_listed_in_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.MD", "a/y.png", ".hidden.txt", ".cache/x.txt", "notes.pdf", "a/.git/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    files = files_of(tmp_path)
    assert files.paths == ["b.txt", "a/y.png", "a/z.MD"]
    assert (files.of(TEXTS), files.of(PICTURES), files.report()) == (["b.txt", "a/z.MD"], ["a/y.png"], "")


def test_links_are_followed_only_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "own.txt").write_text("own")
    (root / "inside.txt").symlink_to(root / "own.txt")
    (root / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (root / "loop.txt").symlink_to(root / "loop.txt")
    (root / "gone.txt").symlink_to(root / "nothing.txt")
    (root / "up").symlink_to(tmp_path)
    files = files_of(root)
    assert files.paths == ["inside.txt", "own.txt"]
    assert files.skipped["outside.txt"] == "a link that leads out of the folder"
    assert set(files.skipped) == {"outside.txt", "loop.txt", "gone.txt", "up"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    files = files_of(tmp_path)
    assert (files.paths, files.skipped) == ([], {"a.txt": "not a regular file"})


def test_too_many_files_end_the_start(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("x")
    assert len(files_of(tmp_path, 3).paths) == 3
    with pytest.raises(CorpusError, match="more than max_files=2"):
        files_of(tmp_path, 2)


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="none is not a folder"):
        files_of(tmp_path / "none")


def test_a_text_that_cannot_be_read_is_named_without_this_machines_path(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 20)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfgood")
    files = files_of(tmp_path)
    assert [files.text(path, 10) for path in files.paths] == ["good", None, None]
    (tmp_path / "good.txt").unlink()
    assert files.text("good.txt", 10) is None
    assert files.report() == (
        "3 skipped: latin.txt (not UTF-8), long.txt (20 bytes, allowed 10), good.txt (No such file or directory)"
    )
    assert str(tmp_path) not in files.report()


def test_an_address_is_the_same_everywhere_and_one_word() -> None:
    assert address("a b/c#d.md") == "folder:///a%20b/c%23d.md"
    assert address("notes.md", 2) == "folder:///notes.md#2"


# --- passages --------------------------------------------------------------------------------------------------------


def test_sections_have_the_headings_above_them() -> None:
    text = "intro\n# Birds\n## Heron ##\nwades\n```\n# no heading\n```\n## Fox\n# Plants\nreed"
    assert cut_passages(text, 100, 10, markdown=True) == [
        Passage((), "intro"),
        Passage(("Birds", "Heron"), "wades\n```\n# no heading\n```"),
        Passage(("Plants",), "reed"),
    ]
    assert cut_passages("# a\nb", 100, 10, markdown=False) == [Passage((), "# a\nb")]


def test_a_cut_prefers_the_end_of_a_paragraph_then_of_a_sentence_then_of_a_word() -> None:
    assert [p.text for p in cut_passages("aaaa bbbb. cc\n\ndddd eeee ffff", 20, 0, markdown=False)] == [
        "aaaa bbbb. cc",
        "dddd eeee ffff",
    ]
    assert [p.text for p in cut_passages("aaaa bbbb cc. dddd eeee ffff", 20, 0, markdown=False)] == [
        "aaaa bbbb cc.",
        "dddd eeee ffff",
    ]
    assert [p.text for p in cut_passages("x" * 50, 20, 0, markdown=False)] == ["x" * 20, "x" * 20, "x" * 10]


def test_passages_overlap_by_whole_words() -> None:
    parts = [p.text for p in cut_passages(" ".join(f"w{n:03}" for n in range(30)), 50, 12, markdown=False)]
    for one, two in zip(parts, parts[1:], strict=False):
        shared = two.split()[:2]
        assert one.split()[-2:] == shared


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="ab .\n#`é", max_size=400), st.integers(10, 60), st.booleans())
def test_no_character_is_lost_and_no_passage_is_too_long(text: str, size: int, markdown: bool) -> None:
    for overlap in (0, size // 2 - 1):
        parts = cut_passages(text, size, overlap, markdown=markdown)
        assert all(0 < len(part.text) <= size for part in parts)
    alone = cut_passages(text, size, 0, markdown=False)
    assert "".join("".join(part.text for part in alone).split()) == "".join(text.split())


# --- captions --------------------------------------------------------------------------------------------------------


def test_a_caption_comes_from_the_list_then_the_file_beside_then_the_picture_then_the_name(tmp_path: Path) -> None:
    described = PngImagePlugin.PngInfo()
    described.add_text("Description", "from inside")
    for name in ("listed.png", "beside.png", "inside.png"):
        picture(tmp_path / name, pnginfo=described)
    picture(tmp_path / "birds" / "grey_heron-1.png")
    (tmp_path / "captions.jsonl").write_text('{"file": "listed.png", "caption": "from  the\\nlist"}\n')
    for name in ("listed", "beside"):
        (tmp_path / f"{name}.txt").write_text("from beside\n")
    found, files = captions(tmp_path)
    assert found == {
        "beside.png": "from beside",
        "inside.png": "from inside",
        "listed.png": "from the list",
        "birds/grey_heron-1.png": "birds grey heron 1",
    }
    assert read_captions(files, PictureLimits())[1] == {"captions.jsonl", "listed.txt", "beside.txt"}


def test_exif_describes_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a heron at dawn"
    picture(tmp_path / "a.jpg", "JPEG", exif=exif)
    picture(tmp_path / "b.webp", "WEBP", exif=exif)
    assert captions(tmp_path)[0] == {"a.jpg": "a heron at dawn", "b.webp": "a heron at dawn"}


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("a.json", '{"caption": "c"}', "c"),
        ("a.png.json", '{"id": 1, "text": "t"}', "t"),
        ("a.json", '"plain"', "plain"),
        ("a.png.txt", "words", "words"),
        ("metadata.csv", 'file_name,text\na.png,"csv, quoted"\n', "csv, quoted"),
    ],
)
def test_common_layouts_are_understood(tmp_path: Path, name: str, content: str, caption: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    assert captions(tmp_path)[0] == {"a.png": caption}


def test_a_list_in_a_subfolder_names_pictures_of_that_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "x.png")
    (tmp_path / "a" / "captions.csv").write_text("file,caption\nx.png,inner\n../x.png,outer\n")
    assert captions(tmp_path)[0] == {"x.png": "outer", "a/x.png": "inner"}


@pytest.mark.parametrize(
    ("name", "content", "where", "reason"),
    [
        ("captions.jsonl", b'{"file": "a.png"}\n', "captions.jsonl:1", "no text under caption"),
        ("captions.jsonl", b"\n[1]\n", "captions.jsonl:2", "no text under file"),
        ("captions.jsonl", b"{oops\n", "captions.jsonl:1", "Expecting"),
        ("captions.jsonl", b"[" * 10**5, "captions.jsonl:1", "recursion"),
        ("captions.jsonl", b"\xff", "captions.jsonl", "not UTF-8"),
        ("captions.csv", b"file,caption\n../../etc/passwd,x\n", "captions.csv:2", "no picture of the folder"),
        ("captions.csv", b'file,caption\n"' + b"x" * 200_000, "captions.csv", "not CSV"),
        ("a.json", b"{", "a.json", "no caption"),
        ("a.json", b'{"caption": 3}', "a.json", "no caption"),
    ],
)
def test_a_bad_caption_is_named_and_the_picture_keeps_its_name(
    tmp_path: Path, name: str, content: bytes, where: str, reason: str
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    found, files = captions(tmp_path)
    assert list(found) == ["a.png"]
    assert reason in files.skipped[where]


def test_a_picture_that_is_none_or_too_large_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "html.png").write_text("<html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    buffer = io.BytesIO()
    Image.effect_noise((60, 60), 100).save(buffer, "PNG")
    (tmp_path / "heavy.png").write_bytes(buffer.getvalue())
    found, files = captions(tmp_path, max_pixels=5000, max_bytes=2000)
    assert list(found) == ["good.png"]
    assert files.skipped["large.png"] == "100 x 100 pixels, allowed 5000 in all"
    assert files.skipped["heavy.png"].endswith("bytes, allowed 2000")
    assert {"html.png", "empty.jpg"} < set(files.skipped)


def test_no_pixel_is_decoded_at_the_start(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: data.index(b"IDAT") + 6])
    assert captions(tmp_path)[0] == {"a.png": "a"}


def test_an_embedder_class_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedder.type='my:Embedder' is a class of its own"):
        FolderToolsConfig.model_validate({"folder": tmp_path, "embedder": {"type": "my:Embedder"}})
