"""Check of a load of weights: the tensors that arrived are the published ones, and the engine holds their values.

Log-probs do not show a single stale tensor: in bf16 a policy that is many versions old passes the probe, and one stale
norm passes in float32. Checksums show it, and name the tensor. Both ends of the comparison are taken where they cost
little: of the tensors as they pass on their way into the engine, and of the engine's own tensors afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.engines.protocol import WeightUpdateError
from genevolve_ray.models.adapters import ADAPTER_FILE, PREFIX

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMED = 5
Rows = Mapping[str, Mapping[str, Any]]
"""What one process of an engine reports: `HeldRow` by the name of its own tensor."""


@dataclass(frozen=True)
class TensorPart:
    """Describe a tensor of the engine, or a part of one, that published tensors are loaded into.

    Attributes:
        key: its name.
        dtype: the type in which the engine holds it.
        word: bytes that are mixed together in its checksum.
        shape: its shape where it is known and not cut over several processes.
        many: whether several published tensors are loaded into it, such as those of all experts.
    """

    key: str
    dtype: torch.dtype
    word: int
    shape: tuple[int, ...] | None = None
    many: bool = False


@dataclass
class Loaded:
    """Hold what was loaded into a part: the published names, the checksum in the engine's dtype, the elements."""

    part: TensorPart
    names: list[str] = field(default_factory=list)
    checksum: int = 0
    elements: int = 0
    ordered: bool = False

    def row(self, held: int | None, elements: int) -> dict[str, Any]:
        """Return the comparison with what the engine holds, as plain values; `held` is None where it holds nothing."""
        return {
            "names": self.names[:_NAMED],
            "loaded": self.checksum,
            "loaded_elements": self.elements,
            "held": held,
            "held_elements": elements,
        }


class LoadWatch:
    """Take the checksums of the tensors of one load while they pass."""

    def __init__(self, place: Callable[[str], TensorPart | None], dtype: torch.dtype) -> None:
        """Watch a load.

        Args:
            place: returns the part of the engine that a name is loaded into, None where it cannot be traced.
            dtype: the engine's compute dtype.
        """
        self._place, self._dtype = place, dtype
        self.arrived: dict[str, int] = {}
        """Checksums of the tensors as they were published."""
        self._parts: set[str] = set()
        self.loaded: dict[str, Loaded] = {}
        """What was loaded, by the key of its part."""
        self.untraced: list[str] = []
        """Names that cannot be compared with a tensor of the engine."""
        self.missing: list[str] = []
        """Names of the model's files that were not among them."""

    def published(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors under their published names, and keep their checksums."""
        from genevolve_ray.learning.digests import tensor_checksum

        for name, tensor in tensors:
            self.arrived[name] = tensor_checksum(tensor)
            yield name, tensor

    def stored(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors under the names of a model's files, and keep the checksums of what the engine must hold."""
        for name, tensor in tensors:
            part = self._place(name)
            if part is not None:
                self._parts.add(part.key)
            if part is None or not self._comparable(part, tensor):
                self.untraced.append(name)
            else:
                self._note(part, name, tensor)
            yield name, tensor

    def require(self, names: Iterable[str]) -> None:
        """Note which tensors of the model's files were not loaded, by the names in these files."""
        self.missing = [
            name for name in names if (part := self._place(name)) is not None and part.key not in self._parts
        ]

    def _comparable(self, part: TensorPart, tensor: Tensor) -> bool:
        """Return whether the values that the engine holds follow from the loaded ones by one rounding."""
        if not (part.dtype.is_floating_point and part.dtype.itemsize > 1):
            return False  # quantized
        # Otherwise the engine may have rounded it to its compute dtype before.
        return part.dtype.itemsize <= self._dtype.itemsize or tensor.dtype == self._dtype

    def _note(self, part: TensorPart, name: str, tensor: Tensor) -> None:
        from genevolve_ray.learning.digests import added, checksum, word_of

        loaded = self.loaded.get(part.key)
        if loaded is None or not part.many:
            loaded = self.loaded[part.key] = Loaded(part)
        ordered = not part.many and tensor.ndim <= 1 and tuple(tensor.shape) == part.shape
        row = tensor.shape[-1] * tensor.element_size() if tensor.ndim else 0
        known = self.arrived.get(name) if tensor.dtype == part.dtype else None
        if known is not None and ordered == (tensor.ndim <= 1) and part.word == word_of(row, tensor.element_size()):
            value = known
        else:
            value = checksum(tensor.to(part.dtype), word=part.word, ordered=ordered)
        loaded.names.append(name)
        loaded.checksum, loaded.ordered = added((loaded.checksum, value)), ordered
        loaded.elements += tensor.numel()


def factor_checksums(folder: str | Path) -> dict[str, int]:
    """Return the checksums of the factors in an adapter's folder, by their names there."""
    from safetensors.torch import load_file

    from genevolve_ray.learning.digests import tensor_checksum

    return {name: tensor_checksum(tensor) for name, tensor in load_file(Path(folder) / ADAPTER_FILE).items()}


def check_load(reports: Sequence[Mapping[str, Any]], published: Mapping[str, int] | None, version: int) -> None:
    """Check a load by what each process of an engine reports: `arrived`, `missing`, and the `rows` of `check_held`.

    `published` has the learner's checksums, None where the version carries none.

    Raises:
        WeightUpdateError: naming the tensors that are missing, changed or stale.
    """
    first = reports[0]
    if first["missing"]:
        raise WeightUpdateError(f"version {version} is not complete: {_listed(first['missing'])} did not arrive")
    if published is not None:
        adapter = any(name.startswith(PREFIX) for name in first["arrived"])
        # A learner that publishes an adapter sends it merged where a transport has no files: of this it has no checksums.
        same_form = {name: value for name, value in published.items() if name.startswith(PREFIX) == adapter}
        check_arrived(same_form, first["arrived"], version)
    check_held([report["rows"] for report in reports], version)


def check_arrived(published: Mapping[str, int], arrived: Mapping[str, int], version: int) -> None:
    """Check that tensors arrived as the learner published them; `arrived` may have more, such as names of tied ones.

    Raises WeightUpdateError naming the tensors.
    """
    if missing := [name for name in published if name not in arrived]:
        raise WeightUpdateError(f"version {version} is not complete: {_listed(missing)} did not arrive")
    if changed := [name for name, value in published.items() if arrived[name] != value]:
        raise WeightUpdateError(
            f"version {version} did not arrive as the learner published it: {_listed(changed)} has other values"
        )


def check_held(ranks: Sequence[Rows], version: int) -> None:
    """Check that an engine of one or more processes holds the values that were loaded.

    Raises WeightUpdateError naming the engine's tensors and the published ones.
    """
    stale = [key for key in ranks[0] if _differs([rows[key] for rows in ranks])]
    if not stale:
        return
    sources = [name for key in stale for name in ranks[0][key]["names"]]
    others = "" if sources == stale else f" (of {_listed(sources)})"
    raise WeightUpdateError(
        f"after the update to version {version} the engine does not hold the loaded values in {_listed(stale)}{others}"
    )


def _differs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a tensor's shards, one or more copies of it in all, differ from what was loaded into it."""
    from genevolve_ray.learning.digests import added, wrapped

    if any(row["held"] is None for row in rows):
        return True
    copies, rest = divmod(sum(row["held_elements"] for row in rows), rows[0]["loaded_elements"] or 1)
    if rest or not copies:
        return False  # cut in a way that cannot be added up
    return added(row["held"] for row in rows) != wrapped(copies * rows[0]["loaded"])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
