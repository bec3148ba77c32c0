"""The policy's weights on their way out, one tensor at a time: what the weights' folder holds, without a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genevolve_ray.learning.distributed import full
from genevolve_ray.learning.lora import merge_sources, merged_state


@dataclass(frozen=True)
class TensorForm:
    """What is known of a tensor before it is gathered: its name, dtype and whole shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class OutgoingWeights:
    """The weights that engines load, each tied tensor once, an adapter merged in.

    It has the two channels of vLLM's `WeightSource`. Over several ranks a pass is a collective: every rank makes it,
    and each is given whole tensors, one after another, so that no more than one of them is whole at a time.
    """

    def __init__(self, model: nn.Module, scalings: Mapping[str, float]) -> None:
        """Keep the model, whose weights are read anew at every pass; `scalings` as of `adapter_scalings`."""
        self._model, self._scalings = model, scalings

    def metadata(self) -> list[TensorForm]:
        """Return the forms of all tensors in the order of a pass, without gathering any."""
        state = self._model.state_dict()
        return [
            TensorForm(name, state[base].dtype, tuple(state[base].shape)) for name, (base, *_) in self._sources(state)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor, on the device where the policy computes."""
        state = self._model.state_dict()
        for _, names in self._sources(state):
            yield from merged_state({name: full(state[name]) for name in names}, self._scalings).items()

    def _sources(self, state: Mapping[str, Tensor]) -> list[tuple[str, tuple[str, ...]]]:
        """Return each tensor's name and what it is made of; of a tied one the first name stays."""
        owners = {name: id(p) for name, p in self._model.named_parameters(remove_duplicate=False)}
        firsts: dict[int, tuple[str, tuple[str, ...]]] = {}
        for name, sources in merge_sources(state).items():
            firsts.setdefault(owners.get(sources[0], id(state[sources[0]])), (name, sources))
        return list(firsts.values())
