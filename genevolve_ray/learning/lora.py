"""LoRA through peft: attach an adapter, score as the reference, and read and write weights in peft's own layout.

The adapter is inside the transformers model (peft replaces linear modules by its own), so code that takes a policy also
takes one with an adapter. Three states matter:

- the adapter under training, named `default`;
- the policy at the start of evolution: the base alone for a fresh adapter, and a frozen second adapter, named
  `reference`, for an adapter that was trained before;
- the merged weights W + scaling * B A, which engines without adapters load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from genevolve_ray.learning.config import LoraConfig
from genevolve_ray.learning.policy import load_policy, save_beside, state_hash, vision_tower
from genevolve_ray.models import adapters
from genevolve_ray.models.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, BASE_DTYPE, PREFIX, AdapterMisfit
from genevolve_ray.models.companions import copy_companions

TRAINED, REFERENCE = "default", "reference"
_PROJECTOR = r"(merger|deepstack_merger_list)"
_FROZEN = {False: r"(.*\.)?visual\..*", True: rf"(.*\.)?visual\.(?!{_PROJECTOR}\.).*"}
"""Modules of a vision tower that get no adapter, by whether its projectors are adapted."""
_FACTOR = re.compile(r"\.lora_([AB])\.(\w+)\.")


def attach_adapter(model: PreTrainedModel, config: LoraConfig) -> Any:
    """Attach an adapter to `model`, make it the only trainable part, and return peft's description of it.

    A fresh adapter is the identity (B = 0) and its A follows from `config.seed` alone. An adapter that starts from a
    folder has a frozen copy for `reference_adapter`. Adapters of a bfloat16 base are float32.

    Raises:
        FileNotFoundError: when the folder of the starting adapter holds none.
        ValueError: when the starting adapter has another rank, alpha or dropout than the settings or is more than
            low-rank factors, or when a target is not a linear module.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel, get_peft_model

    if config.start is not None:
        wanted = _read_config(config.start, config)
        wrapped = PeftModel.from_pretrained(model, config.start, TRAINED, is_trainable=True, config=wanted)
        wrapped.load_adapter(config.start, REFERENCE, is_trainable=False)
    else:
        targets = config.target_modules
        wanted = PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type] # declared int; peft computes with any number
            lora_dropout=0.0,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=None if vision_tower(model) is None else _FROZEN[config.projector],
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            wrapped = get_peft_model(model, wanted, TRAINED)
    head: Any = model
    for name, module in _layers(model):
        if module is head.get_output_embeddings():
            raise ValueError(f"LoRA target {name} is the output projection, which the learner applies itself")
        if not isinstance(module.get_base_layer(), nn.Linear):
            raise ValueError(f"LoRA target {name} is a {type(module.get_base_layer()).__name__}, not a Linear")
    _check_tower(model, config)
    description = wrapped.peft_config[TRAINED]
    assert model.name_or_path is not None
    # Other processes find the base by this name, from any working directory.
    description.base_model_name_or_path = str(Path(model.name_or_path).resolve())
    return description


def _check_tower(model: nn.Module, config: LoraConfig) -> None:
    """Check that an adapter changes the projectors of a vision tower where the settings say so, and nothing else there.

    Raises ValueError naming the setting.
    """
    adapted = [name for name, _ in _layers(model) if ".visual." in f".{name}"]
    if config.projector and not adapted:
        why = "has no vision tower" if vision_tower(model) is None else "has no such target in its projectors"
        raise ValueError(f"learner.lora.projector=true, but the policy {why}")
    if strange := next((name for name in adapted if re.fullmatch(_FROZEN[config.projector], name)), None):
        raise ValueError(
            f"the adapter changes {strange}, but learner.lora.projector={str(config.projector).lower()} freezes it"
        )


def _read_config(folder: str, config: LoraConfig) -> Any:
    """Return the starting adapter's description after comparing it with the settings."""
    from peft import PeftConfig

    if not (Path(folder) / ADAPTER_CONFIG_FILE).is_file() or not (Path(folder) / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"no {ADAPTER_CONFIG_FILE} and {ADAPTER_FILE} in {folder!r}")
    found = PeftConfig.from_pretrained(folder)
    theirs = (found.r, found.lora_alpha, found.lora_dropout)
    if theirs != (config.rank, config.alpha, 0.0):
        raise ValueError(
            f"the adapter in {folder!r} has rank {theirs[0]}, alpha {theirs[1]:g}, dropout {theirs[2]:g}; "
            f"the settings have rank {config.rank}, alpha {config.alpha:g}, dropout 0"
        )
    adapters.read_adapter(folder)  # Learner and engines would compute an adapter that cannot be merged differently.
    return found


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules that peft inserted, with their names; a model without adapter does not import peft."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


@contextmanager
def reference_adapter(model: nn.Module) -> Iterator[None]:
    """Let `model` compute as the policy at the start of evolution; without an adapter this changes nothing.

    peft's own switches also set `requires_grad`. A sharded module reads that flag once, at its first pass, and the
    adapter would silently stop learning. So only the two attributes that decide the forward pass are set here.
    """
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        if REFERENCE in layer.lora_A:
            layer._active_adapter = [REFERENCE]
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter = [TRAINED]
            layer._disable_adapters = False


def is_factor(name: str) -> bool:
    """Return whether a tensor of a model's state is a factor of an adapter."""
    return _FACTOR.search(name) is not None


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained adapter's tensors of a model's state, under the model's names."""
    return {name: t for name, t in state.items() if (found := _FACTOR.search(name)) and found[2] == TRAINED}


def adapter_scalings(model: nn.Module) -> dict[str, float]:
    """Return, for each adapted module, the factor on B A."""
    return {name: float(layer.scaling[TRAINED]) for name, layer in _layers(model)}


def merged_state(state: Mapping[str, Tensor], scalings: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the state of the equivalent model without adapter: W + scaling * B A in W's dtype.

    Args:
        state: the whole state of a model with an adapter, each tensor in full.
        scalings: the result of `adapter_scalings`.
    """
    merged = {}
    for name, tensor in state.items():
        if is_factor(name):
            continue
        module = name.removesuffix(".base_layer.weight")
        if module != name:
            down, up = (state[f"{module}.lora_{factor}.{TRAINED}.weight"] for factor in "AB")
            tensor = adapters.merge(tensor, down, up, scalings[module])
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def merge_sources(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the tensor names that `merged_state` derives from these names, each with its source names."""
    sources = {}
    for name in names:
        if is_factor(name):
            continue
        module = name.removesuffix(".base_layer.weight")
        factors = tuple(f"{module}.lora_{factor}.{TRAINED}.weight" for factor in "AB") if module != name else ()
        sources[name.replace(".base_layer.", ".")] = (name, *factors)
    return sources


def write_adapter(state: Mapping[str, Tensor], description: Any, folder: str | Path, base_dtype: str) -> None:
    """Write an adapter in peft's layout (`adapter_config.json`, `adapter_model.safetensors`).

    Args:
        state: a model's state, whole or the adapter's part of it.
        description: the result of `attach_adapter`.
        folder: the target; created when missing.
        base_dtype: the dtype of the base; merging as the learner does requires it.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in published_factors(state).items()}
    save_file(tensors, target / ADAPTER_FILE, metadata={"format": "pt", BASE_DTYPE: base_dtype})
    description.save_pretrained(target)


def published_factors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained adapter's tensors of a model's state, under the names that they have in an adapter's folder."""
    return {PREFIX + name.replace(f".{TRAINED}.", "."): tensor for name, tensor in adapter_state(state).items()}


def publish_adapter(state: Mapping[str, Tensor], description: Any, folder: str | Path, base_dtype: str) -> str:
    """Write an adapter for engines, which have their base, and return the checksum of its effect on any base.

    The folder is sent to external machines, so it does not contain the path of the base on this machine.
    """
    nameless = copy(description)
    nameless.base_model_name_or_path = Path(description.base_model_name_or_path).name
    write_adapter(state, nameless, folder, base_dtype)
    return adapter_hash(folder)


def adapter_hash(folder: str | Path) -> str:
    """Return a SHA-256 over an adapter's factors, their scalings and the base's dtype."""
    adapter = adapters.read_adapter(folder)
    tensors = {f"{BASE_DTYPE}={adapter.base_dtype}": torch.zeros(1)}
    for name, factors in adapter.factors.items():
        scaling = torch.tensor(factors.scaling, dtype=torch.float64)
        tensors |= {f"{name}.A": factors.down_R_I, f"{name}.B": factors.up_O_R, f"{name}.scaling": scaling}
    return state_hash(tensors)


def check_publishable(model: nn.Module, model_dir: str | Path) -> None:
    """Check that the files of the base have the names of the parameters that the adapter changes.

    Raises:
        ValueError: naming a missing target, as in checkpoints that transformers renames while it loads them.
    """
    targets = {f"{name}.weight": tuple(layer.get_base_layer().weight.shape) for name, layer in _layers(model)}
    try:
        adapters.check_fit(targets, model_dir)
    except (AdapterMisfit, FileNotFoundError) as error:
        raise ValueError(f"learner.lora.publish=adapter: {error}; publish=merged sends full weights") from error


def read_adapter(folder: str | Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter folder under the model's names. Raises FileNotFoundError when there is none."""
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no {ADAPTER_FILE} in {str(folder)!r}")
    return {
        re.sub(r"\.lora_([AB])\.", rf".lora_\1.{TRAINED}.", name.removeprefix(PREFIX)): tensor
        for name, tensor in load_file(file).items()
    }


def export_merged(adapter_dir: str | Path, folder: str | Path, model_dir: str | Path | None = None) -> Path:
    """Write a base with an adapter merged into it as a plain model folder in HF layout, with all files of the base.

    The tensors are float32, so that the export equals the adapter model up to rounding. Files next to the adapter, such
    as its tokenizer, replace those of the base.

    Args:
        adapter_dir: an adapter in peft's layout, such as a checkpoint.
        folder: the target.
        model_dir: the base; by default the one that the adapter's description names.

    Raises:
        FileNotFoundError: when the base or the adapter is missing.
    """
    from peft import PeftConfig, PeftModel

    if not (Path(adapter_dir) / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"no {ADAPTER_FILE} in {str(adapter_dir)!r}")
    base = model_dir or PeftConfig.from_pretrained(str(adapter_dir)).base_model_name_or_path
    target = Path(folder)
    merged = PeftModel.from_pretrained(load_policy(base), str(adapter_dir)).merge_and_unload()
    target.mkdir(parents=True, exist_ok=True)
    save_beside(merged, base, target)
    copy_companions(adapter_dir, target, config=False)
    return target
