"""Whole rows of stored trajectories for a page: each file is read once, and no further than the last row."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_helpers import CONFIG, make_group

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.arrow import numbers_of, table_to_trajectories, trajectories_to_table
from genevolve_ray.viewer.site import columns
from genevolve_ray.viewer.site import index as site_index
from genevolve_ray.viewer.site.columns import read_rows
from genevolve_ray.viewer.site.index import RunIndex


def write_set(folder: Path, *, row_group_size: int) -> list[str]:
    """Write 40 trajectories, and return their keys."""
    trajectories = [t for n in range(20) for t in make_group(f"r{n:02d}", 1).trajectories]
    data = io.BytesIO()
    pq.write_table(trajectories_to_table(trajectories), data, row_group_size=row_group_size)
    (folder / "set.parquet").write_bytes(data.getvalue())
    return [str(t.key) for t in trajectories]


@pytest.mark.parametrize("row_group_size", [1000, 7])
@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_rows_are_the_same_in_large_and_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group_size: int, whole: int
) -> None:
    keys = write_set(tmp_path, row_group_size=row_group_size)
    monkeypatch.setattr(columns, "_WHOLE", whole)
    wanted = [39, 0, 15, 16, 6, 7]
    found = table_to_trajectories(read_rows(Folder(str(tmp_path)), "set.parquet", wanted))
    assert [str(t.key) for t in found] == [keys[row] for row in sorted(wanted)]


def test_a_row_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, row_group_size=1000)
    with pytest.raises(StoreError, match="40 trajectories: there is none in row 40"):
        read_rows(Folder(str(tmp_path)), "set.parquet", [0, 40])


def test_a_group_is_read_by_one_look_at_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_group("a", 1)
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        store.put_group(group, 0)
        store.put_trajectories("heldout-final", make_group("h", 0, 0).trajectories)
        index = RunIndex(store.root, tmp_path)
    while index.refresh():
        pass
    read = []
    monkeypatch.setattr(site_index, "read_rows", lambda *args: (read.append(args[1:]), read_rows(*args))[1])
    for entry in index.groups().items:
        assert list(index.load_group(entry.address)) == [member.address for member in entry.members]
    assert [rows for _, rows in read] == [[0, 1], [0, 1]]
    index.close()


def test_a_set_that_was_written_again_meanwhile_gives_no_other_trajectory(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        store.put_trajectories("heldout-final", make_group("h", 0, 0).trajectories)
        index = RunIndex(store.root, tmp_path)
        index.refresh()
        (entry,) = index.groups().items
        store.put_trajectories("heldout-final", make_group("other", 0, 0).trajectories)
    for ask, address in ((index.load, entry.members[0].address), (index.load_group, entry.address)):
        with pytest.raises(StoreError, match="written again"):
            ask(address)
    index.close()


def test_neither_index_nor_pages_load_pandas(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as store:
        store.put_group(make_group("a", 1), 0)
        root = store.root
    code = (
        "import sys; from pathlib import Path; from genevolve_ray.viewer.site.index import RunIndex\n"
        "index = RunIndex(sys.argv[1], Path(sys.argv[2])); index.refresh()\n"
        "index.load_group(index.groups().items[0].address)\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, root, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "array",
    [pa.array([True, False, True]), pa.array([0, 1, -1])[1:], pa.array([0.5, -0.25]), pa.array([], pa.int32())],
    ids=["booleans", "slice", "floats", "empty"],
)
def test_numbers_come_back_and_cannot_be_changed(array: pa.Array) -> None:
    found = numbers_of(array)
    assert found.tolist() == array.to_pylist()
    assert not found.flags.writeable


def test_missing_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 numbers are missing"):
        numbers_of(pa.array([1, None]))
