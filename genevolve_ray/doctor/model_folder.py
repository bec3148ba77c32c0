"""Integrity of a model folder: weights that end where their header says, tokenizer, chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from genevolve_ray.engines.checks import check_vocabulary, context_length
from genevolve_ray.models import architecture
from genevolve_ray.models.companions import check_companions
from genevolve_ray.models.image_processor import json_object

_MAX_HEADER = 100 << 20
"""Largest header that the format allows, in bytes."""
_PROTOCOL = '<think>Go</think> <tool_call>{"name": "search", "arguments": {"queries": ["Heron"]}}</tool_call>'
"""Text that a tokenizer must encode and decode unchanged, or no turn could be parsed."""
_SHOWN = 300
"""Most characters of a library's message that are shown."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class Weights:
    """Describe the weights of a folder."""

    parameters: int
    bytes: int

    @property
    def count(self) -> str:
        """The parameters as messages give them: 8.03B, 0.964M."""
        return f"{self.parameters / 1e9:.3g}B" if self.parameters >= 1e8 else f"{self.parameters / 1e6:.3g}M"


def read_weights(folder: Path) -> Weights:
    """Return the size of a folder's safetensors, after a check that every file exists and is complete.

    An interrupted download is found here at once, and not when an engine has started.

    Raises:
        FileNotFoundError: naming a shard that the index lists and the folder lacks.
        ValueError: naming a file that is not safetensors or whose length differs from its header.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json_object(index).get("weight_map", {}).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    return Weights(sum(_parameters(file) for file in files), sum(file.stat().st_size for file in files))


def _parameters(file: Path) -> int:
    """Return the number of parameters in one file. Raises ValueError when it is not complete."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{file} is not a complete safetensors file: {size} bytes")
        try:
            tensors: dict[str, Any] = json.loads(stream.read(length))
            tensors.pop("__metadata__", None)
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
            count: int = sum(prod(tensor["shape"]) for tensor in tensors.values())
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{file} has no readable safetensors header: {error}") from error
    if size != 8 + length + max(ends, default=0):
        raise ValueError(f"{file} has {size} bytes, but its header declares {8 + length + max(ends, default=0)}")
    return count


def missing_texts(folder: Path) -> list[str]:
    """Return the missing items besides the weights, in words: a tokenizer, a chat template."""
    lacking = []
    if not any((folder / name).is_file() for name in TOKENIZERS):
        lacking.append(f"a tokenizer ({', '.join(TOKENIZERS)})")
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and json_object(settings).get("chat_template")
    if not inside and not any((folder / name).is_file() for name in TEMPLATES):
        lacking.append("a chat template (chat_template.jinja, or chat_template in tokenizer_config.json)")
    return lacking


def check_texts(folder: Path) -> str:
    """Check tokenizer and chat template, and return the findings in words.

    Takes seconds the first time: it imports transformers.

    Raises:
        ValueError: naming what is missing or cannot be loaded, a template that fails or does not close turns with a
            token of its own, and a tokenizer with ids that the model does not embed.
    """
    if lacking := missing_texts(folder):
        raise ValueError(f"{folder} lacks {' and '.join(lacking)}")
    check_companions(folder)
    from genevolve_ray.agent.chat import ChatFormat, load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
        form = ChatFormat(tokenizer)
        prompt = form.prompt_ids([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}])
        again = form.decode(form.text_ids(_PROTOCOL))
    except Exception as error:
        raise ValueError(f"the tokenizer in {folder} cannot be used: {_line(error)}") from error
    if "".join(again.split()) != "".join(_PROTOCOL.split()):
        raise ValueError(f"the tokenizer in {folder} does not keep text: {_PROTOCOL!r} becomes {again[:_SHOWN]!r}")
    check_vocabulary(folder, tokenizer)
    end = tokenizer.decode([form.end_of_turn_id])
    dated = ", its template prints the date" if form.dated else ""
    return f"{len(tokenizer)} ids, turns end in {end}, an empty prompt has {len(prompt)} tokens{dated}"


def check_embedded(folder: Path) -> None:
    """Check that a folder without a chat template, such as an embedder's, embeds every id of its tokenizer.

    Raises:
        ValueError: naming the folder, and what is missing, cannot be loaded or does not fit.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"the tokenizer in {folder} cannot be used: {_line(error)}") from error
    check_vocabulary(folder, tokenizer)


def check_architecture(folder: Path, *, decoded: bool) -> None:
    """Check with the defaults of the model's class, which `config.json` may leave out, that the learner can score it.

    `decoded`: the reference engine decodes it as well.

    Raises:
        ValueError: naming the key and the value, or a model that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        resolved = config.get_text_config().to_dict()
    except Exception as error:
        raise ValueError(f"{folder / 'config.json'} cannot be used: {_line(error)}") from error
    place = folder / "config.json"
    if decoded and (strange := architecture.strange_layers(resolved)):
        raise ValueError(f"{place}: engine.kind=transformers cannot decode layers of {', '.join(strange)}")
    if (found := architecture.changed_logits(resolved)) is not None:
        raise ValueError(f"{place}: {found} changes the logits, which the learner cannot score")


def check_streamed(folder: Path, transport: str) -> None:
    """Check that vLLM knows the learner's names of a model's tensors, which a transport without files sends as they are.

    Raises:
        ValueError: naming the transport and the model, where transformers loads the files under other names.
    """
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    for conversion in get_checkpoint_conversion_mapping(kind) or ():
        # vLLM also takes the fused experts of this one form.
        if not all(".experts.*." in name for name in conversion.source_patterns):
            raise ValueError(
                f"cluster.weights={transport} sends the learner's tensors, but {kind} ({folder / 'config.json'}) has other "
                "names in its files, which vLLM expects: use cluster.weights=host"
            )


def _line(error: Exception) -> str:
    """Return an error on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def context_of(folder: Path) -> int | None:
    """Return the most tokens that a model's positions allow, None where the number is unknown."""
    try:
        return context_length(folder)
    except (OSError, ValueError):
        return None
