"""Handles of GPU memory cross as plain values and come out as they went in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from genevolve_ray.engines.transports.ipc import plain_handles, rebuilt_handles

# The layout of torch's `rebuild_cuda_tensor`; the bytes are the driver's.
HANDLE = (
    torch.Tensor,
    torch.Size([4, 3]),
    (3, 1),
    0,
    torch.TypedStorage,
    torch.bfloat16,
    0,
    b"\x00\xffhandle",
    24,
    512,
    False,
    b"counter",
    1,
    b"event",
    True,
)


@pytest.mark.parametrize("handles", [{"GPU-1": HANDLE}, [{"GPU-1": HANDLE}, {"GPU-1": HANDLE, "GPU-2": HANDLE}]])
def test_handles_survive_the_way_into_the_engines_process(handles: Any) -> None:
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(plain_handles(handles)))
    assert rebuilt_handles(crossed) == handles
    for one in [handles] if isinstance(handles, dict) else handles:
        hash(one["GPU-1"])  # vLLM keeps an opened handle by its value


def test_nothing_but_a_tensors_own_classes_comes_out() -> None:
    with pytest.raises(ValueError, match="names the class"):
        plain_handles({"GPU-1": (pytest.MonkeyPatch,)})
    for named in ({"class": "Popen"}, {"dtype": "load"}, {"module": "os"}):
        with pytest.raises(ValueError, match="a handle of GPU memory names"):
            rebuilt_handles({"GPU-1": [named]})
