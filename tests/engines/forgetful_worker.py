"""A worker of vLLM that keeps old values of the tensors that a version's folder lists, as a faulty loader would."""

from __future__ import annotations

from pathlib import Path

from genevolve_ray.engines.vllm_worker import WeightLoader

FORGOTTEN = "forgotten.txt"


class ForgetfulLoader(WeightLoader):
    _forgotten: frozenset[str] = frozenset()

    def load_folder(self, folder: str, base: str) -> float:
        file = Path(folder) / FORGOTTEN
        self._forgotten = frozenset(file.read_text().split()) if file.exists() else frozenset()
        model = self.model_runner.get_model()
        kept = {name: p.clone() for name, p in model.named_parameters() if name in self._forgotten}
        seconds = super().load_folder(folder, base)
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])
        return seconds

    def places(self) -> dict[str, int]:
        """Where the memory of each of the model's tensors begins, those left out that a CPU kernel has packed."""
        named = self.model_runner.get_model().named_parameters()
        return {name: p.data_ptr() for name, p in named if p.numel()}

    def pack_head(self) -> None:
        if "lm_head.weight" not in self._forgotten:
            super().pack_head()
