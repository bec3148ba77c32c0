"""A GGUF of a tiny Llama with the tokenizer settings of SmolLM2, written by the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("Ġa", "ĠĠ", "42")
HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 64, 2, 4, 2, 96
_CONTROL_TYPE, _NORMAL_TYPE = 3, 1


def write_gguf(file: Path, model: Any | None = None, pre: str = "smollm") -> Path:
    """Write the weights of a Llama (by default random ones) as float32 GGUF."""
    import gguf
    import torch
    from transformers import LlamaForCausalLM

    tokens = [*CONTROL, *gguf_bytes(), *WORDS]
    if model is None:
        torch.manual_seed(0)
        model = LlamaForCausalLM(tiny_config(len(tokens)))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL_TYPE if token in CONTROL else _NORMAL_TYPE for token in tokens])
    writer.add_token_merges(["Ġ a", "Ġ Ġ", "4 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        if heads := {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2]):
            # llama.cpp keeps the two halves of a head's rotary pairs side by side.
            tensor = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tiny_config(vocabulary: int) -> Any:
    """Return the shape of the tiny Llama."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
    )


def gguf_bytes() -> list[str]:
    """Return the letters by which byte-level tokenizers write the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
