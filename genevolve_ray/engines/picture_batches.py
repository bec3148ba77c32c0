"""Batches of pictures for models of images in this process, whose weights are loaded once for all that use them."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from genevolve_ray.errors import MISREAD, InfraFailure
from genevolve_ray.models.hub import local_model
from genevolve_ray.models.image_processor import PROCESSOR_FILES, check_torchvision

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_models: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()
_turns: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
"""By model: held while it computes."""
_loading = Lock()
_NAMED = 3
_PLAIN_SIDE = 64


def shared_model(folder: Path, device: str, dtype: str) -> tuple[Any, Lock]:
    """Return the model of a folder, ready for inference, and the lock to hold while it computes.

    One that is still in use here is not loaded again. Nobody may alter it. Models are kept apart by the files as they
    were at loading.

    Args:
        folder: in Hugging Face layout.
        device: of torch.
        dtype: of the weights, by its name in torch.

    Raises:
        ValueError: when the files lack some of the weights, which transformers would fill with random numbers.
        Exception: of any kind, when transformers cannot load it with AutoModel.
    """
    import torch
    from transformers import AutoModel

    with _loading:
        key = (_state(folder), device, dtype)
        found = _models.get(key)
        if found is None:
            loaded: Any
            loaded, report = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=getattr(torch, dtype), output_loading_info=True
            )
            if missing := sorted(report["missing_keys"]):
                raise ValueError(
                    f"its files lack {len(missing)} weights of a {type(loaded).__name__}, such as "
                    f"{', '.join(missing[:_NAMED])}, which would be random"
                )
            found = _models[key] = loaded.to(device).eval().requires_grad_(False)
            _turns[found] = Lock()
        return found, _turns[found]


def plain_picture() -> PillowImage:
    """Return a small white picture, on which a model is tried."""
    from PIL import Image

    return Image.new("RGB", (_PLAIN_SIDE, _PLAIN_SIDE), "white")


def weights_digest(folder: Path) -> str:
    """Return a digest of the weights of a folder and of the settings by which pictures are prepared, by their content."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for file in [*weights, *(found for name in PROCESSOR_FILES if (found := folder / name).is_file())]:
        with file.open("rb") as content:
            digest.update(f"{file.name}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


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
    """Compute calls of coroutines in a thread. Those that arrive while a batch is computed form the next one.

    Those that share a model take turns: one computation has all threads of torch.
    """

    def __init__(
        self, model: str, *, key: str, device: str, dtype: str, batch_size: int, processor: Any, thread_name: str
    ) -> None:
        """Load a model and its processor.

        Args:
            model: a folder in Hugging Face layout, or a hub id.
            key: the setting that names the model, for messages.
            device: of torch.
            dtype: of the weights, by its name in torch.
            batch_size: most items that are computed at once.
            processor: class of transformers that loads the processor.
            thread_name: of the thread that computes.

        Raises:
            ValueError: naming key and model when one of them cannot be loaded.
        """
        self._called = f"{key}={model!r}"
        self._folder = local_model(model, key)
        check_torchvision(self._folder)
        try:
            self._processor: Any = processor.from_pretrained(self._folder, local_files_only=True)
            self._model, self._turn = shared_model(self._folder, device, dtype)
        except Exception as error:  # Files of others: transformers raises any kind.
            said = " ".join(str(error).split())[:500]
            raise ValueError(f"{self._called} cannot be loaded: {type(error).__name__}: {said}") from error
        self._device, self._batch_size = device, batch_size
        # Two threads use it, by single operations that are atomic.
        self._waiting: OrderedDict[ItemT, None] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, thread_name)
        self._closed = False

    @abstractmethod
    def _compare(self, items: list[ItemT]) -> list[ResultT]:
        """Return the results of a batch, in its order. It raises one of MISREAD or RuntimeError where it cannot."""

    async def aclose(self) -> None:
        """Stop the thread of the model. Calls that wait for their turn fail when the batch in progress is done."""
        self._closed = True
        # Canceled futures would look to their callers as if the callers had been canceled.
        self._executor.shutdown(wait=False)

    def digest(self) -> str:
        """Return a digest of the model's weights and of the preparation of pictures; it reads the files whole."""
        return weights_digest(self._folder)

    def _probe(self, item: ItemT) -> None:
        """Compute one item. Raises ValueError naming key and model when the model is not able to."""
        try:
            self._computation([item])
        except (*MISREAD, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}"[:300]
            raise ValueError(
                f"{self._called} ({type(self._model).__name__}) fails on a plain picture: {said}"
            ) from error

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs on the model's device, floating-point ones in its dtype: not every model converts pixels itself."""
        dtype = self._model.dtype

        def placed(value: Any) -> Any:
            if not hasattr(value, "is_floating_point"):  # No tensor, such as a list of sizes.
                return value
            return value.to(self._device, dtype if value.is_floating_point() else value.dtype)

        return {name: placed(value) for name, value in inputs.items()}

    async def _computed(self, item: ItemT) -> ResultT:
        """Return the result of an item, computed together with others that wait.

        Raises:
            InfraFailure: when the model cannot read it, gives no finite number, lacks memory, or is closed.
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
        if self._closed:
            raise RuntimeError("the model is closed")
        if item.result is None:
            batch = [item, *self._others()]
            try:
                found = self._computation(batch)
            except (*MISREAD, RuntimeError):
                if len(batch) == 1:
                    raise
                # One of the others may be to blame, or their number: each then has its own turn.
                found = self._computation([item])
            for one, own in zip(batch, found, strict=False):
                one.result = own
        assert item.result is not None
        result: ResultT = item.result
        return result

    def _computation(self, batch: list[ItemT]) -> list[ResultT]:
        with self._turn:
            return self._compare(batch)

    def _others(self) -> list[ItemT]:
        """Take further items that wait, up to a full batch."""
        taken: list[ItemT] = []
        while len(taken) < self._batch_size - 1:
            try:
                taken.append(self._waiting.popitem(last=False)[0])
            except KeyError:
                break
        return taken
