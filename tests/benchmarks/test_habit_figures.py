"""The figures of the habits of `atlas-long`: the preferred wordings lose nothing, and others do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.habits import HABITS, OTHERS, PLAIN, PREFERRED, RANDOM, main, measure, summary, wordings_of
from genevolve_ray.atlas.habits import HabitsConfig, preferred_wordings
from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.requests import make_request
from genevolve_ray.atlas.scene import Truth
from genevolve_ray.atlas.world import build_world
from genevolve_ray.records.images import MemoryImages


async def test_only_a_generator_with_habits_tells_wordings_apart() -> None:
    rewards = await measure(6, 3)
    assert set(rewards) == {(kind, name) for kind in (PREFERRED, RANDOM, OTHERS) for name in (HABITS, PLAIN)}
    means = {key: np.mean(scores) for key, scores in rewards.items()}
    assert means[PREFERRED, HABITS] == means[PREFERRED, PLAIN] == means[RANDOM, PLAIN] == means[OTHERS, PLAIN] == 1
    assert means[OTHERS, HABITS] <= means[RANDOM, HABITS] < 1
    gap = summary(rewards)["preferred - random wordings, generator with habits"]
    assert gap["mean"] == pytest.approx(1 - means[RANDOM, HABITS]) and gap["low"] <= gap["mean"] <= gap["high"]


def test_other_wordings_are_never_the_preferred_ones() -> None:
    images, habits = MemoryImages(), HabitsConfig()
    world = build_world(3, Partition.TRAIN, images, styled=True)
    for index in range(20):
        truth = Truth.model_validate(make_request(world, index, images).meta["truth"])
        found = wordings_of(truth, habits, np.random.default_rng(index))
        preferred = preferred_wordings(habits, truth.scene)
        assert found[PREFERRED] == preferred and found[RANDOM].keys() == found[OTHERS].keys() == preferred.keys()
        assert all(found[OTHERS][structure] != said for structure, said in preferred.items())


def test_the_command_prints_and_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests", "1", "--world", "3", "--json", str(tmp_path / "habits.json")]) == 0
    rows = json.loads((tmp_path / "habits.json").read_text())
    assert rows["preferred wordings, generator with habits"]["mean"] == 1
    said = "".join(capsys.readouterr())
    assert all(name in said for name in rows)


@pytest.mark.parametrize("arguments", [["--requests", "0"], ["--world", "-1"]])
def test_numbers_without_a_meaning_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "at least" in capsys.readouterr().err
