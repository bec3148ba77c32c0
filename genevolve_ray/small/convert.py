"""Folders in HF layout from the packages that carry weights: the policy, the embedder, the policy with its cold start.

Every folder appears whole or not at all. Nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from genevolve_ray.errors import UserFault
from genevolve_ray.small.notices import write_notices
from genevolve_ray.small.parts import file_sha256, find_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

EMBEDDER_FILES = {Path(file.path).name: file.sha256 for file in find_part("minilm").files}
"""The published all-MiniLM-L6-v2 (Apache-2.0): its files that a text model needs, with their SHA-256."""

_PRE_TOKENIZER = "smollm"
"""Value of `tokenizer.ggml.pre`: digits one by one, then the byte-level words of GPT-2."""


def convert_policy(gguf: Path, out: Path) -> Path:
    """Write a quantized SmolLM2 as a model folder in HF layout, in bfloat16, and return the folder.

    Its weights are those of the GGUF, dequantized and rounded to bfloat16. They differ from the published ones by the
    quantization.

    Args:
        gguf: the file; SmolLM2 of any size.
        out: the folder; missing or empty.

    Raises:
        FileNotFoundError: when the file is missing.
        UserFault: for a file that is no GGUF, or of a model with another tokenizer, and for an occupied folder.
    """
    from transformers import GenerationConfig

    _check_gguf(gguf)
    with _whole(out) as folder:
        model = _dequantized(gguf)
        config: Any = model.config
        tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        model.generation_config = GenerationConfig(**tokens, pad_token_id=config.pad_token_id)
        model.save_pretrained(folder)
        _tokenizer(gguf, config.max_position_embeddings).save_pretrained(folder)
        write_notices(folder, "base")
    return out


def copy_embedder(source: Path, out: Path) -> Path:
    """Write the sentence embedder as a plain model folder: the files of `EMBEDDER_FILES`, each checked by its hash.

    Args:
        source: a folder that holds these files.
        out: the folder; missing or empty.

    Raises:
        UserFault: naming a file that is missing or is not the published one, and for an occupied folder.
    """
    with _whole(out) as folder:
        for name, wanted in EMBEDDER_FILES.items():
            if not (source / name).is_file():
                raise UserFault(f"the embedder's folder {source} has no {name}")
            shutil.copyfile(source / name, folder / name)
            if (found := file_sha256(folder / name)) != wanted:
                raise UserFault(f"{source / name} is not the published file: SHA-256 {found}, expected {wanted}")
        write_notices(folder, "embedder")
    return out


def merge_cold_start(adapter: Path, policy: Path, out: Path) -> Path:
    """Write the policy with an adapter merged into it, in bfloat16, with all other files of the policy.

    The sum W + scaling * B A is computed as the learner and the engines compute it (`models.adapters.merge`).

    Args:
        adapter: a folder in the layout of peft.
        policy: the result of `convert_policy`.
        out: the folder; missing or empty.

    Raises:
        FileNotFoundError: when a part of either folder is missing.
        AdapterMisfit: when the adapter does not fit the policy.
        UserFault: for an occupied folder.
    """
    import torch

    from genevolve_ray.learning.policy import state_to_folder
    from genevolve_ray.models.adapters import check_published, published_tensors
    from genevolve_ray.models.companions import copy_companions, copy_config

    check_published(adapter, policy)
    with _whole(out) as folder:
        merged = {name: tensor.to(torch.bfloat16) for name, tensor in published_tensors(adapter, policy)}
        state_to_folder(merged, folder)
        copy_companions(policy, folder, config=False)
        copy_config(policy, folder, "bfloat16")
        write_notices(folder, "policy")
    return out


def _check_gguf(gguf: Path) -> None:
    """Check that a file is a GGUF whose tokenizer can be written. Raises as `convert_policy`."""
    from gguf import GGUFReader

    if not gguf.is_file():
        raise FileNotFoundError(f"no file {gguf}")
    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise UserFault(f"{gguf} cannot be read as a GGUF: {error}") from error
    field = reader.get_field("tokenizer.ggml.pre")
    if (found := None if field is None else field.contents()) != _PRE_TOKENIZER:
        raise UserFault(f"{gguf}: tokenizer.ggml.pre is {found!r}, only {_PRE_TOKENIZER!r} (SmolLM2) is converted")


def _dequantized(gguf: Path) -> PreTrainedModel:
    """Return the model of a GGUF in bfloat16, as if it had never been quantized.

    transformers dequantizes the weights, but remembers that the model was quantized, and then refuses to save it.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    config = deepcopy(loaded.config)
    for key in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    # The GGUF holds it as float32: 1e-5 has become 9.999999747378752e-06.
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    return model


def _tokenizer(gguf: Path, context: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF with its chat template, special tokens and pre-tokenizer.

    transformers reads the vocabulary and the merges. It gives every such file the pre-tokenizer of GPT-2.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    backend = read.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **{name: str(token) for name, token in read.special_tokens_map.items()},
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, and put it into the place of `out` if the block ends without an error.

    Raises UserFault where `out` holds anything.
    """
    place = out.absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserFault(f"{out} exists already: remove it to make it again")
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
