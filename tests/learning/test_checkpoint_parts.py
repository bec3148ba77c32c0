"""Parts of a checkpoint: who writes what, and that the parts make the whole again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning_fakes import sequences

from genevolve_ray.learning.checkpoint_parts import OPTIMIZER_FILE, deal, load_optimizer, save_parts
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.step import Learner


def test_ranks_write_about_as_much_as_each_other() -> None:
    sizes = [100, 1, 1, 60, 40, 30, 70, 2]
    owners = deal(sizes, 3)
    loads = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(3)]
    assert sum(loads) == sum(sizes) and max(loads) - min(loads) <= 30
    assert owners == deal(sizes, 3), "every rank comes to the same result"


def test_more_ranks_than_tensors_leave_some_without() -> None:
    assert sorted(deal([5, 5], 4)) == [0, 1]


def test_a_single_rank_writes_no_parts(model_dir: Path, tmp_path: Path) -> None:
    learner = Learner(model_dir, LearnerConfig())
    assert not save_parts(learner.model, learner._optimizer, model_dir, tmp_path / "none", Ranks())
    assert not (tmp_path / "none").exists()


@pytest.fixture
def divided(model_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint whose optimizer is in two parts, as two ranks would have written it."""
    learner = Learner(model_dir, LearnerConfig(lr=1e-3), (0, 63))
    learner.train_step(sequences(), 0)
    learner.save(tmp_path)
    whole = torch.load(tmp_path / OPTIMIZER_FILE)
    slots = whole["optimizer"]["state"]
    for part in (1, 2):
        mine = {number: values for number, values in slots.items() if number % 2 == part - 1}
        torch.save(mine, tmp_path / f"optimizer-0000{part}-of-00002.pt")
    torch.save({**whole, "optimizer": {**whole["optimizer"], "state": {}}}, tmp_path / OPTIMIZER_FILE)
    (tmp_path / "hash").write_text(learner.state_hash())
    return tmp_path


def test_a_single_process_reads_the_parts_of_several(divided: Path, model_dir: Path) -> None:
    learner = Learner(model_dir, LearnerConfig(lr=1e-3), (0, 63))
    learner.load(divided)
    assert learner.state_hash() == (divided / "hash").read_text()


def test_a_missing_part_is_an_error(divided: Path) -> None:
    (divided / "optimizer-00002-of-00002.pt").unlink()
    with pytest.raises(FileNotFoundError, match="has 1 of 2 parts of the optimizer's state"):
        load_optimizer(divided)
