"""Code inside vLLM's own processes: the ban mask, the loading of weights, and termination with the parent.

vLLM imports this module by the names that `engines/vllm.py` passes; no other module should import it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.v1.sample.logits_processor import LogitsProcessor

from genevolve_ray.engines.ban import ban_mask
from genevolve_ray.engines.load_check import LoadWatch, factor_checksums
from genevolve_ray.engines.parent_watch import die_with_parent
from genevolve_ray.engines.stored_names import as_stored
from genevolve_ray.engines.transports.ipc import rebuilt_handles
from genevolve_ray.engines.vllm_tensors import HeldTensors
from genevolve_ray.models.adapters import is_adapter, published_tensors, tensor_names

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

BANNED_KEY = "genevolve_banned"
"""Key of vLLM's `additional_config` that carries the banned ids into the engine process."""
_OWN_PROCESSES = ("EngineCore", "VllmWorker")


# At import, which happens when the engine process unpickles its arguments: starting takes seconds, and the parent may
# die during the start.
die_with_parent(_OWN_PROCESSES)
WeightTransferEngineFactory.register_engine("gloo", "genevolve_ray.engines.transports.gloo", "GlooReceiver")


class BanMask(LogitsProcessor):  # type: ignore[misc]
    """Mask the logits of the banned tokens with minus infinity for every request, before temperature and softmax."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        banned = vllm_config.additional_config.get(BANNED_KEY, ())
        vocab_size = vllm_config.model_config.get_vocab_size()
        self._banned_V = torch.from_numpy(ban_mask(banned, vocab_size)).to(device)
        self._any = bool(banned)

    def is_argmax_invariant(self) -> bool:
        """Return False: greedy sampling must use the mask as well."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Do nothing: the mask is the same for every request, so there is no state."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask float32 logits [requests, vocabulary] in place."""
        return logits.masked_fill_(self._banned_V, float("-inf")) if self._any else logits


class WeightLoader:
    """Extend vLLM's workers by methods that are called through `collective_rpc`."""

    model_runner: Any
    vllm_config: Any
    weight_transfer_engine: Any
    update_weights: Any
    _held: HeldTensors
    _watch: LoadWatch

    def load_folder(self, folder: str, base: str) -> float:
        """Load a published folder into the running model, an adapter merged into `base`; return the seconds it took."""
        start = time.perf_counter()
        # Merged on the model's device: on one thread of the host a large base would take most of a minute.
        tensors = published_tensors(folder, base, self.model_runner.device)
        watch = self.watch_load()
        if is_adapter(folder):  # The merged tensors are those of the base's files.
            watch.arrived.update(factor_checksums(folder))
        else:
            tensors = as_stored(watch.published(tensors), base)
        tensors = watch.stored(tensors)
        self.unpack_experts()
        # `as_stored` builds the transformers model, whose class vLLM has wrapped where it samples through transformers.
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.reload_weights(weights_iterator=tensors)
        self.pack_head()
        self.keep_experts()
        watch.require(tensor_names(base))
        return time.perf_counter() - start

    def watch_load(self) -> LoadWatch:
        """Watch the tensors of a load that begins now."""
        self._held = HeldTensors(self.model_runner.get_model())
        self._watch = LoadWatch(self._held.place, self.vllm_config.model_config.dtype)
        return self._watch

    def expect_weights(self) -> None:
        """Watch a load over a transport, before it starts."""
        self.watch_load()

    def compare_load(self) -> dict[str, Any]:
        """Return the checksums of the last load, as `load_check` evaluates them: what arrived, and what is held now."""
        watch = self._watch
        return {
            "arrived": watch.arrived,
            "missing": watch.missing,
            "rows": self._held.rows(watch.loaded),
            "untraced": watch.untraced,
        }

    def take_part(self, info: dict[str, Any]) -> None:
        """Receive some or all of the learner's weights, within an update that has been started."""
        self.unpack_experts()
        if handles := info.get("ipc_handles"):
            info = info | {"ipc_handles": rebuilt_handles(handles)}
        with self._watched(self.weight_transfer_engine.model):
            self.update_weights(info)

    @contextmanager
    def _watched(self, model: Any) -> Iterator[None]:
        """Let the tensors that a transport loads into the model pass the watch."""
        load, watch = model.load_weights, self._watch
        model.load_weights = lambda weights: load(watch.stored(watch.published(weights)))
        try:
            yield
        finally:
            del model.load_weights

    def settle_weights(self) -> None:
        """Clear results of the old weights, after an update that vLLM's transfer has finished.

        Pictures are dropped too: their states change where the learner trains the projectors of the vision tower, and an
        update may bring weights of another origin.
        """
        self.model_runner.reset_encoder_cache()
        self.model_runner.reset_mm_cache()
        self.pack_head()
        self.keep_experts()

    def abandon_update(self) -> None:
        """End an interrupted update; the weights are then unusable.

        Otherwise layers that still wait for weights would take those of the next update.
        """
        engine = self.weight_transfer_engine
        if engine is None:
            return
        with set_current_vllm_config(self.vllm_config):
            engine.finish_weight_update()
        engine.reset_weight_update_target()
        engine.shutdown()
        self._weight_update_active = False

    def unpack_experts(self) -> None:
        """Let the next weights of experts be packed for their kernel on a CPU, as at the start.

        vLLM packs them only while a layer has no kernel yet. An update would then fill the kernel's packed storage with
        weights in their plain order, and log-probs would be wrong. On a GPU it converts the weights of every update.
        """
        if self.model_runner.device.type != "cpu" or self._expert_kernels:
            return
        for layer in self.model_runner.get_model().modules():
            method: Any = getattr(layer, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                self._expert_kernels.append((method, method.moe_kernel))
                method.moe_kernel = None

    def keep_experts(self) -> None:
        """Give layers that got no weights their kernel back, after an update."""
        for method, kernel in self._expert_kernels:
            if method.moe_kernel is None:
                method.moe_kernel = kernel
        self._expert_kernels.clear()

    @property
    def _expert_kernels(self) -> list[tuple[Any, Any]]:
        """Kernels that an update in progress has taken from their layers; vLLM never calls an extension's `__init__`."""
        kernels: list[tuple[Any, Any]] = self.__dict__.setdefault("_expert_kernels_taken", [])
        return kernels

    def pack_head(self) -> None:
        """Pack the output head's weight again for its kernel.

        A tied head shares the embedding's weight but keeps its own packed copy for the CPU kernel. The reload does not
        change this copy: without this call its logits are those of the old weights. A model that sees has its head
        inside its language model.
        """
        for name, head in self.model_runner.get_model().named_modules():
            method: Any = getattr(head, "quant_method", None)
            if name.rpartition(".")[2] == "lm_head" and method is not None:
                method.process_weights_after_loading(head)
