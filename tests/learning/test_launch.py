"""The start of ranks outside Ray: torchrun's own, and what is refused."""

from __future__ import annotations

import pytest

from genevolve_ray.errors import UserFault
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.launch import run_on_ranks, torchrun_ranks

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_one_rank_needs_no_processes() -> None:
    assert run_on_ranks(1, "cpu", 0, lambda ranks: ranks) == Ranks()


def test_torchrun_names_the_rank() -> None:
    assert torchrun_ranks(TORCHRUN) == (1, 4)
    assert torchrun_ranks({"RANK": "1"}) is None
    with pytest.raises(UserFault, match="WORLD_SIZE=many"):
        torchrun_ranks(TORCHRUN | {"WORLD_SIZE": "many"})


def test_two_numbers_of_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserFault, match="ranks=2, but torchrun started 4"):
        run_on_ranks(2, "cpu", 0, lambda ranks: ranks)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserFault, match="ranks=2, but this machine has 1 GPUs"):
        run_on_ranks(2, "cuda", 0, lambda ranks: ranks)
