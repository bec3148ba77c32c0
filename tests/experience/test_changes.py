"""Changes of the experience memory: a snapshot and what followed it are the memory itself, and damage is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from genevolve_ray.experience.changes import check_changes, encode_changes, join_changes, replay
from genevolve_ray.experience.config import MemoryConfig
from genevolve_ray.experience.memory import ExperienceMemory, MemoryPoint, SnapshotError, encode_memory
from genevolve_ray.records.experience import Experience

CONFIG = MemoryConfig(capacity=5, threshold=-1)
EMPTY = ExperienceMemory().snapshot()


def insert(memory: ExperienceMemory, number: int, step: int) -> None:
    vector = np.zeros(8, np.float32)
    vector[number % 8] = 1
    memory.insert(Experience(step=step, request_id=f"r{number}", gap=0.5, summary=f"{number} of {step}"), vector)


def live(memory: ExperienceMemory, step: int, rng: np.random.Generator) -> None:
    """Insert new and old requests, evicting where it is full, and use some bundles."""
    for number in rng.integers(12, size=int(rng.integers(0, 4))):
        insert(memory, int(number), step)
    for _ in range(int(rng.integers(0, 3))):
        memory.retrieve(np.eye(8, dtype=np.float32)[int(rng.integers(8))], "r0", step)


def told(memory: ExperienceMemory, snapshot: bytes, *changes: bytes) -> bool:
    return encode_memory(replay(snapshot, changes)) == memory.snapshot()


@pytest.mark.parametrize("seed", range(5))
def test_snapshot_and_changes_are_the_memory(seed: int) -> None:
    rng, memory, mark, changes = np.random.default_rng(seed), ExperienceMemory(CONFIG), MemoryPoint(), list[bytes]()
    for step in range(12):
        live(memory, step, rng)
        changes.append(encode_changes(memory, mark))
        mark = memory.mark
        assert told(memory, EMPTY, *changes)
    assert told(memory, EMPTY, join_changes(changes))
    assert told(memory, EMPTY, join_changes(changes[:5]), *changes[5:])


def test_a_step_writes_only_what_it_changed() -> None:
    memory = ExperienceMemory(CONFIG)
    for number in range(5):
        insert(memory, number, 1)
    mark = memory.mark
    assert memory.changed_since(mark) == []
    memory.retrieve(np.eye(8, dtype=np.float32)[3], "another", 2)
    insert(memory, 1, 2)
    assert memory.changed_since(mark) == [1, 3]
    assert memory.changed_since(memory.mark) == []


def test_nothing_has_changed_in_a_restored_memory() -> None:
    memory = ExperienceMemory(CONFIG)
    for number in range(3):
        insert(memory, number, 1)
    again = ExperienceMemory.restore(memory.snapshot(), CONFIG)
    assert again.changed_since(MemoryPoint()) == []
    before = again.snapshot()
    insert(again, 7, 2)
    assert told(again, before, encode_changes(again, MemoryPoint(next_number=memory.next_number)))


def test_bundles_that_a_smaller_memory_dropped_are_gone_after_its_changes() -> None:
    memory = ExperienceMemory(CONFIG)
    for number in range(5):
        insert(memory, number, 1)
    small = ExperienceMemory.restore(memory.snapshot(), MemoryConfig(capacity=2))
    assert told(small, memory.snapshot(), encode_changes(small, MemoryPoint(next_number=memory.next_number)))


def written(*numbers: int) -> tuple[bytes, list[bytes]]:
    """Return an empty snapshot and one file of changes for each insertion."""
    memory, mark, changes = ExperienceMemory(CONFIG), MemoryPoint(), list[bytes]()
    for number in numbers:
        insert(memory, number, 1)
        changes.append(encode_changes(memory, mark))
        mark = memory.mark
    return EMPTY, changes


def test_changes_that_do_not_follow_are_told() -> None:
    snapshot, changes = written(1, 2, 3)
    with pytest.raises(SnapshotError, match="next number is 1, not 0"):
        replay(snapshot, changes[1:])
    with pytest.raises(SnapshotError, match="next number is 2, not 1"):
        replay(snapshot, [changes[0], changes[2]])


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:40] + b"\0\xff" + d[42:], lambda d: EMPTY]
)
def test_damaged_changes_are_told(damage: Callable[[bytes], bytes]) -> None:
    _, [changes] = written(1)
    check_changes(changes)
    with pytest.raises(SnapshotError):
        check_changes(damage(changes))
    with pytest.raises(SnapshotError):
        replay(damage(changes)[:-1], [])
