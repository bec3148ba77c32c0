"""The curriculum: which requests it prefers, that it follows from seed and committed steps, and what a resume brings back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeRequests, FakeRollouts, Scene, evolve, make_config, make_trajectory

from genevolve_ray.bench.worlds import WorldSources
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.curriculum import CurriculumRequests, CurriculumState, RequestCurriculumConfig, check_pool
from genevolve_ray.evolution.flow import FlowState
from genevolve_ray.evolution.loop import Evolution
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def source(state: CurriculumState | None = None, seed: int = 1, size: int = 4, **settings: Any) -> CurriculumRequests:
    config = RequestCurriculumConfig.model_validate({"pool": 20} | settings)
    return CurriculumRequests(FakeRequests(), config, seed=seed, size=size, state=state)


def round_of(requests: CurriculumRequests, number: int, size: int = 4) -> list[str]:
    return [requests.train(i).id for i in range((number - 1) * size, number * size)]


def group(name: str, *scores: float) -> Group:
    keys = [SampleKey(step=1, request_id=name, sample=i) for i in range(len(scores))]
    return Group(name, 1, [make_trajectory(k, Outcome.SCORED, s) for k, s in zip(keys, scores, strict=True)])


def test_a_round_has_different_requests_of_the_pool_by_the_seed() -> None:
    first = round_of(source(), 1)
    assert len(set(first)) == 4
    assert first == round_of(source(), 1) != round_of(source(seed=2), 1)


def test_weights_fall_with_the_distance_from_the_target() -> None:
    """At one width from the target the weight is exp(-1/2); far from it the floor holds; an unseen request has 1."""
    config = RequestCurriculumConfig(pool=1, target=0.5, width=0.2, floor=0.05)
    assert [config.weight(m) for m in (None, 0.5, 0.7, 0.0)] == pytest.approx([1, 1, 0.60653066, 0.05])


def test_the_least_width_gives_the_floor_to_all_but_the_target() -> None:
    config = RequestCurriculumConfig(pool=1, target=0.5, width=1e-300, floor=0.05)
    assert [config.weight(m) for m in (0.5, 0.5000001, 1.0)] == [1, 0.05, 0.05]


def test_passes_are_counted_where_a_pass_is_defined() -> None:
    scores = [0.2, 0.6, 0.7, 0.9]
    assert RequestCurriculumConfig(pool=1).measure(scores) == pytest.approx(0.6)
    assert RequestCurriculumConfig(pool=1, pass_at=0.7).measure(scores) == 0.5


def test_requests_of_middle_difficulty_are_drawn_more_often() -> None:
    means = {place: 0.5 if place < 10 else 0.0 for place in range(20)}
    requests = source(CurriculumState(means=means), floor=0.1)
    drawn = Counter()
    for number in range(1, 301):
        drawn.update(round_of(requests, number))
        requests.state(FlowState(next_lease=number * 4))
    middle = sum(drawn[f"train-{place}"] for place in range(10)) / drawn.total()
    # Four of twenty without replacement, ten with weight 1 and ten with 0.1: near 10 / 11 at first, less as ones are taken.
    assert 0.85 < middle < 0.92


def test_the_running_mean_weighs_the_newest_group() -> None:
    requests = source(newest=0.25)
    [name, *_] = round_of(requests, 1)
    for step, scores in ((1, (0.0, 0.0)), (2, (0.4, 0.8)), (2, (1.0, 1.0))):  # a step that is learned again counts once
        requests.hear(step, {0: group(name, *scores)})
    [(place, mean)] = requests.state(FlowState()).means.items()
    assert (f"train-{place}", mean) == (name, pytest.approx(0.25 * 0.6))


def test_a_state_goes_on_as_the_curriculum_did() -> None:
    whole = source()
    names = round_of(whole, 1)
    whole.hear(1, {i: group(name, 0.1 * i, 0.2 * i) for i, name in enumerate(names)})
    open_leases = FlowState(next_lease=6, open=(4, 5))
    round_of(whole, 2)
    kept = CurriculumState.model_validate_json(whole.state(open_leases).model_dump_json())
    assert list(kept.plans) == [2]
    again = source(kept)
    # The later round is asked for first, as by groups that were judged before a restart.
    assert (round_of(again, 4), round_of(again, 2)) == (round_of(whole, 4), round_of(whole, 2))


def test_open_rounds_keep_their_requests_to_themselves() -> None:
    requests = source(size=5)
    rounds = [set(round_of(requests, number, 5)) for number in (1, 2, 3, 4)]
    assert len(set().union(*rounds)) == 20


def test_a_pool_beyond_the_source_is_refused() -> None:
    class Short(FakeRequests):
        def __len__(self) -> int:
            return 7

    with pytest.raises(UserFault, match=r"loop\.curriculum\.pool=20 exceeds the 7 training requests"):
        CurriculumRequests(Short(), RequestCurriculumConfig(pool=20), seed=1, size=4)
    with pytest.raises(ValueError, match=r"loop\.curriculum\.pool=1 is below loop\.requests_per_step=2"):
        make_config(curriculum={"pool": 1})


class Doubled(FakeRequests):
    """Each request is at two places."""

    def train(self, index: int) -> Request:
        return super().train(index // 2)


def test_a_request_at_two_places_is_drawn_once_while_others_are_left() -> None:
    requests = CurriculumRequests(Doubled(), RequestCurriculumConfig(pool=20), seed=1, size=5)
    rounds = [round_of(requests, number, 5) for number in (1, 2, 3)]
    assert [len(set(names)) for names in rounds] == [5, 5, 5]
    assert not set(rounds[0]) & set(rounds[1])


def test_a_round_of_more_requests_than_there_are_repeats_some() -> None:
    requests = CurriculumRequests(Doubled(), RequestCurriculumConfig(pool=4), seed=1, size=4)
    assert sorted(round_of(requests, 1)) == ["train-0", "train-0", "train-1", "train-1"]


def test_the_length_of_a_source_is_known_through_the_worlds_of_a_benchmark() -> None:
    class Short(FakeRequests):
        def __len__(self) -> int:
            return 7

    config = RequestCurriculumConfig(pool=20)
    with pytest.raises(UserFault, match="exceeds the 7 training requests"):
        check_pool(WorldSources(Short(), {}), config)
    check_pool(WorldSources(FakeRequests(), {}), config)


def drawn(evolution: Evolution) -> list[list[str]]:
    return [[g.request_id for g in m.groups] for m in evolution.store.manifests()]


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_resumed_run_draws_what_the_whole_one_does(
    scene: Scene, tmp_path: Path, mode: str, rounds: int
) -> None:
    def begin(of: Scene, steps: int) -> Evolution:
        options = {"mode": mode, "curriculum": {"pool": 9}, "dynamic_sampling": {"rounds": rounds, "spread": 0.2}}
        return of.begin(make_config(steps=steps, **options), FakeRollouts())

    await evolve(begin(scene, 2))
    resumed = begin(scene, 5)
    await evolve(resumed)
    assert all(int(name.rpartition("-")[2]) < 9 for step in drawn(resumed) for name in step)
    assert resumed.store.metrics()[-1]["curriculum_drawn_fraction"] > 0.4
    if mode == "sync":
        (tmp_path / "other").mkdir()
        other = Scene(tmp_path / "other")
        whole = begin(other, 5)
        await evolve(whole)
        assert drawn(resumed) == drawn(whole)
        assert [m.state_hash for m in resumed.store.manifests()] == [m.state_hash for m in whole.store.manifests()]
        assert resumed.store.manifest(5).loop["curriculum"] == whole.store.manifest(5).loop["curriculum"]
        other.close()
