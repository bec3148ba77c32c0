"""A tiny random Qwen3 with its tokenizer, and the log-probs of a plain forward to compare engines with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 300
CONTEXT = 96
BANNED = (0, 2, 3, 299)


@dataclass(frozen=True)
class TinyModels:
    """Two folders of one architecture with different random weights."""

    first: str
    second: str


def build_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in [*tags, "<tool_response>", "</tool_response>"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def build_adapter(folder: Path, base: str) -> Any:
    """Write a random adapter over `base` in peft's layout and return the contract's case for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from genevolve_ray.contracts.engine import EngineCase
    from genevolve_ray.engines.protocol import Probe

    wanted = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(7)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), wanted).eval()
    ids = tuple((7 * i * i + 11) % VOCAB for i in range(40))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    model.save_pretrained(folder)
    return EngineCase(
        prompt=(11, 45, 200, 7, 150),
        vocab_size=VOCAB,
        banned=BANNED,
        max_model_len=CONTEXT,
        folder=str(folder),
        probe=Probe(token_ids=ids, logprobs=tuple(logprobs[torch.arange(39), torch.tensor(ids[1:])].tolist())),
    )


def build_model(folder: Path, seed: int, hidden: int = 64) -> str:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual initialisation is nearly uniform over the vocabulary, where wrong weights hardly show.
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def forward_logprobs(folder: str, prompt: tuple[int, ...], tokens: tuple[int, ...], temperature: float) -> list[float]:
    """Log-probs of `tokens` after `prompt` from one plain forward, under temperature and ban mask."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / temperature
    logits[:, list(BANNED)] = float("-inf")
    return logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
