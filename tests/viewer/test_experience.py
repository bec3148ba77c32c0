from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_helpers import make_bundle
from tokenizers import Tokenizer, models

from genevolve_ray.evolution.store.lessons import lesson_state
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.records.experience import Experience, Lesson, MovedToken, Use
from genevolve_ray.records.trajectory import Group
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.experience import (
    CONSTANT,
    LESSONS_READ,
    MERGED,
    Bundle,
    choose_bundles,
    group_experience,
    load_decoder,
    load_experience,
    split_key,
    strongest,
)


def token(name: str, position: int, gap: float) -> MovedToken:
    return MovedToken(trajectory=name, position=position, gap=gap)


def lesson(bundle: Bundle, request_id: str, *, own: bool = False) -> Lesson:
    return Lesson(
        request_id=request_id, bundle=max(0, bundle.number), experience=bundle.experience, similarity=0.9, own=own
    )


@pytest.fixture
def groups(report_data: ReportData) -> dict[str, Group]:
    """Groups of three attempts at two requests."""
    made = {}
    for name, trajectories in (("a", report_data.before[:3]), ("b/c", report_data.after[:3])):
        made[name] = Group(name, 0, trajectories)
    return made


def commit(
    store: RunStore, step: int, groups: dict[str, Group], lessons: list[Lesson], moved: list[MovedToken]
) -> None:
    """Commit a step whose trajectories have the keys that the step gives them."""
    for name, group in groups.items():
        for sample, trajectory in enumerate(group.trajectories):
            trajectory.key = trajectory.key.model_copy(update={"step": step, "request_id": name, "sample": sample})
        store.put_group(group, step - 1)
    loop = lesson_state(lessons, moved) if lessons else {}
    store.commit_step(step, list(groups.values()), {"reward_mean": 0.5}, f"state-{step}", loop=loop)


def test_a_run_without_lessons_has_no_experience(groups: dict[str, Group], tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        assert load_experience(store) is None
        commit(store, 1, groups, [], [])
        assert load_experience(store) is None


def test_a_bundle_comes_back_with_its_pair_its_retrievals_and_its_tokens(
    groups: dict[str, Group], tmp_path: Path
) -> None:
    bundle = make_bundle(0, 1, 0.5, "b/c")
    with RunStore.open(str(tmp_path / "run"), {"policy": {"model": "elsewhere"}}) as store:
        commit(store, 1, groups, [lesson(bundle, "b/c", own=True)], [token("1/b/c/2/0", 61, 3.0)])
        commit(store, 2, groups, [lesson(bundle, "a")], [token("2/a/1/0", 62, -2.0)])
        run = load_experience(store)
    assert run is not None
    assert (run.written, run.own, run.remembered, run.decode) == (1, 1, 1, None)
    (found,) = run.bundles
    assert found.best is not None and str(found.best.key) == "1/b/c/0/0"
    assert found.worst is not None and str(found.worst.key) == "1/b/c/1/0"
    assert [(use.step, use.request_id, use.own) for use in found.uses] == [(1, "b/c", True), (2, "a", False)]
    assert [moved.token.gap for moved in found.moved] == [3.0, -2.0]
    assert set(run.trajectories) == {"1/b/c/0/0", "1/b/c/1/0", "1/b/c/2/0", "2/a/1/0"}


def test_a_merged_lesson_is_counted_apart_and_is_no_card(groups: dict[str, Group], tmp_path: Path) -> None:
    whole, several = make_bundle(0, 1, 0.5, "b/c"), Experience(search_strategy=("search facts",))
    merged = Lesson(request_id="a", bundle=0, experience=several, similarity=0.9, own=False, merged=(0, 3))
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        commit(store, 1, groups, [lesson(whole, "b/c", own=True), merged], [token("1/a/1/0", 62, -2.0)])
        run = load_experience(store)
        recalled = group_experience(store, 1, "a")[1]
    assert run is not None
    assert (run.written, run.own, run.remembered, run.merged) == (1, 1, 0, 1)
    (found,) = run.bundles
    assert (found.number, [use.request_id for use in found.uses], found.moved) == (0, ["b/c"], [])
    assert recalled is not None and (recalled.number, recalled.experience) == (MERGED, several)


def test_only_groups_that_the_page_shows_are_read(groups: dict[str, Group], tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        commit(store, 1, groups, [lesson(make_bundle(0, 1, 0.5, "a"), "a", own=True)], [])
        for step in (2, 3):
            commit(store, step, groups, [lesson(make_bundle(0, 1, 0.5, "a"), "b/c")], [])
        for step, wanted in ((1, {"b/c"}), (2, {"a", "b/c"}), (3, {"a", "b/c"})):
            for file in store.manifest(step).groups:
                if file.request_id in wanted:
                    (tmp_path / "run" / file.path).unlink()
        run = load_experience(store)
    assert run is not None and run.bundles[0].best is not None


def test_tokens_come_from_the_few_lessons_that_moved_most(groups: dict[str, Group], tmp_path: Path) -> None:
    bundle = make_bundle(0, 1, 0.5, "a")
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        for step in range(1, LESSONS_READ + 3):
            commit(store, step, groups, [lesson(bundle, "a", own=step == 1)], [token(f"{step}/a/0/0", 61, float(step))])
        run = load_experience(store)
    assert run is not None
    assert [moved.token.gap for moved in run.bundles[0].moved] == [5.0, 4.0, 3.0]


def test_bundles_that_taught_nothing_come_from_the_memory(groups: dict[str, Group], tmp_path: Path) -> None:
    memory = ExperienceMemory()
    vector = np.array([1.0, 0.0], dtype=np.float32)
    memory.insert(make_bundle(0, 1, 0.5, "a").experience, vector)
    memory.retrieve(vector, "b/c", 1)
    fixed = Bundle(CONSTANT, Experience(search_strategy=("be careful",)))
    with RunStore.open(str(tmp_path / "run"), {"seed": 1}) as store:
        store.put_experience(1, memory.snapshot())
        commit(store, 1, groups, [lesson(fixed, "b/c")], [token("1/b/c/0/0", 61, 1.0)])
        run = load_experience(store)
    assert run is not None
    constant, unused = run.bundles
    assert (constant.number, constant.best, len(constant.moved)) == (CONSTANT, None, 1)
    assert (unused.number, [use.request_id for use in unused.uses], unused.moved) == (0, ["b/c"], [])
    assert (run.written, run.own, run.remembered) == (1, 0, 1)


def test_the_choice_holds_what_was_recalled_most_and_the_largest_gaps_of_all_parts_of_the_run() -> None:
    bundles = [make_bundle(i, i + 1, gap=0.5 + (i % 5) / 100) for i in range(40)]
    for number, count in ((3, 9), (17, 5), (5, 4), (30, 2), (31, 1)):
        bundles[number].uses = [Use(step=9, request_id=f"r{i}", similarity=0.9, own=False) for i in range(count)]
    chosen = [b.number for b in choose_bundles(bundles, 8)]
    assert chosen == sorted(chosen) and len(chosen) == 8
    assert {3, 5, 17, 30} <= set(chosen)
    rest = [n for n in chosen if n not in (3, 5, 17, 30)]
    assert [n // 10 for n in rest] == [0, 1, 2, 3]
    assert all(n % 5 == 4 for n in rest)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_few_bundles_are_all_chosen(count: int) -> None:
    bundles = [make_bundle(i, 1, 0.3) for i in range(count)]
    assert choose_bundles(bundles, 8) == bundles
    assert len(choose_bundles(bundles, 2)) == min(count, 2)


def test_a_token_of_attempts_that_begin_alike_is_shown_once() -> None:
    same = [token(f"1/a/{i}/0", 40, 2.0 + 1e-7 * i) for i in range(3)]
    other = [token("1/a/0/0", 41, 2.0), token("1/b/0/0", 40, 2.0)]
    found = strongest([*same, *other])
    assert sorted(moved.alike for moved in found) == [1, 1, 3]


def test_both_signs_have_their_places_and_the_strongest_come_first() -> None:
    tokens = [token("1/a/0/0", i, gap) for i, gap in enumerate([0.5, -0.1, 3.0, -0.4, 0.0, 1.0])]
    assert [m.token.gap for m in strongest(tokens, disliked=2, preferred=1)] == [3.0, 1.0, -0.4]


@pytest.mark.parametrize(
    ("name", "parts"), [("2/a/0/1", (2, "a")), ("2/a/b/0/1", (2, "a/b")), ("", (-1, "")), ("x/a/0/0", (-1, "a"))]
)
def test_keys_are_cut_at_their_ends(name: str, parts: tuple[int, str]) -> None:
    assert split_key(name) == parts


def save_tokenizer(folder: Path, *words: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary: dict[str, int] = {word: i for i, word in enumerate(words)}
    model: Any = models.WordLevel(vocabulary, unk_token=words[0])
    Tokenizer(model).save(str(folder / "tokenizer.json"))


def test_tokens_are_decoded_by_the_last_checkpoint_else_by_the_policy(groups: dict[str, Group], tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    with RunStore.open(str(tmp_path / "run"), {"policy": {"model": str(policy)}}) as store:
        assert load_decoder(store) is None
        save_tokenizer(policy, "old", "words")
        decode = load_decoder(store)
        assert decode is not None and decode([1, 0]) == "words old"
        with store.checkpoint(1, "state-1") as folder:
            save_tokenizer(folder, "new", "words")
        commit(store, 1, groups, [], [])
        decode = load_decoder(store)
        assert decode is not None and decode([1, 0, 99]) == "words new"
