"""Rollouts of a policy that sees: rows name the files that it saw, and SFT rows hold them in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.agent.wire import image_block, wrap
from genevolve_ray.bench.jobs.sft_rows import write_sft_rows
from genevolve_ray.records.images import FilesystemImages, ImageRef
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.records.published.places import absolute_paths, portable_paths
from genevolve_ray.records.published.rejections import RejectionReport
from genevolve_ray.records.published.trajectories import read_sft
from genevolve_ray.records.published.writers import agent_row
from genevolve_ray.records.trajectory import Provenance, SampleKey, Termination, Trajectory, Turn, TurnKind

OPENING = [{"role": "system", "content": "Draw."}, {"role": "user", "content": "a heron"}]
CALL = '<think>look</think><tool_call>{"name": "image_search", "arguments": {"query": "heron"}}</tool_call>'
ANSWER = '<think>so</think><answer>{"gen_prompt": "draw", "reference_images": []}</answer>'


@pytest.fixture
def images(tmp_path: Path) -> FilesystemImages:
    return FilesystemImages(str(tmp_path / "out" / "store"))


def trajectory(images: FilesystemImages, answer: str = ANSWER) -> Trajectory:
    """An episode of two searches that showed one picture, then two."""
    hits = {
        f"IMG_{i:03d}": ImageHit(title=f"t{i}", url=f"https://x.org/{i}", image=ref, shown=ref)
        for i in range(1, 4)
        if (ref := images.put(b"file %d" % i, width=4, height=4))
    }
    searches = [["IMG_002"], ["IMG_003", "IMG_001"]]
    said = [wrap(image_block("q", [(i, hits[i], "") for i in ids], ("title",), 80)) for ids in searches]
    turns = [Turn(kind=TurnKind.TOOL_CALL, text=CALL, tool="image_search", observation=text) for text in said]
    return Trajectory(
        SampleKey(step=0, request_id="r", sample=0),
        "a heron",
        TokenLedger(),
        Provenance(profile="release", engine="fake"),
        turns=[*turns, Turn(kind=TurnKind.ANSWER, text=answer)],
        images=hits,
        termination=Termination.ANSWER,
        program=Program(gen_prompt="draw", reference_images=(ReferenceImage(img_id="IMG_003", note="look"),)),
    )


def stored(ref: ImageRef) -> str:
    return f"store/{ref.sha256[:2]}/{ref.file_name}"


def row(played: Trajectory, opening: list[dict[str, str]] = OPENING) -> ResultRow:
    asked = {"id": "r", "prompt": "a heron"}
    return ResultRow.read(agent_row(asked, played, opening=opening, shown_path=stored))


def expected(images: FilesystemImages) -> list[str]:
    hits = trajectory(images).images
    return [stored(hits[name].image) for name in ("IMG_002", "IMG_003", "IMG_001")]


def test_sft_rows_hold_the_pictures_in_the_order_of_their_places(tmp_path: Path, images: FilesystemImages) -> None:
    out, report = tmp_path / "out", RejectionReport()
    assert write_sft_rows(out / "sft.jsonl", [row(trajectory(images))], out).kept == 1
    [read] = read_sft([out / "sft.jsonl"], report)
    assert list(read.images) == expected(images)
    assert sum(message.content.count("<image>") for message in read.messages) == 3
    assert [(read.root / image).read_bytes() for image in read.images] == [b"file 2", b"file 3", b"file 1"]


def test_pictures_outside_the_folder_of_the_rows_are_copied_beside_them(
    tmp_path: Path, images: FilesystemImages
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "sft.jsonl"
    assert write_sft_rows(path, [row(trajectory(images))], tmp_path / "out").kept == 1
    [read] = read_sft([path], RejectionReport())
    assert [Path(image).parts[0] for image in read.images] == ["sft_images"] * 3
    assert (path.parent / read.images[0]).read_bytes() == b"file 2"


def test_a_row_whose_picture_is_missing_is_left_out(tmp_path: Path, images: FilesystemImages) -> None:
    out, played = tmp_path / "out", trajectory(images)
    (out / stored(played.images["IMG_001"].image)).unlink()
    report = write_sft_rows(out / "sft.jsonl", [row(played)], out)
    assert (report.kept, (out / "sft.jsonl").read_bytes()) == (0, b"")


@pytest.mark.parametrize(
    ("answer", "prompt"), [(ANSWER.replace("so", "so <image>"), "a heron"), (ANSWER, "a heron like <image>")]
)
def test_a_placeholder_that_no_search_placed_leaves_the_row_out(
    tmp_path: Path, images: FilesystemImages, answer: str, prompt: str
) -> None:
    out, opening = tmp_path / "out", [OPENING[0], {"role": "user", "content": prompt}]
    report = write_sft_rows(out / "sft.jsonl", [row(trajectory(images, answer), opening)], out)
    assert report.kept == 0


def test_paths_of_seen_files_move_with_the_results(tmp_path: Path, images: FilesystemImages) -> None:
    values, out = row(trajectory(images)).values, tmp_path / "out"
    absolute = absolute_paths(values, [out])
    assert absolute[PROVENANCE]["shown"] == [str(out / path) for path in expected(images)]
    assert portable_paths(absolute, out) == values


def test_rows_of_a_policy_that_reads_text_are_as_before(tmp_path: Path, images: FilesystemImages) -> None:
    played = trajectory(images)
    played.images = {n: hit.model_copy(update={"shown": None}) for n, hit in played.images.items()}
    played.turns = [
        t.model_copy(update={"observation": t.observation.replace("  <image>\n", "")}) for t in played.turns
    ]
    found = row(played)
    assert "shown" not in found.provenance and found.shown == []
    assert write_sft_rows(tmp_path / "sft.jsonl", [found], tmp_path).kept == 1
    [read] = read_sft([tmp_path / "sft.jsonl"], RejectionReport())
    assert read.images == ()
