"""The tensors that vLLM holds of a model: which published ones each is made of, and the checksums of its values.

vLLM stacks projections (q, k and v in one tensor), renames modules and cuts tensors over processes. On a CPU it packs the
weights of linear layers into the storage of a kernel, which cannot be read; then the values are those at the packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genevolve_ray.engines.load_check import Loaded, TensorPart
from genevolve_ray.learning.digests import added, checksum, word_of

_PACKED = "_genevolve_packed"
_EXPERTS = {"w13_weight": ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3"), "w2_weight": ("down_proj", "w2")}


@dataclass(frozen=True)
class _Place:
    """Locate a part: the module, the name of its parameter, and the index among the stacked ones (None: all of it)."""

    module: nn.Module
    attribute: str
    index: int | None


@dataclass(frozen=True)
class _Form:
    """Describe a parameter: its dtype, the bytes that are mixed together, and its shape, None where it is packed."""

    dtype: torch.dtype
    word: int
    shape: tuple[int, ...] | None


class HeldTensors:
    """Trace published names to the tensors of a vLLM model, and compare their values. Build it while no load runs."""

    def __init__(self, model: nn.Module) -> None:
        """Read the structure of the model."""
        self._model = model
        self._owners: dict[str, tuple[nn.Module, str, str]] = {}
        """Module, attribute and first name of each parameter, by every name that it has."""
        self._forms: dict[str, _Form] = {}
        """The form of each parameter. While a load runs, vLLM has others in their place."""
        firsts: dict[int, str] = {}
        for prefix, module in model.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                name = f"{prefix}.{attribute}" if prefix else attribute
                self._owners[name] = (module, attribute, firsts.setdefault(id(parameter), name))
                shape = tuple(parameter.shape) if parameter.numel() else None
                self._forms[name] = _Form(parameter.dtype, _word(module, parameter), shape)
        self._places: dict[str, _Place] = {}
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        self._rename = None if mapper is None else mapper.get_rename_mapper().map_name
        self._experts = {
            (prefix, suffix): name
            for name in self._owners
            for suffix in _EXPERTS
            for prefix, found, _ in [name.partition(".experts.")]
            if found and name.endswith(suffix)
        }
        self._copies = {
            name: first
            for name, (module, attribute, first) in self._owners.items()
            if attribute == "weight" and hasattr(module, "cpu_linear")
        }
        """The first names of the weights that a kernel has packed, by the names under which it did."""
        for name in self._copies:
            _watch_packing(self._owners[name][0])

    def place(self, name: str) -> TensorPart | None:
        """Return the part that a published tensor is loaded into, None where the name cannot be traced."""
        renamed = name if self._rename is None else self._rename(name)
        if renamed is None:
            return None
        if renamed in self._owners:
            return self._part(renamed)
        head, _, attribute = renamed.rpartition(".")
        parent, _, leaf = head.rpartition(".")
        for packed, members in getattr(self._model, "packed_modules_mapping", {}).items():
            stacked = f"{parent}.{packed}.{attribute}"
            if leaf in members and stacked in self._owners:
                return self._part(stacked, members.index(leaf), leaf)
        return self._part_of_experts(renamed)

    def rows(self, loaded: dict[str, Loaded]) -> dict[str, dict[str, Any]]:
        """Return the comparison of what was loaded with what the model holds now, by the engine's names."""
        rows: dict[str, dict[str, Any]] = {}
        copies: dict[str, list[str]] = {}
        for name, first in self._copies.items():
            copies.setdefault(first, []).append(name)
        for key, found in loaded.items():
            place = self._places[key]
            tensor = getattr(place.module, place.attribute)
            if tensor.numel():
                values = _part_of(place.module, tensor, place.index)
                rows[key] = found.row(checksum(values, word=found.part.word, ordered=found.ordered), values.numel())
            first, bracket, member = key.partition("[")
            for name in copies.get(first, ()):
                sums = self._owners[name][0].__dict__.get(_PACKED)
                sums = sums if sums is None or place.index is None else [sums[place.index]]
                held = None if sums is None else added(value for value, _ in sums)
                label = key if name == first and not tensor.numel() else f"{name}{bracket}{member} (packed)"
                rows[label] = found.row(held, sum(count for _, count in sums or ()))
        return rows

    def _part(self, name: str, index: int | None = None, member: str = "") -> TensorPart:
        module, attribute, first = self._owners[name]
        form = self._forms[name]
        many = index is not None and index >= len(_sizes(module))
        if many or index is None:
            key, index = first, None
        else:
            key = f"{first}[{member}]"
        self._places.setdefault(key, _Place(module, attribute, index))
        shape = form.shape
        if shape is not None and index is not None:
            shape = (_sizes(module)[index], *shape[1:])
        return TensorPart(key, form.dtype, form.word, shape, many)

    def _part_of_experts(self, name: str) -> TensorPart | None:
        """Return the tensor of all experts of a layer that a tensor of one expert, or of all, is loaded into."""
        prefix, _, rest = name.partition(".experts.")
        for suffix, members in _EXPERTS.items():
            own = self._experts.get((prefix, suffix))
            if own is not None and set(rest.split(".")) & set(members):
                module, attribute, first = self._owners[own]
                dtype = self._forms[own].dtype
                self._places.setdefault(first, _Place(module, attribute, None))
                # On a CPU a kernel rearranges them, element by element.
                return TensorPart(first, dtype, dtype.itemsize, many=True)
        return None


def _sizes(module: nn.Module) -> list[int]:
    """Return the rows of each stacked part of a linear layer that this process holds; [] for other modules."""
    sizes: list[int] = getattr(module, "output_partition_sizes", [])
    return sizes


def _word(module: nn.Module, tensor: Tensor) -> int:
    """Return the bytes that are mixed together in a tensor, which is empty where a kernel has packed it."""
    size = tensor.element_size()
    if tensor.device.type != "cpu":
        return size  # a kernel may have arranged it otherwise
    if tensor.numel():
        return word_of(tensor.shape[-1] * size if tensor.ndim else size, size)
    columns: int = getattr(module, "input_size_per_partition", getattr(module, "input_size", 0))
    return word_of(columns * size, size)


def _part_of(module: nn.Module, tensor: Tensor, index: int | None) -> Tensor:
    """Return a stacked part of a tensor, and of a vocabulary's the rows that are no padding."""
    if index is not None:
        sizes = _sizes(module)
        return tensor.narrow(0, sum(sizes[:index]), sizes[index])
    indices = getattr(module, "shard_indices", None)
    return tensor if indices is None else tensor.narrow(0, 0, indices.num_org_elements)


def _parts_of(module: nn.Module, tensor: Tensor) -> Iterator[Tensor]:
    indices = range(len(_sizes(module))) if len(_sizes(module)) > 1 else [None]
    for index in indices:
        yield _part_of(module, tensor, index)


def _watch_packing(module: nn.Module) -> None:
    """Keep the checksums of a layer's weight whenever a kernel packs it."""
    method: Any = getattr(module, "quant_method", None)
    if method is None or _PACKED in method.__dict__:
        return
    original = method.process_weights_after_loading

    def packing(layer: nn.Module) -> None:
        weight: Any = layer.weight
        if weight.numel() and weight.device.type != "meta":
            word = _word(layer, weight)
            sums = [(checksum(part, word=word), part.numel()) for part in _parts_of(layer, weight)]
            layer.__dict__[_PACKED] = sums
        original(layer)

    method.__dict__[_PACKED] = True
    method.process_weights_after_loading = packing
