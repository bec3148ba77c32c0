"""The hash of a learner's state: what it sees, and that parts of tensors add up to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from genevolve_ray.learning.digests import added, checksum
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.hashing import FORM, learner_hash


class Tied(nn.Module):
    """Two names of one matrix, a vector and an odd matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 5))
        self.odd = nn.Linear(3, 5, bias=False)


def stepped() -> tuple[Tied, torch.optim.AdamW]:
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    optimizer.step()
    return model, optimizer


def hashed(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    return learner_hash(model, optimizer, Ranks())


def moments(model: Tied, optimizer: torch.optim.AdamW) -> torch.Tensor:
    slot: torch.Tensor = optimizer.state[model.odd.weight]["exp_avg"]
    return slot


@pytest.mark.parametrize(
    "change",
    [
        lambda model, _: model.scale.data[3].add_(1e-7),
        lambda model, _: model.embed.weight.data.copy_(model.embed.weight.data.flip(0)),
        lambda model, _: model.scale.data.copy_(model.scale.data.flip(0)),
        lambda model, _: setattr(model.odd, "weight", nn.Parameter(model.odd.weight.data.view(3, 5))),
        lambda model, optimizer: moments(model, optimizer)[1, 2].mul_(1.001),
        lambda model, optimizer: optimizer.state[model.scale]["step"].add_(1),
        lambda model, optimizer: optimizer.state.clear(),
    ],
    ids=["value", "rows exchanged", "order of a vector", "shape", "moment", "count of steps", "no moments"],
)
def test_it_sees_every_change(change: Callable[[Tied, torch.optim.AdamW], object]) -> None:
    model, optimizer = stepped()
    before = hashed(model, optimizer)
    assert before == hashed(*stepped()) and before.startswith(FORM)
    change(model, optimizer)
    assert hashed(model, optimizer) != before


def test_a_part_of_the_state_is_read_alone() -> None:
    model, optimizer = stepped()

    def part() -> str:
        return learner_hash(model, optimizer, Ranks(), lambda state: {"scale": state["scale"]})

    before = part()
    model.odd.weight.data.zero_()
    assert part() == before
    model.scale.data.zero_()
    assert part() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_parts_of_a_tensor_add_up_to_the_whole(dtype: torch.dtype, ranks: int) -> None:
    whole = torch.randn(7, 4).to(dtype)
    for tensor, word in ((whole, 8), (whole[:, 0].contiguous(), whole.element_size())):
        start, sums = 0, []
        for part in tensor.chunk(ranks):
            sums.append(checksum(part, word=word, ordered=True, start=start * part.element_size() // word))
            start += part.numel()
        assert added(sums) == checksum(tensor, word=word, ordered=True)
