"""Adapters for the engines: read, checked against a base, merged into its tensors one by one.

A version of the policy is published as a folder: whole weights, or an adapter alone in peft's layout
(`adapter_config.json`, `adapter_model.safetensors`). For an adapter the reader has the base in a separate model folder.
It computes W + scaling * B A while it reads, so no more than one tensor is held at a time. The function
`merge_and_unload` of peft needs the whole base in memory as a model. Learner and engines share this one formula: the
merge of an engine equals, bit for bit, the merge of the learner.

An adapter that cannot be merged exactly is rejected by name, before any weight of a running model is changed.

Shape legend: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from genevolve_ray.errors import GenevolveError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Prefix of tensor names in peft's files."""
BASE_DTYPE = "base_dtype"
"""Key of an adapter file's metadata: the dtype in which its learner held the base. It determines the rounding of W."""

_WEIGHTS_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_MAX_CONFIG_BYTES = 1 << 20
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_CASTS = {"float64": "double", "float32": "float", "bfloat16": "bfloat16", "float16": "half"}
_FLOATS = ("F64", "F32", "BF16", "F16")
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base unchanged. With others (pissa, corda, ...) a changed one is
trained."""
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)
"""Settings of peft's adapters under which the adapted layer is more than W + scaling * B A."""


class AdapterMisfit(GenevolveError, ValueError):
    """Signal that an adapter cannot be merged into a base exactly.

    The message names both, and the invalid part.
    """


@dataclass(frozen=True)
class Factors:
    """Hold the update of one linear layer: scaling * up_O_R @ down_R_I."""

    down_R_I: Tensor
    up_O_R: Tensor
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """Hold an adapter read from a folder; factors by the name of the base's tensor that they change."""

    folder: Path
    factors: Mapping[str, Factors]
    base_dtype: str | None = None


def merge(weight_O_I: Tensor, down_R_I: Tensor, up_O_R: Tensor, scaling: float) -> Tensor:
    """Return W + scaling * B A in W's dtype, computed in the adapter's dtype, at least float32."""
    up_O_R, down_R_I = (t if t.dtype.itemsize >= 4 else t.float() for t in (up_O_R, down_R_I))
    merged: Tensor = (weight_O_I.to(up_O_R.dtype) + scaling * (up_O_R @ down_R_I)).to(weight_O_I.dtype)
    return merged


# --- folders ---------------------------------------------------------------------------------------------------------


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder holds an adapter, by the name of its files."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE))


def weight_files(folder: str | Path) -> list[Path]:
    """Return the safetensors of whole weights: `model.safetensors`, else the index's files, else all but an adapter.

    Raises:
        FileNotFoundError: when there are none, or when a file of the index does not exist.
        ValueError: for an index that cannot be read or names a file elsewhere.
    """
    root = Path(folder)
    if (root / _WEIGHTS_FILE).is_file():
        return [root / _WEIGHTS_FILE]
    index = root / _INDEX_FILE
    if index.is_file():
        names = sorted(set(_object(index).get("weight_map", {}).values()))
        if strays := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index} names a file outside its folder: {strays[0]!r}")
        files = [root / name for name in names]
    else:
        files = sorted(file for file in root.glob("*.safetensors") if file.name != ADAPTER_FILE)
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
    if not files:
        raise FileNotFoundError(f"no *.safetensors to load in {root}")
    return files


def parameter_count(files: Sequence[Path]) -> int:
    """Return the number of values in safetensors files, from their headers. Raises SafetensorError for a broken one."""
    count = 0
    for file in files:
        with safe_open(file, framework="np") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def base_files(folder: str | Path) -> list[Path]:
    """Return the files that define the base on another machine: the weights, and the index where there is one."""
    files = weight_files(folder)
    index = Path(folder) / _INDEX_FILE
    return [*files, index] if index.is_file() and files[0].name != _WEIGHTS_FILE else files


def weight_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the whole weights of a folder, one tensor at a time. Raises like `weight_files`."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not iterable
                yield name, tensors.get_tensor(name)


def tensor_names(folder: str | Path) -> list[str]:
    """Return the names of the whole weights of a folder, from the headers of its files. Raises like `weight_files`."""
    names: list[str] = []
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names += tensors.keys()
    return names


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter.

    Raises:
        FileNotFoundError: when one of its files is missing.
        AdapterMisfit: naming the part that cannot be read, or is not W + scaling * B A on linear layers.
    """
    root = Path(folder)
    if missing := [name for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE) if not (root / name).is_file()]:
        raise FileNotFoundError(f"no {' and no '.join(missing)} in {root}")
    config = _read_config(root)
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(root / ADAPTER_FILE, framework="pt") as tensors:
            base_dtype = (tensors.metadata() or {}).get(BASE_DTYPE)
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not iterable
                found = _FACTOR.fullmatch(name)
                if found is None:
                    raise AdapterMisfit(f"adapter {root}: {name} is not a factor of a linear layer")
                halves.setdefault(found[1], {})[found[2]] = tensors.get_tensor(name)
    except SafetensorError as error:
        raise AdapterMisfit(f"adapter {root}: {ADAPTER_FILE} cannot be read: {error}") from error
    if base_dtype is not None and base_dtype not in _CASTS:
        raise AdapterMisfit(f"adapter {root}: unknown {BASE_DTYPE} {base_dtype!r}")
    factors = {f"{module}.weight": _factors(root, config, module, pair) for module, pair in halves.items()}
    return Adapter(root, factors, base_dtype)


def _factors(root: Path, config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> Factors:
    """Return a layer's factors with peft's scaling.

    Raises AdapterMisfit when they do not belong together.
    """
    where = f"adapter {root}: {module}"
    if pair.keys() != {"A", "B"}:
        raise AdapterMisfit(f"{where} has lora_{min(pair)} alone")
    down_R_I, up_O_R = pair["A"], pair["B"]
    rank = _by_pattern(root, config, "rank_pattern", module, config["r"])
    alpha = _by_pattern(root, config, "alpha_pattern", module, config["lora_alpha"])
    shapes = tuple(down_R_I.shape), tuple(up_O_R.shape)
    if not (down_R_I.ndim == up_O_R.ndim == 2 and down_R_I.shape[0] == up_O_R.shape[1] == rank):
        raise AdapterMisfit(f"{where} has factors of shapes {shapes[0]} and {shapes[1]}, but its rank is {rank}")
    if not (down_R_I.is_floating_point() and down_R_I.dtype == up_O_R.dtype):
        raise AdapterMisfit(f"{where} has factors of dtypes {down_R_I.dtype} and {up_O_R.dtype}")
    return Factors(down_R_I, up_O_R, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(root: Path, config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """Return a layer's value as peft looks it up: that of the first pattern that matches the end of its name."""
    value = default
    for pattern, special in (config.get(key) or {}).items():
        try:
            matched = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise AdapterMisfit(f"adapter {root}: {key} has a bad pattern {pattern!r}: {error}") from error
        if matched:
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise AdapterMisfit(f"adapter {root}: rank and alpha are numbers above 0, {module} has {value!r}")
    return value


def _read_config(root: Path) -> dict[str, Any]:
    """Return an adapter's description. Raises AdapterMisfit for one with more than low-rank factors."""
    config = _object(root / ADAPTER_CONFIG_FILE)
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterMisfit(f"adapter {root}: peft_type is {kind!r}, only LORA can be merged here")
    if variants := [name for name in _VARIANTS if config.get(name)]:
        said = ", ".join(f"{name}={json.dumps(config[name])}" for name in variants)
        raise AdapterMisfit(f"adapter {root}: {said} cannot be merged here")
    if (bias := config.get("bias", "none")) != "none":
        raise AdapterMisfit(f"adapter {root}: bias={bias!r} cannot be merged here")
    if (start := config.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        raise AdapterMisfit(f"adapter {root}: init_lora_weights={start!r} requires a base with other weights")
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise AdapterMisfit(f"adapter {root}: {ADAPTER_CONFIG_FILE} has no {key}")
    return config


def _object(file: Path) -> dict[str, Any]:
    try:
        if file.name == ADAPTER_CONFIG_FILE and file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"more than {_MAX_CONFIG_BYTES} bytes")
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterMisfit(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise AdapterMisfit(f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


# --- checks ----------------------------------------------------------------------------------------------------------


def check_published(folder: str | Path, base: str | Path) -> None:
    """Check that a published folder can be loaded: existing whole weights, or an adapter that fits the base.

    Only the headers of the base are read.

    Raises:
        FileNotFoundError: when there is nothing to load, or a part is missing.
        AdapterMisfit: when the adapter cannot be merged into the base; the message names the first invalid part.
    """
    if not is_adapter(folder):
        weight_files(folder)
        return
    if whole := sorted(p.name for p in Path(folder).glob("*.safetensors") if p.name != ADAPTER_FILE):
        raise AdapterMisfit(f"{folder} has an adapter and full weights ({whole[0]}): keep only one of them")
    check_fit(
        {name: (f.up_O_R.shape[0], f.down_R_I.shape[1]) for name, f in read_adapter(folder).factors.items()}, base
    )


def check_fit(targets: Mapping[str, tuple[int, int]], base: str | Path) -> None:
    """Check that each target, a tensor's name and its shape [O, I], is a matrix of floats in the base's files.

    Raises:
        FileNotFoundError: when the base has no weights.
        AdapterMisfit: naming the first target that does not exist or has another shape.
    """
    left = dict(targets)
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            for name in left.keys() & set(tensors.keys()):
                header, wanted = tensors.get_slice(name), left.pop(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if shape != tuple(wanted):
                    raise AdapterMisfit(
                        f"the adapter changes {name} of shape {tuple(wanted)}, in the base {base} it has {shape}"
                    )
                if dtype not in _FLOATS:
                    raise AdapterMisfit(f"the adapter changes {name}, which in the base {base} is quantized ({dtype})")
    if left:
        raise AdapterMisfit(_strangers(left, len(targets), base))


def _strangers(left: Iterable[str], count: int, base: str | Path) -> str:
    names = sorted(left)
    return f"the adapter changes {names[0]}, which the base {base} does not have ({len(names)} of {count} such tensors)"


# --- merging ---------------------------------------------------------------------------------------------------------


def merged_tensors(
    base: Iterable[tuple[str, Tensor]], adapter: Adapter, device: torch.device | str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a base with an adapter merged in, each in the dtype in which the learner holds the base.

    Args:
        base: names and tensors, as they are read; each is released when the next is requested.
        adapter: the result of `read_adapter`.
        device: where to merge; by default where the base's tensor is.

    Raises:
        AdapterMisfit: at the end, when a factor matched no tensor.
    """
    left = dict(adapter.factors)
    for name, tensor in base:
        if adapter.base_dtype is not None and tensor.is_floating_point():
            tensor = getattr(tensor, _CASTS[adapter.base_dtype])()
        if (factors := left.pop(name, None)) is not None:
            place = tensor.device if device is None else device
            down_R_I, up_O_R = factors.down_R_I.to(place), factors.up_O_R.to(place)
            tensor = merge(tensor.to(place), down_R_I, up_O_R, factors.scaling)
        yield name, tensor
    if left:
        raise AdapterMisfit(f"adapter {adapter.folder}: {_strangers(left, len(adapter.factors), 'that was read')}")


def published_tensors(
    folder: str | Path, base: str | Path, device: torch.device | str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a published version: the folder's, or the base's with the folder's adapter merged in.

    Raises like `weight_files`, `read_adapter` and `merged_tensors`.
    """
    if not is_adapter(folder):
        return weight_tensors(folder)
    return merged_tensors(weight_tensors(base), read_adapter(folder), device)


def copy_tensors(own: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> tuple[list[str], list[str]]:
    """Copy tensors, one at a time, into a model's state of the same names; return missing and unexpected names.

    Raises:
        ValueError: naming the first tensor of another shape.
    """
    left, unexpected = set(own), []
    for name, tensor in tensors:
        if name not in own:
            unexpected.append(name)
            continue
        if own[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, in the model {tuple(own[name].shape)}")
        own[name].copy_(tensor)
        left.discard(name)
    return sorted(left), sorted(unexpected)
