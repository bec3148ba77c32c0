"""The index of a run: what it finds, what it selects, and how it follows a run that goes on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_helpers import CONFIG, make_group, take_step

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Outcome, Turn, TurnKind
from genevolve_ray.viewer.site.entries import EntryFilter, EntryOrder, FilterFault
from genevolve_ray.viewer.site.index import RunIndex, UnknownAddress, current_sets
from genevolve_ray.viewer.site.sources import RunSource


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(str(tmp_path / "run"), CONFIG) as opened:
        yield opened


@pytest.fixture
def index(store: RunStore, tmp_path: Path) -> Iterator[RunIndex]:
    opened = RunIndex(store.root, tmp_path)
    yield opened
    opened.close()


def read_all(index: RunIndex) -> None:
    while index.refresh():
        pass


def test_committed_and_waiting_groups_and_sets_are_found(store: RunStore, index: RunIndex) -> None:
    take_step(store, 1)
    store.put_group(make_group("c", 2), 1)
    store.put_trajectories("heldout-final", make_group("h", 0, 0).trajectories)
    read_all(index)
    trained = {(e.set, e.step, e.request_id): e.trained for e in index.search().items}
    assert trained == {
        ("train", 1, "a"): 1,
        ("train", 1, "b"): 1,
        ("train", 2, "c"): None,
        ("heldout-final", 0, "h"): None,
    }
    assert index.state.complete
    assert index.state.trajectories == 8


def test_a_group_that_waited_is_marked_once_a_step_takes_it(store: RunStore, index: RunIndex) -> None:
    groups = [make_group("b", 1), make_group("a", 1)]
    for group in groups:
        store.put_group(group, 0)
    read_all(index)
    assert {e.trained for e in index.search().items} == {None}
    store.commit_step(1, groups, {}, "hash")
    read_all(index)
    assert {e.trained for e in index.search().items} == {1}


def test_a_withdrawn_group_is_forgotten(store: RunStore, index: RunIndex) -> None:
    group = make_group("a", 1)
    store.put_group(group, 0)
    read_all(index)
    store.withdraw_group(group)
    read_all(index)
    assert index.search().total == 0


def test_a_run_that_was_wound_back_is_read_again(store: RunStore, index: RunIndex) -> None:
    take_step(store, 1)
    take_step(store, 2)
    read_all(index)
    store.discard_steps(1)
    take_step(store, 2, loop={"again": True})
    read_all(index)
    assert index.store.manifest(2).loop == {"again": True}
    assert [e.trained for e in index.search(EntryFilter(step=2)).items] == [2, 2, 2, 2]


def test_a_set_that_was_written_again_replaces_the_earlier_one(store: RunStore, index: RunIndex) -> None:
    store.put_trajectories("heldout-final", make_group("h", 0, 0).trajectories)
    read_all(index)
    store.put_trajectories("heldout-final", make_group("other", 0, 0).trajectories[:1])
    read_all(index)
    assert [e.request_id for e in index.search().items] == ["other"]


def test_a_damaged_file_is_named_and_the_others_are_read(store: RunStore, index: RunIndex) -> None:
    take_step(store, 1)
    bad = Path(store.root, store.manifest(1).groups[0].path)
    bad.write_bytes(b"PAR1 no more")
    read_all(index)
    assert index.search().total == 2
    (told,) = index.state.damaged
    assert bad.name in told
    assert not index.refresh()


def test_addresses_are_the_same_in_another_index(store: RunStore, index: RunIndex, tmp_path: Path) -> None:
    take_step(store, 1)
    (tmp_path / "second").mkdir()
    second = RunIndex(store.root, tmp_path / "second")
    read_all(index)
    read_all(second)
    assert [e.address for e in index.search().items] == [e.address for e in second.search().items]
    second.close()


def test_a_trajectory_comes_back_whole(store: RunStore, index: RunIndex) -> None:
    groups = take_step(store, 1)
    read_all(index)
    wanted = groups[0].trajectories[1]
    (entry,) = [e for e in index.search(EntryFilter(request=wanted.key.request_id)).items if e.sample == 1]
    assert index.load(entry.address) == wanted


@pytest.mark.parametrize("address", ["", "../../run.json", "step-1-0000000000000000-0-0", "a" * 500, "step-1'--"])
def test_an_unknown_address_is_refused(index: RunIndex, address: str) -> None:
    for ask in (index.load, index.entry, index.group):
        with pytest.raises(UnknownAddress):
            ask(address)


def test_filters_select_by_outcome_reward_tool_and_text(store: RunStore, index: RunIndex) -> None:
    group = make_group("r", 1)
    first, second = group.trajectories
    first.turns = [Turn(kind=TurnKind.TOOL_CALL, text="I search for lanterns.", tool="search")]
    second.outcome, second.reward, second.reason = Outcome.INFRA_FAILURE, None, "judge: timed out"
    store.put_group(group, 0)
    read_all(index)

    def samples(**fields: object) -> list[int]:
        return [e.sample for e in index.search(EntryFilter(**fields)).items]  # type: ignore[arg-type]

    assert samples(outcome=Outcome.INFRA_FAILURE) == [1]
    assert samples(low=0.0, high=1.0) == [0]
    assert samples(low=0.1) == []
    assert samples(tool="search") == [0]
    assert samples(tool="search'; DROP TABLE words; --") == []
    assert samples(text="lanter search") == [0]
    assert samples(text="timed") == [1]
    assert samples(text="lanterns timed") == []
    assert samples(text='" OR body MATCH * NEAR(') == []
    assert samples(text="?!") == []


def test_groups_are_ordered_by_reward_and_keep_all_members(store: RunStore, index: RunIndex) -> None:
    good, bad = make_group("good", 1), make_group("bad", 1)
    for trajectory in bad.trajectories:
        trajectory.outcome, trajectory.reward = Outcome.POLICY_FAILURE, None
    for group in (bad, good):
        store.put_group(group, 0)
    read_all(index)
    best = index.groups(order=EntryOrder.BEST)
    assert [(g.request_id, g.best, g.worst) for g in best.items] == [("good", 0.5, 0.0), ("bad", 0.0, 0.0)]
    (only,) = index.groups(EntryFilter(low=0.4)).items
    assert (only.request_id, len(only.members), only.spread) == ("good", 2, 0.5)


def test_pages_divide_a_list(store: RunStore, index: RunIndex) -> None:
    for name in "abcde":
        store.put_group(make_group(name, 1), 0)
    read_all(index)
    pages = [index.groups(page=number, size=2) for number in (1, 2, 3, 4)]
    assert [len(page.items) for page in pages] == [2, 2, 1, 0]
    assert (pages[0].total, pages[0].count) == (5, 3)
    assert len({g.address for page in pages for g in page.items}) == 5


def test_a_filter_and_its_query_are_the_same() -> None:
    chosen = EntryFilter(set="train", step=3, outcome=Outcome.SCORED, low=0.25, text="two moons")
    assert EntryFilter.of(chosen.query()) == chosen
    assert EntryFilter.of({"page": "3", "step": ""}) == EntryFilter()


@pytest.mark.parametrize(
    "query",
    [{"step": "x"}, {"step": "9" * 10}, {"step": "-1"}, {"low": "nan"}, {"outcome": "good"}, {"text": "x" * 201}],
)
def test_a_value_that_cannot_be_used_is_named(query: dict[str, str]) -> None:
    (name,) = query
    with pytest.raises(FilterFault, match=f"{name}="):
        EntryFilter.of(query)


def test_the_second_copy_of_a_set_is_left_out() -> None:
    names = ["heldout-final", "heldout-final-000004", "heldout-final-000008", "heldout-sft", "other-000001"]
    assert current_sets(names) == ["heldout-final", "heldout-final-000004", "heldout-sft", "other-000001"]


def test_a_disk_that_is_away_is_a_fault_of_the_source(store: RunStore, tmp_path: Path) -> None:
    def away(*arguments: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    source = RunSource(store.root, tmp_path)
    for folder in (source.index.run_folder, source.index.store._folder):
        folder.fs = SimpleNamespace(get_file_info=away, type_name="stale")
    assert not source.look()
    assert "Stale file handle" in source.fault
    with pytest.raises(StoreError, match=r"cannot look at .*run\.json"):
        source.index.run_folder.stamp("run.json")
    source.close()


def test_a_state_of_the_run_beyond_all_bounds_is_not_read(store: RunStore, tmp_path: Path) -> None:
    source = RunSource(store.root, tmp_path)
    Path(store.root, "status.json").write_bytes(b" " * (1 << 20) + b"{}")
    assert not source.look()
    assert "more than 1048576 bytes" in source.fault
    source.close()


def test_the_run_is_only_read(store: RunStore, index: RunIndex) -> None:
    take_step(store, 1)
    before = {p: p.stat().st_mtime_ns for p in Path(store.root).rglob("*")}
    read_all(index)
    index.load(index.search().items[0].address)
    assert {p: p.stat().st_mtime_ns for p in Path(store.root).rglob("*")} == before
