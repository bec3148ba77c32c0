"""The policy's weights for publication, one tensor at a time: the content of the weights' folder, without a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from genevolve_ray.learning.digests import checksum, tensor_checksum
from genevolve_ray.learning.distributed import full
from genevolve_ray.learning.lora import merge_sources, merged_state, published_factors


@dataclass(frozen=True)
class TensorForm:
    """Describe a tensor before it is gathered: its name, dtype and whole shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class OutgoingWeights:
    """Stream the weights that engines load, each tied tensor once, an adapter merged in.

    It has the two channels of vLLM's `WeightSource`. Over several ranks a pass is a collective, and every rank must
    make it. Each rank receives whole tensors, one after another, so that at most one of them is whole at a time.
    """

    def __init__(self, model: nn.Module, scalings: Mapping[str, float], dtype: torch.dtype | None = None) -> None:
        """Keep the model, which every pass reads again.

        Args:
            model: the policy.
            scalings: the result of `adapter_scalings`.
            dtype: type in which floating-point tensors are sent; None leaves them as the model holds them.
        """
        self._model, self._scalings, self._dtype = model, scalings, dtype

    def metadata(self) -> list[TensorForm]:
        """Return the forms of all tensors in the order of a pass, without gathering any."""
        state = self._model.state_dict()
        return [
            TensorForm(name, self._sent_dtype(state[base]), tuple(state[base].shape))
            for name, (base, *_) in self._sources(state)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor, on the device where the policy computes."""
        state = self._model.state_dict()
        for _, names in self._sources(state):
            yield from self._whole(state, names).items()

    def checksums(self, *, factors: bool = False) -> dict[str, int]:
        """Return the checksum of each tensor (`digests.tensor_checksum`), the same on every rank.

        Only small tensors and those with an adapter are gathered; of the others every rank adds up its own shard.
        `factors` returns those of the adapter alone, under the names that `publish_adapter` writes.
        """
        state, sums, shards = self._model.state_dict(), {}, {}
        if factors:
            return {name: tensor_checksum(full(factor)) for name, factor in published_factors(state).items()}
        for name, names in self._sources(state):
            tensor = state[names[0]]
            if len(names) == 1 and isinstance(tensor, DTensor) and tensor.ndim > 1:
                shards[name] = checksum(tensor.to_local().to(self._sent_dtype(tensor)))
            else:
                sums[name] = tensor_checksum(self._whole(state, names)[name])
        if shards:
            added = torch.tensor(list(shards.values()))
            dist.all_reduce(added)
            sums |= dict(zip(shards, added.tolist(), strict=True))
        return sums

    def _whole(self, state: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
        if len(names) == 1:
            # Rounded before it is gathered: half the bytes cross.
            return merged_state({names[0]: full(self._sent(state[names[0]]))}, self._scalings)
        merged = merged_state({name: full(state[name]) for name in names}, self._scalings)
        return {name: self._sent(tensor) for name, tensor in merged.items()}

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._sent_dtype(tensor))

    def _sent_dtype(self, tensor: Tensor) -> torch.dtype:
        return tensor.dtype if self._dtype is None or not tensor.is_floating_point() else self._dtype

    def _sources(self, state: Mapping[str, Tensor]) -> list[tuple[str, tuple[str, ...]]]:
        """Return each tensor's name and its source names; a tied tensor keeps its first name."""
        owners = {name: id(p) for name, p in self._model.named_parameters(remove_duplicate=False)}
        firsts: dict[int, tuple[str, tuple[str, ...]]] = {}
        for name, sources in merge_sources(state).items():
            firsts.setdefault(owners.get(sources[0], id(state[sources[0]])), (name, sources))
        return list(firsts.values())
