"""Batches of pictures for models of images in this process, whose weights are loaded once for all that use them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from genevolve_ray.errors import MISREAD, InfraFailure

_models: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()
_loading = Lock()


def shared_model(folder: Path, device: str, dtype: str) -> Any:
    """Return the model of a folder, ready for inference; one that is still in use here is not loaded again.

    Nobody may alter it. Models are kept apart by the files as they were at loading.

    Args:
        folder: in Hugging Face layout.
        device: of torch.
        dtype: of the weights, by its name in torch.

    Raises:
        OSError, ValueError: when transformers cannot load it with AutoModel.
    """
    import torch
    from transformers import AutoModel

    with _loading:
        key = (_state(folder), device, dtype)
        found = _models.get(key)
        if found is None:
            loaded: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype))
            found = _models[key] = loaded.to(device).eval().requires_grad_(False)
        return found


def _state(folder: Path) -> str:
    """Return a text that is another one when a file of the folder is written anew."""
    files = sorted(file for file in folder.glob("*") if file.is_file())
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino) for file in files]
    return f"{folder.resolve()}:{stats}"


ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class BatchItem(Generic[ResultT]):
    """Hold what is computed for one call; a subclass adds the inputs."""

    result: ResultT | None = field(default=None, init=False)


ItemT = TypeVar("ItemT", bound="BatchItem[Any]")


class PictureBatches(ABC, Generic[ItemT, ResultT]):
    """Compute calls of coroutines in a thread. Those that arrive while a batch is computed form the next one."""

    def __init__(self, batch_size: int, thread_name: str) -> None:
        """Compute at most `batch_size` items at once."""
        self._batch_size = batch_size
        # Two threads use it, by single operations that are atomic.
        self._waiting: OrderedDict[ItemT, None] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, thread_name)

    @abstractmethod
    def _compare(self, items: list[ItemT]) -> list[ResultT]:
        """Return the results of a batch, in its order. It raises one of MISREAD or RuntimeError where it cannot."""

    async def aclose(self) -> None:
        """Stop the thread of the model."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _computed(self, item: ItemT) -> ResultT:
        """Return the result of an item, computed together with others that wait.

        Raises:
            InfraFailure: when the model cannot read it, gives no finite number, or lacks memory.
        """
        self._waiting[item] = None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._result, item)
        except (*MISREAD, RuntimeError) as error:
            raise InfraFailure(f"{type(error).__name__}: {error}"[:300]) from error
        finally:
            # A call that was cancelled never has its turn.
            self._waiting.pop(item, None)

    def _result(self, item: ItemT) -> ResultT:
        """Return the result of an item: what a batch before has left, or that of a new batch."""
        self._waiting.pop(item, None)
        if item.result is None:
            batch = [item, *self._others()]
            try:
                found = self._compare(batch)
            except (*MISREAD, RuntimeError):
                if len(batch) == 1:
                    raise
                # One of the others may be to blame, or their number: each then has its own turn.
                found = self._compare([item])
            for one, result in zip(batch, found, strict=False):
                one.result = result
        assert item.result is not None
        result: ResultT = item.result
        return result

    def _others(self) -> list[ItemT]:
        """Take further items that wait, up to a full batch."""
        taken: list[ItemT] = []
        while len(taken) < self._batch_size - 1:
            try:
                taken.append(self._waiting.popitem(last=False)[0])
            except KeyError:
                break
        return taken
