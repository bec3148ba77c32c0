"""Weights over gloo between two processes: pieces that overlap with packing and loading, over one tensor at a time.

Each end has a process and one thread, as learner and engine have. The receiver copies every tensor into memory of its own,
as a load does, and compares a checksum of all of them with the sender's.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Options, Row, Spread, paired_ratio, say

if TYPE_CHECKING:
    from torch import Tensor

    from genevolve_ray.learning.outgoing import OutgoingWeights, TensorForm

SIZES = (1, 16, 256)
"""Sizes of a piece in MiB."""
_LIMIT = timedelta(seconds=120)


def run(options: Options) -> list[Row]:
    """Measure each size of a piece and, in the same rounds, one tensor at a time."""
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        policy = options.policy
        if not options.quick:
            from benchmarks.transport import larger_policy

            policy = Path(folder)
            larger_policy(policy)
        return _measure(policy, options.repeats)


def _measure(policy: Path, repeats: int) -> list[Row]:
    import torch.multiprocessing as multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    other = context.Process(target=_receiver, args=(str(policy), port, repeats, answers))
    other.start()
    seconds: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    group, source = _group(0, port), _source(policy)
    forms = source.metadata()
    for round_ in range(repeats + 1):
        for size, taken in seconds.items():
            say(f"round {round_}: {f'pieces of {size} MiB' if size else 'one tensor at a time'}")
            group.barrier().wait()
            started = time.perf_counter()
            _send(iter(source), forms, size, lambda buffer: group.broadcast(buffer, 0))
            group.barrier().wait()  # The receiver has loaded everything.
            taken.append(time.perf_counter() - started)
    other.join()
    if answers.get() != sum(source.checksums().values()):
        raise RuntimeError("what arrived differs from what was sent")
    moved = sum(math.prod(form.shape) * form.dtype.itemsize for form in forms)
    return _rows({size: taken[1:] for size, taken in seconds.items()}, moved)


def _rows(seconds: dict[int, list[float]], moved: int) -> list[Row]:
    rows = []
    for size, taken in seconds.items():
        name = f"{moved / 1e6:.0f} MB over gloo, {f'pieces of {size} MiB' if size else 'one tensor at a time'}"
        rate = Spread.of([moved / second / 1e9 for second in taken])
        ratio = paired_ratio(taken, seconds[0]) if size else None
        rows.append(Row(name, rate, "GB/s", ratio, "seconds of one tensor at a time" if size else ""))
    return rows


def _source(policy: Path) -> OutgoingWeights:
    import torch

    from genevolve_ray.learning.outgoing import OutgoingWeights
    from genevolve_ray.learning.policy import load_policy

    torch.set_num_threads(1)
    return OutgoingWeights(load_policy(policy), {}, torch.bfloat16)


def _group(rank: int, port: int) -> Any:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=_LIMIT)
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, 2, _LIMIT)


def _send(
    tensors: Iterator[tuple[str, Tensor]], forms: list[TensorForm], size: int, start: Callable[[Tensor], Any]
) -> None:
    from genevolve_ray.engines.transports.packing import send

    if size:
        return send(tensors, forms, size << 20, start)
    for _, tensor in tensors:
        start(tensor.contiguous()).wait()
    return None


def _receiver(policy: str, port: int, repeats: int, answers: Any) -> None:
    """Receive every round in another process, and answer with the checksum of what arrived in the last."""
    import torch

    from genevolve_ray.engines.transports.packing import receive
    from genevolve_ray.learning.digests import tensor_checksum

    forms, group = _source(Path(policy)).metadata(), _group(1, port)
    own = {form.name: torch.zeros(form.shape, dtype=form.dtype) for form in forms}

    def load(loaded: list[tuple[str, Tensor]]) -> None:
        for name, tensor in loaded:
            own[name].copy_(tensor)

    for _ in range(repeats + 1):
        for size in (0, *SIZES):
            group.barrier().wait()
            if size:
                receive(forms, size << 20, lambda buffer: group.broadcast(buffer, 0), load)
            else:
                for form in forms:
                    tensor = torch.empty(form.shape, dtype=form.dtype)
                    group.broadcast(tensor, 0).wait()
                    load([(form.name, tensor)])
            group.barrier().wait()
    answers.put(sum(tensor_checksum(tensor) for tensor in own.values()))
