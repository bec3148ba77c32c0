"""The memory finds what brute force finds, forgets what its formula says, and comes back bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from experience_helpers import bundle, random_units, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.experience.config import Eviction, MemoryConfig
from genevolve_ray.experience.memory import ExperienceMemory, SnapshotError
from genevolve_ray.records.experience import Experience, Use


def filled(count: int = 20, dimension: int = 8, **config: float) -> ExperienceMemory:
    memory = ExperienceMemory(MemoryConfig.model_validate({"threshold": 0.3, **config}))
    for i, vector in enumerate(random_units(count, dimension)):
        memory.insert(bundle(f"r{i}", step=i // 4, gap=0.2 + (i * 7 % 10) / 20), vector, f"key {i}")
    return memory


@given(seed=st.integers(0, 1000), count=st.integers(1, 30), threshold=st.floats(-0.5, 0.9))
@settings(max_examples=50)
def test_retrieval_is_brute_force(seed: int, count: int, threshold: float) -> None:
    vectors, queries = random_units(count, 6, seed), random_units(5, 6, seed + 5000)
    memory = ExperienceMemory(MemoryConfig(threshold=threshold))
    for i, vector in enumerate(vectors):
        memory.insert(bundle(f"r{i}"), vector)
    for query in queries:
        cosines = [float(np.dot(query.astype(np.float64), v.astype(np.float64))) for v in vectors]
        expected = int(np.argmax(cosines))
        found = memory.retrieve(query, "another", 2)
        if cosines[expected] > threshold + 1e-5:
            assert found is not None
            assert found.experience.request_id == f"r{expected}"
            assert found.similarity == pytest.approx(cosines[expected], abs=1e-5)
        elif cosines[expected] < threshold - 1e-5:
            assert found is None


def test_search_orders_by_similarity_and_leaves_no_trace() -> None:
    memory = filled()
    query = random_units(1, 8, seed=9)[0]
    hits = memory.search(query, top_k=5)
    order = np.argsort(-(memory.vectors @ query))[:5]
    assert [h.experience for h in hits] == [memory.rows()[i].experience for i in order]
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)
    assert not any(entry.uses for entry in memory.entries)


def test_an_empty_memory_finds_nothing() -> None:
    assert ExperienceMemory().retrieve(unit(1, 0), "r", 1) is None
    assert ExperienceMemory().search(unit(1, 0)) == []


def test_below_the_threshold_is_nothing() -> None:
    memory = ExperienceMemory(MemoryConfig(threshold=0.84))
    memory.insert(bundle("a"), unit(1, 0))
    assert memory.retrieve(unit(0.8, 0.6), "b", 1) is None
    assert memory.retrieve(unit(0.9, np.sqrt(1 - 0.81)), "b", 1) is not None


def test_a_requests_own_fresh_bundle_counts_and_comes_before_its_equals() -> None:
    memory = ExperienceMemory()
    for name in ("a", "b", "c"):
        memory.insert(bundle(name, step=3), unit(1, 2))
    own = memory.retrieve(unit(1, 2), "a", 3)
    assert own is not None
    assert (own.experience.request_id, own.own) == ("a", True)


def test_an_old_bundle_of_the_same_request_is_remembered_not_own() -> None:
    memory = ExperienceMemory()
    memory.insert(bundle("a", step=3), unit(1, 2))
    found = memory.retrieve(unit(1, 2), "a", 4)
    assert found is not None
    assert not found.own


def test_the_youngest_of_equals_is_found() -> None:
    memory = ExperienceMemory()
    for name in ("a", "b"):
        memory.insert(bundle(name), unit(1, 2))
    found = memory.retrieve(unit(1, 2), "c", 2)
    assert found is not None
    assert found.experience.request_id == "b"


def test_uses_say_where_a_bundle_helped() -> None:
    memory = ExperienceMemory()
    memory.insert(bundle("a", step=3), unit(1, 0))
    memory.retrieve(unit(1, 0), "a", 3)
    memory.retrieve(unit(1, 0), "b", 5)
    memory.retrieve(unit(0, 1), "c", 5)
    assert memory.entries[0].uses == [
        Use(step=3, request_id="a", similarity=1.0, own=True),
        Use(step=5, request_id="b", similarity=1.0, own=False),
    ]


def test_a_later_bundle_of_a_request_replaces_the_earlier_one() -> None:
    memory = ExperienceMemory()
    first = memory.insert(bundle("a", step=1, gap=0.9), unit(1, 0))
    memory.retrieve(unit(1, 0), "a", 1)
    second = memory.insert(bundle("a", step=2, gap=0.2), unit(0, 1))
    assert [(e.number, e.experience.step, e.uses) for e in memory.entries] == [(second, 2, [])]
    assert second > first
    assert memory.retrieve(unit(1, 0), "b", 2) is None
    assert memory.retrieve(unit(0, 1), "b", 2) is not None


def worth(config: MemoryConfig, experience: Experience) -> float:
    return config.gap_weight * experience.gap + config.age_weight * experience.step


@given(
    gaps=st.lists(st.integers(4, 20).map(lambda n: n / 20), min_size=1, max_size=25),
    capacity=st.integers(1, 8),
    age_weight=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_eviction_keeps_capacity_and_forgets_the_least_worth(
    gaps: list[float], capacity: int, age_weight: float
) -> None:
    config = MemoryConfig(capacity=capacity, age_weight=age_weight)
    memory = ExperienceMemory(config)
    kept: list[Experience] = []
    for i, (gap, vector) in enumerate(zip(gaps, random_units(len(gaps), 4), strict=True)):
        new = bundle(f"r{i}", step=i // 3, gap=gap)
        if len(kept) == capacity:
            older = [e for e in kept if e.step < new.step] or kept
            kept.remove(min(older, key=lambda e: (worth(config, e), int(e.request_id[1:]))))
        kept.append(new)
        number = memory.insert(new, vector)
        assert [e.experience for e in memory.entries] == kept
        assert memory.entries[-1].number == number
        found = memory.retrieve(vector, new.request_id, new.step)
        assert found is not None
        assert found.own


def test_age_and_gap_weigh_against_each_other() -> None:
    """At the defaults twenty steps weigh as much as a gap of 0.20."""
    for old_step, survivor in ((1, "old"), (0, "young")):
        memory = ExperienceMemory(MemoryConfig(capacity=2))
        memory.insert(bundle("old", step=old_step, gap=0.4), unit(1, 0))
        memory.insert(bundle("young", step=20, gap=0.205), unit(0, 1))
        memory.insert(bundle("new", step=21), unit(1, 1))
        assert [e.experience.request_id for e in memory.entries] == [survivor, "new"]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.array([3, 4], np.float32), "length 1, got 5"),
        (np.array([np.nan, 1], np.float32), "length 1, got nan"),
        (np.zeros(2, np.float32), "length 1, got 0"),
        (unit(1, 0, 0), r"float32\[2\], got float32\[3\]"),
        (np.ones((1, 2), np.float32), r"float32\[2\], got float32\[1, 2\]"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector: np.ndarray, message: str) -> None:
    memory = ExperienceMemory()
    memory.insert(bundle("a"), unit(1, 0))
    for use in (lambda: memory.insert(bundle("b"), vector), lambda: memory.retrieve(vector, "b", 1)):
        with pytest.raises(ValueError, match=message):
            use()
    assert len(memory) == 1


def test_a_bundle_without_a_request_is_refused() -> None:
    with pytest.raises(ValueError, match="request and step"):
        ExperienceMemory().insert(Experience(step=1), unit(1, 0))
    with pytest.raises(ValueError, match="step -1"):
        ExperienceMemory().insert(Experience(request_id="r"), unit(1, 0))


# --- snapshots -------------------------------------------------------------------------------------------------------


def contents(memory: ExperienceMemory) -> tuple[object, ...]:
    return memory.rows(), memory.vectors.tobytes(), memory.next_number


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_a_snapshot_restores_bit_equal(count: int) -> None:
    memory = filled(count, capacity=8)
    for query in random_units(5, 8, seed=2):
        memory.retrieve(query, "r3", 1)
    again = ExperienceMemory.restore(memory.snapshot(), memory.config)
    assert contents(again) == contents(memory)
    assert again.snapshot() == memory.snapshot()


def test_a_restored_memory_goes_on_like_the_one_that_was_saved() -> None:
    memory = filled(12, capacity=8)
    again = ExperienceMemory.restore(memory.snapshot(), memory.config)
    for which in (memory, again):
        for i, vector in enumerate(random_units(9, 8, seed=3)):
            which.insert(bundle(f"s{i}", step=3 + i // 4), vector)
            which.retrieve(vector, "x", 9)
    assert contents(again) == contents(memory)


def test_a_smaller_memory_keeps_what_is_worth_most() -> None:
    memory = filled(12)
    small = ExperienceMemory.restore(memory.snapshot(), MemoryConfig(capacity=5))
    best = sorted(memory.entries, key=lambda e: (worth(memory.config, e.experience), e.number))[-5:]
    assert small.entries == sorted(best, key=lambda e: e.number)
    assert small.next_number == 12


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=60)
def test_a_damaged_snapshot_is_an_error_or_harmless(place: int, flip: int) -> None:
    memory = filled(4)
    data = bytearray(memory.snapshot())
    data[place % len(data)] ^= flip
    try:
        again = ExperienceMemory.restore(bytes(data), memory.config)
    except SnapshotError:
        return
    assert [e.experience for e in again.rows()] == [e.experience for e in memory.rows()]
    assert again.vectors.tobytes() == memory.vectors.tobytes()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no snapshot at all"])
def test_what_is_no_snapshot_is_an_error(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="no snapshot of an experience memory"):
        ExperienceMemory.restore(data)


def test_another_table_is_no_snapshot() -> None:
    from genevolve_ray.evolution.store.documents import to_parquet
    from genevolve_ray.records.arrow import requests_to_table

    with pytest.raises(SnapshotError, match="requests/1.*memory/2"):
        ExperienceMemory.restore(to_parquet(requests_to_table([])))


def test_first_in_first_out_with_the_gap_inside_a_step() -> None:
    """Steps 1 and 2 have two bundles each; what comes later pushes the oldest step out, its smaller gap first."""
    memory = ExperienceMemory(MemoryConfig(capacity=4, eviction=Eviction.FIFO_GAP))
    vectors = iter(random_units(8, 6))
    for name, step, gap in (("a", 1, 0.9), ("b", 1, 0.2), ("c", 2, 0.3), ("d", 2, 0.3)):
        memory.insert(bundle(name, step, gap), next(vectors))
    left = []
    for name, step, gap in (("e", 3, 0.2), ("f", 3, 0.2), ("g", 4, 0.2), ("h", 4, 0.2)):
        before = {entry.experience.request_id for entry in memory.entries}
        memory.insert(bundle(name, step, gap), next(vectors))
        left += sorted(before - {entry.experience.request_id for entry in memory.entries})
    assert left == ["b", "a", "c", "d"]


def test_a_smaller_memory_keeps_what_its_own_rule_keeps() -> None:
    memory = filled(8)  # four bundles of step 0, four of step 1
    kept = ExperienceMemory.restore(memory.snapshot(), MemoryConfig(capacity=5, eviction=Eviction.FIFO_GAP))
    old = sorted(memory.entries[:4], key=lambda entry: entry.experience.gap)[-1]
    assert [entry.number for entry in kept.entries] == [old.number, 4, 5, 6, 7]


def test_a_snapshot_from_before_there_were_formats_is_read() -> None:
    """It had a list column for each of the five slots, and no column with a format."""
    memory = filled(3)
    table = pq.read_table(io.BytesIO(memory.snapshot()))
    metadata = {**table.schema.metadata, b"genevolve_ray.schema": b"memory/1"}
    table = table.drop_columns(["format", "guidance"])
    texts = pa.field("", pa.list_(pa.string()), nullable=False)
    for slot in ("failure_avoidance", "prompt_construction", "reference_selection", "knowledge_activation"):
        table = table.add_column(2, texts.with_name(slot), pa.array([[]] * 3, texts.type))
    searches = pa.array([list(e.experience.guidance["search_strategy"]) for e in memory.rows()], texts.type)
    table = table.add_column(2, texts.with_name("search_strategy"), searches)
    table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    again = ExperienceMemory.restore(buffer.getvalue(), memory.config)
    assert [e.experience for e in again.rows()] == [e.experience for e in memory.rows()]
    assert again.vectors.tobytes() == memory.vectors.tobytes()
    assert ExperienceMemory.restore(again.snapshot(), memory.config).snapshot() == again.snapshot()


def test_bundles_of_every_format_come_back_from_a_snapshot() -> None:
    memory = ExperienceMemory()
    guide = Experience(format="decision-guide", focus=("look",), failure_guards=("mind",), step=1, request_id="g")
    for made, vector in zip((guide, bundle("a")), random_units(2, 4), strict=True):
        memory.insert(made, vector)
    again = ExperienceMemory.restore(memory.snapshot())
    assert [entry.experience for entry in again.entries] == [guide, bundle("a")]
