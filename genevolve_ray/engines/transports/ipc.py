"""vLLM's CUDA IPC transfer: its settings, and handles of GPU memory as plain values that need no pickle.

A handle is the result of `torch.multiprocessing.reductions.reduce_tensor` for a tensor on a GPU: two classes, a dtype,
numbers and the driver's bytes. vLLM itself would pickle them, and require VLLM_ALLOW_INSECURE_SERIALIZATION.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genevolve_ray.engines.transports.protocol import Meeting, WeightSource

_CLASSES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "Parameter": torch.nn.Parameter,
    "TypedStorage": torch.TypedStorage,
    "UntypedStorage": torch.UntypedStorage,
}


def settings_of(meeting: Meeting, source: WeightSource) -> Any:
    """Return the settings of the learner's end; a tensor that is larger than a piece must fit into one."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    largest = max(form.dtype.itemsize * torch.Size(form.shape).numel() for form in source.metadata())
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=max(largest, meeting.piece_bytes), rank=0)


def plain_handles(handles: Any) -> Any:
    """Return handles (a mapping from a GPU's id to one, or a list of such) as lists, mappings, numbers and bytes.

    Raises:
        ValueError: for a class that does not occur in a handle of a plain tensor.
    """
    if isinstance(handles, Mapping):
        return {gpu: [_plain(value) for value in handle] for gpu, handle in handles.items()}
    return [plain_handles(handle) for handle in handles]


def rebuilt_handles(plain: Any) -> Any:
    """Return the input of `plain_handles` from its result. Raises ValueError or TypeError for anything else."""
    if isinstance(plain, Mapping):
        return {gpu: tuple(_rebuilt(value) for value in handle) for gpu, handle in plain.items()}
    return [rebuilt_handles(handle) for handle in plain]


def _plain(value: Any) -> Any:
    if isinstance(value, type):
        name = value.__name__
        if _CLASSES.get(name) is not value:
            raise ValueError(f"a handle of GPU memory names the class {value.__module__}.{value.__qualname__}")
        return {"class": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return list(value) if isinstance(value, tuple) else value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, Mapping):
        [(kind, name)] = value.items()
        found = _CLASSES.get(name) if kind == "class" else getattr(torch, name, None)
        if found is None or (kind != "class" and not isinstance(found, torch.dtype)):
            raise ValueError(f"a handle of GPU memory names {kind} {name!r}")
        return found
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
