"""Start of the ranks of a training outside Ray: processes of this machine, or those that torchrun started.

This process becomes rank 0 of local ranks. The others are started for it and end with it, however it ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from genevolve_ray.errors import RunError, UserFault, as_ending
from genevolve_ray.learning.distributed import Ranks, join_ranks
from genevolve_ray.learning.policy import use_threads

T = TypeVar("T")
TIMEOUT_SECONDS = 1800.0
"""Longest wait of a collective: rank 0 may write a large state while the others wait for its next step."""
_LAST_WORDS_SECONDS = 10.0
"""Time that rank 0 has for an error of its own after another rank has died."""


def torchrun_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks under torchrun, None for a process that it did not start.

    Raises:
        UserFault: naming a variable that is no number.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return None
    for name in ("RANK", "WORLD_SIZE"):
        if not environment[name].isdecimal():
            raise UserFault(f"{name}={environment[name]} in the environment is no number of ranks")
    return int(environment["RANK"]), int(environment["WORLD_SIZE"])


def run_on_ranks(count: int, device: str, threads: int, work: Callable[[Ranks], T]) -> T:
    """Run `work` on every rank and return what it returns in this process.

    Args:
        count: number of ranks; 1 under torchrun takes torchrun's.
        device: `cpu` or `cuda`; local rank n takes GPU n.
        threads: torch threads of a rank; 0 shares the cores of this machine among several ranks.
        work: picklable; receives the place among the ranks.

    Raises:
        UserFault: for another number of ranks than torchrun's, or more ranks than GPUs.
    """
    started = torchrun_ranks()
    if started is not None and started[1] > 1:
        rank, size = started
        if count not in (1, size):
            raise UserFault(f"ranks={count}, but torchrun started {size}")
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return work(_join(rank, size, address, device, threads, int(os.environ.get("LOCAL_RANK", rank))))
    if count == 1:
        if threads:
            use_threads(threads)
        return work(Ranks())
    if device.startswith("cuda") and count > torch.cuda.device_count():
        raise UserFault(f"ranks={count}, but this machine has {torch.cuda.device_count()} GPUs")
    return _run_locally(count, device, threads, work)


def _run_locally(count: int, device: str, threads: int, work: Callable[[Ranks], T]) -> T:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    others: list[BaseProcess] = [
        context.Process(target=_follow, args=(rank, count, address, device, threads, work), name=f"rank {rank}")
        for rank in range(1, count)
    ]
    for other in others:
        other.start()
    done = threading.Event()
    threading.Thread(target=_end_with_any, args=(others, done), daemon=True).start()
    try:
        result = work(_join(0, count, address, device, threads, 0))
    except Exception as error:
        # A collective that lost a rank says little; the rank's end says more.
        wait([other.sentinel for other in others], timeout=1.0)
        killed = next((other for other in others if (other.exitcode or 0) < 0), None)
        if killed is None:
            raise
        raise RunError(f"{killed.name} of the training was ended by signal {-(killed.exitcode or 0)}") from error
    finally:
        done.set()
        for other in others:
            other.join(_LAST_WORDS_SECONDS if sys.exc_info()[0] is None else 0)
            if other.is_alive():
                other.kill()
                other.join()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return result


def _join(rank: int, size: int, address: str, device: str, threads: int, local: int) -> Ranks:
    """Take a device and cores, and meet the other ranks."""
    if device.startswith("cuda"):
        torch.cuda.set_device(local)
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    use_threads(threads or max(1, len(os.sched_getaffinity(0)) // on_this_node))
    return join_ranks(rank, size, address, device, TIMEOUT_SECONDS)


def _follow(rank: int, size: int, address: str, device: str, threads: int, work: Callable[[Ranks], object]) -> None:
    """Be a rank above 0. Rank 0 has the same inputs and explains what is wrong with them."""
    _end_with_parent()
    logging.disable(logging.WARNING)
    code = 0
    try:
        work(_join(rank, size, address, device, threads, rank))
    except BaseException as error:  # noqa: BLE001 # the end of this process, with an exit code
        code = 1
        if as_ending(error) is None and not _lost_parent():
            traceback.print_exc()
    # Torch's threads race with the end of the interpreter: now and then one aborts. Semaphores of libraries are returned.
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, also by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lost_parent() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _end_with_any(others: Sequence[BaseProcess], done: threading.Event) -> None:
    """End this process with one line when another rank has died and no collective has noticed."""
    while not done.wait(0.5):
        failed = next((other for other in others if other.exitcode not in (None, 0)), None)
        if failed is None or done.wait(_LAST_WORDS_SECONDS):
            continue
        print(
            f"error: {failed.name} of the training has died (exit code {failed.exitcode})", file=sys.stderr, flush=True
        )
        os._exit(1)
