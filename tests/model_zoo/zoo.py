"""Tiny model folders with the files, templates and settings of models on the hub; weights are random."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Messages whose content is a text or parts, as in models with vision."""
VISION_WITH_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + VISION
)
"""The same with a system message where there is none."""
LLAMA = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
    "{{- date_string + '\n\n' + system_message + '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SMOLLM = (
    "{%- set today = strftime_now('%d %B %Y') -%}{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' ~ today ~ '\n\n' -}}"
    "{%- if messages[0].role == 'system' -%}{{- messages[0].content.rstrip() -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- for m in messages -%}{%- if m.role != 'system' -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ system if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
PHI = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}<|assistant|>\n"
IMAGES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def processors(patch_size: int, video: str) -> dict[str, dict[str, Any]]:
    sizes = {"patch_size": patch_size, "merge_size": 2}
    return {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor", **sizes},
        "video_preprocessor_config.json": {"video_processor_type": video, "fps": 2.0, **sizes},
    }


GREEDY = {"do_sample": False, "temperature": 1e-6, "eos_token_id": 2}
"""Sampling settings of Qwen2.5-VL's kind: transformers reads them, and refuses to write them."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Species:
    """One kind of model folder.

    `control` are its added tokens, the last `plain` of them not marked special; `end` closes its turns.
    """

    config: str
    model: str
    template: str = CHATML
    control: Sequence[str] = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    plain: int = 0
    end: str = "<|im_end|>"
    eos: str = "<|im_end|>"
    shape: dict[str, Any] = field(default_factory=dict)
    padding: int = 0
    files: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] | None = None
    byte_level: bool = False

    @property
    def dated(self) -> bool:
        return "strftime_now" in self.template


_LLAMA_CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA_CONTROL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_GEMMA = {"template": GEMMA, "control": _GEMMA_CONTROL, "end": "<end_of_turn>", "eos": "<eos>"}
_YARN = {"rope_theta": 10_000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_QWEN25VL = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [0],
}  # fmt: skip
_QWEN3VL = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]}

ZOO: dict[str, Species] = {
    "qwen3": Species("Qwen3Config", "Qwen3ForCausalLM", files={"LICENSE": "licence", "merges.note": "x"}),
    "qwen3-untied": Species("Qwen3Config", "Qwen3ForCausalLM", shape={"tie_word_embeddings": False}),
    "qwen3-padded": Species("Qwen3Config", "Qwen3ForCausalLM", padding=37),
    "qwen3-yarn": Species(
        "Qwen3Config", "Qwen3ForCausalLM", shape={"max_position_embeddings": 512, "rope_parameters": _YARN}
    ),
    "qwen3-moe": Species("Qwen3MoeConfig", "Qwen3MoeForCausalLM", shape=_EXPERTS),
    "mixtral": Species(
        "MixtralConfig", "MixtralForCausalLM", shape={"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen2.5": Species(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>"),
        plain=1,
        shape={"tie_word_embeddings": False},
        files={"generation_config.json": GREEDY},
        byte_level=True,
    ),
    "llama3.2": Species(
        "LlamaConfig", "LlamaForCausalLM", LLAMA, _LLAMA_CONTROL, end="<|eot_id|>", eos="<|end_of_text|>"
    ),
    "smollm3": Species("SmolLM3Config", "SmolLM3ForCausalLM", SMOLLM, shape={"pad_token_id": 0}),
    "gemma": Species("GemmaConfig", "GemmaForCausalLM", plain=2, **_GEMMA),
    "gemma3": Species(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        shape={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
        **_GEMMA,
    ),
    "mistral": Species(
        "MistralConfig", "MistralForCausalLM", MISTRAL, ("<s>", "</s>"), end="</s>", eos="</s>", shape={"sliding_window": 24}
    ),
    "phi3": Species(
        "Phi3Config",
        "Phi3ForCausalLM",
        PHI,
        ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        end="<|end|>",
        eos="<|endoftext|>",
        shape={"sliding_window": 24, "pad_token_id": 0},
    ),
    "qwen2.5-vl": Species(
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        control=("<|im_start|>", "<|im_end|>", "<|endoftext|>", *IMAGES),
        shape={"rope_parameters": _MROPE},
        files=processors(14, "Qwen2VLVideoProcessor")
        | {"generation_config.json": GREEDY, "chat_template.json": {"chat_template": VISION_WITH_SYSTEM}},
        template=VISION_WITH_SYSTEM,
        vision=_QWEN25VL,
    ),
    "qwen3-vl": Species(
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        control=("<|im_start|>", "<|im_end|>", "<|endoftext|>", *IMAGES),
        shape={"rope_parameters": _MROPE | {"mrope_interleaved": True}},
        files=processors(16, "Qwen3VLVideoProcessor"),
        template=VISION,
        vision=_QWEN3VL,
    ),
}  # fmt: skip


def build(name: str, folder: Path, **change: Any) -> Path:
    """Write a folder of the zoo; `change` overrides entries of its text configuration."""
    import torch
    import transformers

    species = ZOO[name]
    tokenizer = _tokenizer(species)
    shape = SHAPE | {"vocab_size": len(tokenizer) + species.padding} | species.shape | change
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id} | shape
    kind = getattr(transformers, species.config)
    if species.vision is None:
        config = kind(**ids)
    else:
        names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
        images = dict(zip(names, tokenizer.convert_tokens_to_ids(list(IMAGES)), strict=True))
        config = kind(
            text_config=ids, vision_config=species.vision, tie_word_embeddings=shape["tie_word_embeddings"], **images
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, species.model)(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file, content in species.files.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def _tokenizer(species: Species) -> Any:
    """Return the atlas's words, or plain bytes, under the control tokens of a species."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from genevolve_ray.atlas.tokenizer import TAGS, build_tokenizer

    if species.byte_level:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    else:
        state = json.loads(build_tokenizer().backend_tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in TAGS]
        backend = Tokenizer.from_str(json.dumps(state))
    special = len(species.control) - species.plain
    backend.add_special_tokens([AddedToken(token, special=True) for token in species.control[:special]])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in species.control[special:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=species.control[0],
        eos_token=species.eos,
        chat_template=species.template,
        clean_up_tokenization_spaces=False,
    )
